"""Causal attention by every back-end of torch, forward and backward."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.sweep.timing import median_seconds

_BACKENDS = {
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
_TOKENS = 32768


def rows(device: torch.device, *, is_dry: bool) -> Iterator[dict[str, Any]]:
    """TFLOP/s of each back-end, counting only the pairs that a causal model may see."""
    lengths = (64,) if is_dry else (1024, 2048, 8192)
    for head_dim, heads in ((64, 12), (128, 16)):
        for length in lengths:
            batch_size = 1 if is_dry else _TOKENS // length
            packed = torch.randn(
                *(batch_size, length, 3, heads, head_dim), device=device, dtype=torch.bfloat16
            )
            for name in (*_BACKENDS, "default", "flex", "varlen"):
                row = {"backend": name, "T": length, "hd": head_dim, "H": heads, "B": batch_size}
                try:
                    yield row | _rates(_call(name, packed), packed, device)
                except Exception as error:  # whatever a back-end says to this device or shape
                    yield row | {"failed": str(error).strip().splitlines()[0][:120]}


def _rates(call: Callable[[], Tensor], packed: Tensor, device: torch.device) -> dict[str, float]:
    batch_size, length, _, heads, head_dim = packed.shape
    packed.requires_grad_()
    gradient = torch.randn_like(call())

    def both() -> None:
        packed.grad = None
        call().backward(gradient)

    with torch.no_grad():
        forward = median_seconds(call, device)
    backward = median_seconds(both, device) - forward
    flops = 4 * batch_size * heads * head_dim * length * (length + 1) / 2
    return {
        "forward_tflops": flops / forward / 1e12,
        "backward_tflops": 2.5 * flops / max(backward, 1e-9) / 1e12,
    }


def _call(name: str, packed: Tensor) -> Callable[[], Tensor]:
    """Attention on q, k and v that are views of one packed tensor, as in our model."""
    batch_size, length = packed.shape[:2]

    def heads_first() -> tuple[Tensor, ...]:
        return tuple(part.transpose(1, 2) for part in packed.unbind(2))

    if name == "varlen":
        from torch.nn.attention.varlen import varlen_attn

        bounds = torch.arange(0, batch_size * length + 1, length, dtype=torch.int32)
        bounds = bounds.to(packed.device)

        def varlen() -> Tensor:
            q, k, v = (part.flatten(0, 1).contiguous() for part in packed.unbind(2))
            found = varlen_attn(*(q, k, v, bounds, bounds, length, length), window_size=(-1, 0))
            assert isinstance(found, Tensor)
            return found

        return varlen
    if name == "flex":
        return _flex(heads_first, length, packed.device)

    def sdpa() -> Tensor:
        return F.scaled_dot_product_attention(*heads_first(), is_causal=True)

    if name == "default":
        return sdpa

    def chosen() -> Tensor:
        with sdpa_kernel(_BACKENDS[name]):
            return sdpa()

    return chosen


def _flex(
    heads_first: Callable[[], tuple[Tensor, ...]], length: int, device: torch.device
) -> Callable[[], Tensor]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def causal(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return query >= key

    mask = create_block_mask(causal, None, None, length, length, device=device.type)
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda: compiled(*heads_first(), block_mask=mask)
