"""The operations that benchmarks/kernels.py measures; one more is a class, entered at the end.

An operation makes a `Case` for each way to compute it, on inputs drawn from torch's generator.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

Shape = dict[str, int]


class NotHereError(Exception):
    """This way to compute an operation is not installed, or runs elsewhere."""


class Case(NamedTuple):
    """An operation with its inputs, ready to be called."""

    call: Callable[[], Any]
    leaves: list[Tensor]  # tensors that get gradients; none: there is no backward pass

    def gradient_of(self, output: Tensor) -> Tensor:
        """What flows back into an output."""
        return torch.ones_like(output)


class Operation(Protocol):
    """What the table below holds."""

    ways: tuple[str, ...]

    def shapes(self, size: str) -> list[Shape]:
        """Shapes to measure: on a `cpu`, on `cuda`, or a `dry` run."""

    def case(self, way: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Case:
        """The operation on new inputs. Raises NotHereError."""

    def bytes_moved(self, shape: Shape, itemsize: int) -> int:
        """Bytes that forward and backward, where there is one, must read and write at least."""


def _leaf(*shape: int, dtype: torch.dtype, device: torch.device, std: float = 1.0) -> Tensor:
    drawn = torch.randn(*shape, device=device) * std
    return drawn.to(dtype).requires_grad_()


# Our loss, by what turns logits into their gradient.
_OURS: dict[str, Any] = {"ours": "torch", "ours compiled": "inductor", "ours triton": "triton"}


class LinearCrossEntropy:
    """Output matrix and cross entropy."""

    ways = ("eager", "compiled", *_OURS, "liger", "torch")

    def shapes(self, size: str) -> list[Shape]:
        """Rows × width × vocabulary."""
        if size == "dry":
            return [{"N": 64, "d": 32, "V": 512}]
        if size == "cpu":
            return [
                {"N": n, "d": d, "V": 50304} for n, d in ((2048, 256), (4096, 256), (2048, 768))
            ]
        widths = ((65536, 768), (65536, 1024), (32768, 1600), (8192, 4096))
        return [{"N": n, "d": d, "V": 50304} for n, d in widths]

    def case(self, way: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Case:
        """Make a mean loss over all rows."""
        from model.kernels import linear_cross_entropy as kernel

        n, d, v = shape["N"], shape["d"], shape["V"]
        hidden = _leaf(n, d, dtype=dtype, device=device)
        weight = _leaf(v, d, dtype=dtype, device=device, std=0.02)
        targets = torch.randint(0, v, (n,), device=device)
        if way in _OURS:
            if way == "ours triton" and device.type != "cuda":
                raise NotHereError("needs Triton and a GPU")
            own = partial(kernel.loss, hidden, weight, targets, kernels=_OURS[way])
            return Case(lambda: own().loss, [hidden, weight])
        if way == "liger":
            function: Any = _liger_cross_entropy(device)
        elif way == "torch":
            function = _torch_cross_entropy()
        else:
            function = kernel.reference
            function = torch.compile(function, dynamic=False) if way == "compiled" else function
        return Case(lambda: function(hidden, weight, targets), [hidden, weight])

    def bytes_moved(self, shape: Shape, itemsize: int) -> int:
        """Inputs and weights twice, their gradients once; logits that never leave the chip."""
        n, d, v = shape["N"], shape["d"], shape["V"]
        return 3 * itemsize * (n * d + v * d)


def _liger_cross_entropy(device: torch.device) -> Any:
    if device.type != "cuda":
        raise NotHereError("runs on a GPU only")
    try:
        from liger_kernel.transformers.fused_linear_cross_entropy import (
            LigerFusedLinearCrossEntropyLoss,
        )
    except ImportError as error:
        raise NotHereError("liger-kernel is not installed; give --peers") from error
    module = LigerFusedLinearCrossEntropyLoss()
    return lambda hidden, weight, targets: module(weight, hidden, targets)


def _torch_cross_entropy() -> Any:
    if not hasattr(F, "linear_cross_entropy"):
        raise NotHereError(f"torch {torch.__version__} has no linear_cross_entropy")
    options = torch.nn.LinearCrossEntropyOptions()
    return lambda hidden, weight, targets: F.linear_cross_entropy(
        hidden, weight, targets, options=options
    )


class Norm:
    """Residual sum and RMS norm."""

    ways = ("eager", "compiled", "ours", "liger", "torch")

    def shapes(self, size: str) -> list[Shape]:
        """Rows × width."""
        if size == "dry":
            return [{"N": 64, "d": 32}]
        if size == "cpu":
            return [{"N": 8192, "d": 768}]
        return [{"N": n, "d": d} for n, d in ((65536, 768), (32768, 1600), (16384, 4096))]

    def case(self, way: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Case:
        """Make (norm, sum) of two tensors."""
        kernel = _kernel("norm")
        n, d = shape["N"], shape["d"]
        x, residual = (_leaf(n, d, dtype=dtype, device=device) for _ in range(2))
        weight = _leaf(d, dtype=dtype, device=device)
        if way == "torch":
            # The sum is a tensor of its own: what a model without the fusion does.
            return Case(lambda: _plain_norm(x, residual, weight), [x, residual, weight])
        if way == "liger":
            function = _liger_norm(device)
            return Case(lambda: function(x, residual, weight), [x, residual, weight])
        if kernel is None or (way == "ours" and device.type != "cuda"):
            raise NotHereError("needs Triton and a GPU")
        function = kernel.norm if way == "ours" else kernel.reference
        function = torch.compile(function, dynamic=False) if way == "compiled" else function
        return Case(lambda: function(x, residual, weight, None, 1e-6, False), [x, residual, weight])

    def bytes_moved(self, shape: Shape, itemsize: int) -> int:
        """Four tensors each way."""
        return 8 * shape["N"] * shape["d"] * itemsize


def _plain_norm(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    total = x + residual
    return F.rms_norm(total, weight.shape, weight, 1e-6), total


def _liger_norm(device: torch.device) -> Any:
    if device.type != "cuda":
        raise NotHereError("runs on a GPU only")
    try:
        from liger_kernel.ops.fused_add_rms_norm import LigerFusedAddRMSNormFunction
    except ImportError as error:
        raise NotHereError("liger-kernel is not installed; give --peers") from error
    return lambda x, residual, weight: LigerFusedAddRMSNormFunction.apply(x, residual, weight, 1e-6)


class Rotary:
    """Packed queries, keys and values taken apart, normalised and turned."""

    ways = ("eager", "compiled", "ours")

    def shapes(self, size: str) -> list[Shape]:
        """Batch × tokens × heads × key heads × width."""
        if size != "cuda":
            return [{"B": 2, "T": 64, "H": 4, "K": 2, "hd": 32}]
        wide = {"B": 32, "T": 2048, "H": 12, "K": 12, "hd": 64}
        return [wide, {"B": 8, "T": 2048, "H": 32, "K": 8, "hd": 128}]

    def case(self, way: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Case:
        """Make queries, keys and values."""
        from model.rotary import Rotary as Angles

        kernel = _kernel("rotary")
        if kernel is None or (way == "ours" and device.type != "cuda"):
            raise NotHereError("needs Triton and a GPU")
        heads = shape["H"] + 2 * shape["K"]
        packed = _leaf(*(shape["B"], shape["T"], heads, shape["hd"]), dtype=dtype, device=device)
        gains = tuple(_leaf(shape["hd"], dtype=dtype, device=device) for _ in range(2))
        angle = torch.randn(1, shape["T"], 1, shape["hd"] // 2, device=device)
        angles = Angles.of(angle.cos(), angle.sin())
        function = kernel.split_and_turn if way == "ours" else kernel.reference
        function = torch.compile(function, dynamic=False) if way == "compiled" else function
        return Case(
            lambda: function(packed, angles, shape["H"], shape["K"], gains, 1e-6),
            [packed, *gains],
        )

    def bytes_moved(self, shape: Shape, itemsize: int) -> int:
        """Read and written once forward; packed read again, gradients read and written backward."""
        numbers = shape["B"] * shape["T"] * (shape["H"] + 2 * shape["K"]) * shape["hd"]
        return 5 * numbers * itemsize


class OptimizerStep:
    """A step of AdamW over one rank's flat partition: unscale, clip, step, and 16-bit weights."""

    ways = ("eager", "compiled", "ours", "torch")

    def shapes(self, size: str) -> list[Shape]:
        """Elements of the partition: 124 M of one GPU, and an eighth of 1.5 and of 7 B."""
        if size == "dry":
            return [{"n": 10_000}]
        if size == "cpu":
            return [{"n": 8 << 20}, {"n": 32 << 20}]
        return [{"n": n} for n in (124_000_000, 195_000_000, 875_000_000)]

    def case(self, way: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Case:
        """Make a step, each call the next one. dtype: of the weights that the model computes in."""
        from benchmarks.sweep.optimizer_step import AdamW, Partition, stepper

        weights = 0.02 * torch.randn(shape["n"], device=device)
        return Case(stepper(way, Partition(weights, dtype, AdamW())), [])

    def bytes_moved(self, shape: Shape, itemsize: int) -> int:
        """Weights, both moments and the gradient read, all but that written, and the copy."""
        return shape["n"] * (4 * 4 + 3 * 4 + itemsize)


def _kernel(name: str) -> Any:
    """A module of model.kernels; None where it, or Triton, is missing."""
    try:
        if name == "norm":
            from model.kernels import norm as found
        else:
            from model.kernels import rotary as found
    except ImportError:
        return None
    return found


# The longest last: a sweep that runs out of time still has something of each.
OPERATIONS: dict[str, Operation] = {
    "norm": Norm(),
    "rotary": Rotary(),
    "optimizer_step": OptimizerStep(),
    "linear_cross_entropy": LinearCrossEntropy(),
}
