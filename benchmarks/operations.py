"""The operations that benchmarks/kernels.py measures; one more is a class, entered at the end.

An operation makes a `Case` for each way to compute it, on inputs drawn from torch's generator.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import in_place

Shape = dict[str, int]


class NotHereError(Exception):
    """This way to compute an operation is not installed, or runs elsewhere."""


@dataclass
class Case:
    """An operation with its inputs, ready to be called."""

    call: Callable[[], Any]
    leaves: list[Tensor]  # tensors that get gradients; none: there is no backward pass
    restore: Callable[[], None] = lambda: None  # before a turn: inputs that a pass writes over
    _onto: list[Tensor] = field(default_factory=list)

    def gradients_of(self, outputs: list[Tensor]) -> list[Tensor]:
        """What flows back into the outputs: always the same, whose making is not timed."""
        if not self._onto:
            self._onto.extend(torch.ones_like(output) for output in outputs)
        return self._onto


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


@contextmanager
def _liger(device: torch.device) -> Iterator[None]:
    """Import from Liger in here. Raises NotHereError where it cannot run or lacks what is asked."""
    if device.type != "cuda":
        raise NotHereError("runs on a GPU only")
    try:
        yield
    except ImportError as error:
        raise NotHereError(f"{error}; give --peers") from error


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
    with _liger(device):
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
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
    with _liger(device):
        from liger_kernel.ops.fused_add_rms_norm import LigerFusedAddRMSNormFunction
    return lambda x, residual, weight: LigerFusedAddRMSNormFunction.apply(x, residual, weight, 1e-6)


class Rotary:
    """Packed queries, keys and values taken apart, normalised where has_norm, and turned.

    Torch has no operation of its own for it. Liger turns without normalising.
    """

    def __init__(self, *, has_norm: bool) -> None:
        self.has_norm = has_norm
        self.ways = ("eager", "compiled", "ours", *(() if has_norm else ("liger",)))

    def shapes(self, size: str) -> list[Shape]:
        """Batch × tokens × heads × key heads × width."""
        if size == "dry":
            return [{"B": 2, "T": 64, "H": 4, "K": 2, "hd": 32}]
        if size == "cpu":
            return [{"B": 8, "T": 512, "H": 12, "K": 12, "hd": 64}]
        wide = {"B": 32, "T": 2048, "H": 12, "K": 12, "hd": 64}
        return [wide, {"B": 8, "T": 2048, "H": 32, "K": 8, "hd": 128}]

    def case(self, way: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Case:
        """Make queries, keys and values."""
        from model.rotary import Rotary as Angles

        heads, n_heads, n_kv_heads = shape["H"] + 2 * shape["K"], shape["H"], shape["K"]
        packed = _leaf(shape["B"], shape["T"], heads, shape["hd"], dtype=dtype, device=device)
        gains = tuple(
            _leaf(shape["hd"], dtype=dtype, device=device) for _ in range(2 * self.has_norm)
        )
        angle = torch.randn(1, shape["T"], 1, shape["hd"] // 2, device=device)
        if way == "liger":
            turn = _liger_turn(device, angle)
            return Case(lambda: turn(packed, n_heads, n_kv_heads), [packed])
        kernel = _kernel("rotary")
        if kernel is None or (way == "ours" and device.type != "cuda"):
            raise NotHereError("needs Triton and a GPU")
        angles = Angles.of(angle.cos(), angle.sin())
        function = kernel.split_and_turn if way == "ours" else kernel.reference
        function = torch.compile(function, dynamic=False) if way == "compiled" else function
        return Case(
            lambda: function(packed, angles, n_heads, n_kv_heads, gains, 1e-6), [packed, *gains]
        )

    def bytes_moved(self, shape: Shape, itemsize: int) -> int:
        """Read and written once each way; with a norm packed is read again backward."""
        numbers = shape["B"] * shape["T"] * (shape["H"] + 2 * shape["K"]) * shape["hd"]
        return (5 if self.has_norm else 4) * numbers * itemsize


def _liger_turn(device: torch.device, angle: Tensor) -> Any:
    with _liger(device):
        from liger_kernel.ops.rope import LigerRopeFunction
    # (1, T, hd), as transformers has them; in fp32, as ours computes.
    cos, sin = (torch.cat((t, t), -1).squeeze(2) for t in (angle.cos(), angle.sin()))

    def turn(packed: Tensor, n_heads: int, n_kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = packed.split((n_heads, n_kv_heads, n_kv_heads), dim=2)
        q, k = LigerRopeFunction.apply(q.transpose(1, 2), k.transpose(1, 2), cos, sin)
        return q.transpose(1, 2), k.transpose(1, 2), v

    return turn


class Activation:
    """What an MLP computes between its matrices; gate and up in one tensor, as in the model.

    in place: gradients over the input, as a kernel of ours would write them, in plain PyTorch; in
    place compiled: the same in one pass. Liger's write over its inputs too.
    """

    def __init__(self, kind: str, widths: dict[str, tuple[tuple[int, int], ...]]) -> None:
        self.kind, self._widths = kind, widths
        self.is_gated = kind in in_place.GATED
        # Liger has none without a gate, and of GeGLU tanh's approximation alone. It takes gate and
        # up apart, as models with two matrices have them; from one tensor SwiGLU alone.
        liger = {"swiglu": ("liger", "liger packed"), "geglu": ("liger, tanh",)}
        self.ways = ("eager", "compiled", "in place", "in place compiled", *liger.get(kind, ()))

    def shapes(self, size: str) -> list[Shape]:
        """Rows × width of the MLP."""
        return [{"N": n, "d_ff": width} for n, width in self._widths.get(size, ((64, 48),))]

    def case(self, way: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Case:
        """Make the input of the second matrix."""
        drawn = _leaf(shape["N"], self._width(shape), dtype=dtype, device=device).detach()
        apart = way in ("liger", "liger, tanh")
        parts = [half.contiguous() for half in drawn.chunk(2, -1)] if apart else [drawn]
        leaves = [part.clone().requires_grad_() for part in parts]
        function = self._function(way, device)

        def restore() -> None:
            for leaf, part in zip(leaves, parts, strict=True):
                leaf.detach().copy_(part)

        return Case(lambda: function(*leaves), leaves, restore)

    def _width(self, shape: Shape) -> int:
        return (2 if self.is_gated else 1) * shape["d_ff"]

    def _function(self, way: str, device: torch.device) -> Callable[..., Tensor]:
        plain = in_place.as_in_the_model(self.kind)
        if way == "eager":
            return plain
        if way == "compiled":
            compiled: Callable[..., Tensor] = torch.compile(plain, dynamic=False)
            return compiled
        if way in ("in place", "in place compiled"):
            return in_place.in_place(self.kind, compiled=way.endswith("compiled"))
        if way not in self.ways:
            raise ValueError(f"way: got {way!r}, expected one of {', '.join(self.ways)}")
        return _liger_activation(way, self.kind, device)

    def bytes_moved(self, shape: Shape, itemsize: int) -> int:
        """The input read and the output written; both read again, and a gradient written."""
        return (3 * self._width(shape) + 2 * shape["d_ff"]) * shape["N"] * itemsize


def _liger_activation(way: str, kind: str, device: torch.device) -> Callable[..., Tensor]:
    with _liger(device):
        from liger_kernel.ops.geglu import LigerGELUMulFunction
        from liger_kernel.ops.swiglu import LigerFusedGateUpSiLUMulFunction, LigerSiLUMulFunction
    if way == "liger packed":
        return lambda x: LigerFusedGateUpSiLUMulFunction.apply(x, True)  # in place
    found: Callable[..., Tensor] = (
        LigerSiLUMulFunction.apply if kind == "swiglu" else LigerGELUMulFunction.apply
    )
    return found


class OptimizerStep:
    """A step of AdamW over one rank's flat partition: unscale, clip, step, and 16-bit weights."""

    ways = ("eager", "compiled", "ours", "torch", "DeepSpeed FusedAdam")

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


# Rows and widths of MLPs: of Llama 160 M, 1 B and 8 B; ModernBERT; BERT; and GPT-2.
_SWIGLU = {"cpu": ((4096, 2048),), "cuda": ((65536, 2048), (32768, 8192), (16384, 14336))}
_GEGLU = {"cpu": ((4096, 1152),), "cuda": ((65536, 1152), (65536, 2624))}
_GELU = {"cpu": ((4096, 3072),), "cuda": ((65536, 3072), (65536, 4096))}
_GELU_TANH = {"cpu": ((4096, 3072),), "cuda": ((65536, 3072), (32768, 6400))}

# The longest last: a sweep that runs out of time still has something of each.
OPERATIONS: dict[str, Operation] = {
    "norm": Norm(),
    "rotary": Rotary(has_norm=True),
    "rotary_alone": Rotary(has_norm=False),
    "swiglu": Activation("swiglu", _SWIGLU),
    "geglu": Activation("geglu", _GEGLU),
    "gelu": Activation("gelu", _GELU),
    "gelu_tanh": Activation("gelu_tanh", _GELU_TANH),
    "optimizer_step": OptimizerStep(),
    "linear_cross_entropy": LinearCrossEntropy(),
}
