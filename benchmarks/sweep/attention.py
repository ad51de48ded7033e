"""Attention by every back-end of torch, forward and backward: causal, with prefixes, packed."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from benchmarks.sweep.timing import Times, alternate, is_over
from model.bands import Rule, rule

_BACKENDS = {
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
_TOKENS = 32768
_DOCUMENTS = 8  # of a row, on average
_ON = {
    "causal": (*_BACKENDS, "default", "flex", "varlen"),
    "prefix": ("efficient", "flex"),
    "documents": ("efficient", "flex", "varlen"),
}


class Seen(NamedTuple):
    """What a batch's tokens may look at, for every kind of back-end."""

    rule: Rule
    mask: Tensor | None  # (B, 1, T, T); None where causality is all there is
    bounds: Tensor  # (documents + 1,) over the B·T tokens; rows are documents at least
    pairs: int

    @classmethod
    def of(cls, kind: str, batch_size: int, length: int, device: torch.device) -> "Seen":
        """Causal rows; with a prefix of a quarter to a half of each; or packed with documents."""
        torch.manual_seed(0)
        total, place = batch_size * length, torch.arange(length, device=device)
        ends = torch.arange(0, total + 1, length)
        known: dict[str, Any] = dict.fromkeys(("attention_mask", "documents", "prefix"))
        if kind == "prefix":
            lengths = torch.randint(length // 4, length // 2, (batch_size, 1), device=device)
            known["prefix"] = place[None] < lengths
        if kind == "documents":
            cuts = torch.randint(1, total, (batch_size * (_DOCUMENTS - 1),))
            ends = torch.cat((ends, cuts)).sort().values
            token = torch.arange(total).view(batch_size, length)
            known["documents"] = torch.searchsorted(ends, token, right=True).to(device)
        sees, bounds = rule(None, causal=True, **known), ends.to(device, torch.int32)
        if kind == "causal":
            return cls(sees, None, bounds, batch_size * length * (length + 1) // 2)
        row = torch.arange(batch_size, device=device)[:, None, None]
        mask = sees(row, row, place[:, None], place)[:, None]
        return cls(sees, mask, bounds, int(mask.sum()))


def rows(
    device: torch.device, *, is_dry: bool, until: float = math.inf
) -> Iterator[dict[str, Any]]:
    """TFLOP/s of each back-end, counting only the pairs that are seen; back-ends take turns.

    until: of `time.monotonic`; what is not measured by then is named in a last row.
    """
    lengths = (64,) if is_dry else (1024, 2048, 8192)
    narrow, wide = (64, 12), (128, 16)
    # First what our steps compute, for a sweep that runs out of time.
    cases = [("causal", narrow, lengths[0])]
    cases += [(kind, wide, lengths[-1]) for kind in ("documents", "prefix")]
    cases += [("causal", wide, length) for length in lengths]
    cases += [("causal", narrow, length) for length in lengths[1:]]
    for number, (kind, shape, length) in enumerate(cases):
        if is_over(until):
            yield {"left_out": f"{len(cases) - number} shapes: the part's time was over"}
            return
        yield from _compare(kind, shape, 1 if is_dry else _TOKENS // length, length, device, until)


def _compare(
    kind: str,
    shape: tuple[int, int],
    batch_size: int,
    length: int,
    device: torch.device,
    until: float,
) -> Iterator[dict[str, Any]]:
    head_dim, heads = shape
    packed = torch.randn(
        *(batch_size, length, 3, heads, head_dim), device=device, dtype=torch.bfloat16
    ).requires_grad_()
    seen = Seen.of(kind, batch_size, length, device)
    told = {"sees": kind, "T": length, "hd": head_dim, "H": heads, "B": batch_size}
    calls: dict[str, Callable[[], None]] = {}
    for name in _ON[kind]:
        try:
            passes = _passes(_call(name, packed, seen), packed)
            for call in passes.values():
                call()
        except Exception as error:  # whatever a back-end says to this device or shape
            reason = str(error).strip().splitlines() or [type(error).__name__]
            yield {"backend": name, **told, "failed": reason[0][:120]}
        else:
            calls |= {f"{name} {what}": call for what, call in passes.items()}
    found = alternate(calls, device, until=until) if calls else {}
    flops = 4 * heads * head_dim * seen.pairs
    for name in _ON[kind]:
        if f"{name} forward" in found:
            times = found[f"{name} forward"], found[f"{name} both"]
            yield {"backend": name, **told, **_rates(*times, flops)}


def _passes(call: Callable[[], Tensor], packed: Tensor) -> dict[str, Callable[[], None]]:
    """Forward by itself, and with the backward pass."""
    gradient = torch.randn_like(call())

    def forward() -> None:
        with torch.no_grad():
            call()

    def both() -> None:
        packed.grad = None
        call().backward(gradient)

    return {"forward": forward, "both": both}


def _rates(forward: Times, both: Times, flops: int) -> dict[str, Any]:
    backward = Times([b - f for b, f in zip(both.turns, forward.turns, strict=True)]).median
    least = both.minimum - forward.minimum
    found: dict[str, Any] = {
        "forward_tflops": flops / forward.median / 1e12,
        "forward_tflops_best": flops / forward.minimum / 1e12,
        # None where noise hides it.
        "backward_tflops": 2.5 * flops / backward / 1e12 if backward > 0 else None,
        "backward_tflops_best": 2.5 * flops / least / 1e12 if least > 0 else None,
    }
    return found | {
        "both_ms": both.median * 1e3,
        "both_min_ms": both.minimum * 1e3,
        "turns": len(both.turns),
    }


def _call(name: str, packed: Tensor, seen: Seen) -> Callable[[], Tensor]:
    """Attention on q, k and v that are views of one packed tensor, as in our model."""
    batch_size, length = packed.shape[:2]

    def heads_first() -> tuple[Tensor, ...]:
        return tuple(part.transpose(1, 2) for part in packed.unbind(2))

    if name == "varlen":
        from torch.nn.attention.varlen import varlen_attn

        ends = (seen.bounds, seen.bounds, length, length)

        def varlen() -> Tensor:
            q, k, v = (part.flatten(0, 1).contiguous() for part in packed.unbind(2))
            found = varlen_attn(q, k, v, *ends, window_size=(-1, 0))
            assert isinstance(found, Tensor)
            return found

        return varlen
    if name == "flex":
        rows_apart = None if seen.mask is None else batch_size
        mask = create_block_mask(seen.rule, rows_apart, None, length, length, packed.device)
        torch._dynamo.reset()  # each shape is compiled anew, of which a process has few
        compiled = torch.compile(flex_attention, dynamic=False)
        return lambda: compiled(*heads_first(), block_mask=mask)

    def sdpa() -> Tensor:
        is_causal = seen.mask is None
        return F.scaled_dot_product_attention(
            *heads_first(), attn_mask=seen.mask, is_causal=is_causal
        )

    if name == "default":
        return sdpa

    def chosen() -> Tensor:
        with sdpa_kernel(_BACKENDS[name]):
            return sdpa()

    return chosen
