"""What matrix products of our shapes reach: the ceiling of every step."""

import math
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.sweep.timing import alternate, is_over

# d_model, d_ff rows of the up matrix (gate and up together where gated), vocabulary.
_MODELS = {
    "124M": (768, 3072, 50304),
    "350M": (1024, 4096, 50304),
    "774M": (1280, 5120, 50304),
    "1.5B": (1600, 6400, 50304),
    "7B": (4096, 2 * 11008, 32000),
}
_TOKENS = 32768


def rows(
    device: torch.device, *, is_dry: bool, until: float = math.inf
) -> Iterator[dict[str, Any]]:
    """TFLOP/s of each product, forward and both of backward, on random numbers.

    until: of `time.monotonic`; what is not measured by then is named in a last row.
    """
    cases = list(_cases(is_dry=is_dry))
    for number, case in enumerate(cases):
        if is_over(until):
            yield {"left_out": f"{len(cases) - number} shapes: the part's time was over"}
            return
        yield _measure(*case, device, until)


def _cases(*, is_dry: bool) -> Iterator[tuple[str, str, tuple[int, int, int]]]:
    """Model, product, and m, k and n of y = x · wᵀ."""
    tokens = 64 if is_dry else _TOKENS
    square = 64 if is_dry else 8192
    yield "square", "8192³", (square, square, square)
    for model, (d, up, vocabulary) in _MODELS.items():
        if is_dry:
            d, up, vocabulary = 32, 64, 128
        for name, out in (("qkv", 3 * d), ("up", up), ("head", vocabulary)):
            yield model, name, (tokens, d, out)
        yield model, "down", (tokens, up // (2 if model == "7B" else 1), d)


def _measure(
    model: str, name: str, mkn: tuple[int, int, int], device: torch.device, until: float
) -> dict[str, Any]:
    m, k, n = mkn
    x, w, dy = (
        torch.randn(*shape, device=device, dtype=torch.bfloat16)
        for shape in ((m, k), (n, k), (m, n))
    )
    products = {"forward": lambda: x @ w.T, "dx": lambda: dy @ w, "dw": lambda: dy.T @ x}
    found, tflop = alternate(products, device, until=until), 2 * m * k * n / 1e12
    return {
        **{"model": model, "product": name, "m": m, "k": k, "n": n},
        "tflops": {kind: tflop / times.median for kind, times in found.items()},
        "tflops_best": {kind: tflop / times.minimum for kind, times in found.items()},
        "turns": min(len(times.turns) for times in found.values()),
    }
