"""What matrix products of our shapes reach: the ceiling of every step."""

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.sweep.timing import median_seconds

# d_model, d_ff rows of the up matrix (gate and up together where gated), vocabulary.
_MODELS = {
    "124M": (768, 3072, 50304),
    "350M": (1024, 4096, 50304),
    "774M": (1280, 5120, 50304),
    "1.5B": (1600, 6400, 50304),
    "7B": (4096, 2 * 11008, 32000),
}
_TOKENS = 32768


def rows(device: torch.device, *, is_dry: bool) -> Iterator[dict[str, Any]]:
    """TFLOP/s of each product, forward and both of backward, on random numbers."""
    tokens = 64 if is_dry else _TOKENS
    square = 64 if is_dry else 8192
    yield from _of("square", "8192³", square, square, square, device)
    for model, (d, up, vocabulary) in _MODELS.items():
        if is_dry:
            d, up, vocabulary = 32, 64, 128
        for name, out in (("qkv", 3 * d), ("up", up), ("head", vocabulary)):
            yield from _of(model, name, tokens, d, out, device)
        yield from _of(model, "down", tokens, up // (2 if model == "7B" else 1), d, device)


def _of(
    model: str, name: str, m: int, k: int, n: int, device: torch.device
) -> Iterator[dict[str, Any]]:
    x, w, dy = (
        torch.randn(*shape, device=device, dtype=torch.bfloat16)
        for shape in ((m, k), (n, k), (m, n))
    )
    products = {"forward": lambda: x @ w.T, "dx": lambda: dy @ w, "dw": lambda: dy.T @ x}
    rates = {
        kind: 2 * m * k * n / median_seconds(call, device) / 1e12 for kind, call in products.items()
    }
    yield {"model": model, "product": name, "m": m, "k": k, "n": n, "tflops": rates}
