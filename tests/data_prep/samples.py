"""Text that the tests make themselves, and what they compare."""

import random
from pathlib import Path
from typing import Any

import orjson

WORDS = [
    "the",
    "a",
    "river",
    "stone",
    "walks",
    "sees",
    "old",
    "new",
    "green",
    "你好",
    "世界",
    "émigré",
    "😀",
    "def",
    "return",
    "self",
    "under",
    "over",
]


def sentence(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words)) + rng.choice([".", "?\n", "\n\n!"])


def make_texts(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [f"{n}: {sentence(rng, rng.randint(3, 40))}" for n in range(count)]


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_bytes(b"".join(orjson.dumps({"text": t}) + b"\n" for t in texts))
    return path


def settings(**changes: Any) -> dict[str, Any]:
    """A small config as nested dicts; `a__b=1` sets key a.b."""
    base: dict[str, Any] = {
        "input": {},
        "tokenizer": {"train": {"kind": "bpe", "vocab_size": 300}},
        "split": {},
        "workers": 1,
        "work_unit_bytes": 4096,
    }
    for name, value in changes.items():
        at = base
        *parents, last = name.split("__")
        for parent in parents:
            at = at.setdefault(parent, {})
        at[last] = value
    return base


def contents(directory: Path) -> dict[str, bytes]:
    """Every visible file's bytes."""
    return {
        p.relative_to(directory).as_posix(): p.read_bytes()
        for p in sorted(directory.rglob("*"))
        if p.is_file() and not p.name.startswith(".")
    }
