"""Fewer training examples than a file holds: which ones is a pure function of the seed."""

import hashlib
from collections.abc import Sequence
from typing import Any


def draw_per_class(examples: Sequence[Any], per_class: int, seed: int) -> list[Any]:
    """Draw so many examples of every class, all of one that has fewer, in their order.

    Copies of a text with the same label count as one. A draw of more holds every draw of fewer.
    """
    ranked = _ranked(examples, seed)
    return _in_order(examples, [i for found in ranked.values() for i in found[:per_class]])


def draw(examples: Sequence[Any], count: int, seed: int) -> list[Any]:
    """Draw so many different examples, of every class its share and at least one, in their order.

    Where there are more classes than that, any examples.
    """
    ranked = _ranked(examples, seed)
    if count < len(ranked):
        everyone = sorted((_digest(examples[i], seed), i) for f in ranked.values() for i in f)
        return _in_order(examples, [i for _, i in everyone[:count]])
    quotas = _quotas({name: len(found) for name, found in ranked.items()}, count)
    return _in_order(examples, [i for name, f in ranked.items() for i in f[: quotas[name]]])


def count_different(examples: Sequence[Any]) -> int:
    """Count the examples, copies of a text with the same label as one."""
    return len({_identity(example) for example in examples})


def _ranked(examples: Sequence[Any], seed: int) -> dict[str, list[int]]:
    """The examples of every class without copies, in the order in which they are drawn."""
    first: dict[tuple[str, str, str], int] = {}
    for index, example in enumerate(examples):
        first.setdefault(_identity(example), index)
    found: dict[str, list[tuple[bytes, int]]] = {}
    for (stratum, *_), index in first.items():
        found.setdefault(stratum, []).append((_digest(examples[index], seed), index))
    return {name: [i for _, i in sorted(found[name])] for name in sorted(found)}


def _identity(example: Any) -> tuple[str, str, str]:
    """What makes two examples copies: class, text and, where there are no classes, the answer."""
    answer = getattr(example, "label", None) or getattr(example, "answer", None)
    return example.stratum, example.text, str(answer)


def _digest(example: Any, seed: int) -> bytes:
    # Not the digest that splits dev off: the two choices must not depend on each other.
    text = f"draw\0{seed}\0{example.stratum}\0{example.text}"
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()


def _quotas(sizes: dict[str, int], count: int) -> dict[str, int]:
    """Split `count` in proportion to the sizes, by largest remainder, one at least each."""
    total = sum(sizes.values())
    count = min(count, total)
    quotas = {name: max(1, count * size // total) for name, size in sizes.items()}
    missing = count - sum(quotas.values())

    def lack(name: str) -> float:
        return count * sizes[name] / total - quotas[name]

    while missing:
        step = 1 if missing > 0 else -1
        able = [n for n in sizes if (quotas[n] < sizes[n] if step > 0 else quotas[n] > 1)]
        chosen = max(able, key=lambda name: (step * lack(name), name))
        quotas[chosen] += step
        missing -= step
    return quotas


def _in_order(examples: Sequence[Any], chosen: Sequence[int]) -> list[Any]:
    return [examples[index] for index in sorted(chosen)]
