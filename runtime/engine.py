"""The training engine: DeepSpeed ZeRO behind a small face. The only file that imports deepspeed."""

import contextlib
import importlib
import logging
import math
import os
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from runtime import dist, one_pass, replicas, zero_gradients, zero_layout, zero_swap
from runtime.dist import Ranks
from runtime.stopwatch import Stopwatch

_SCALER_STATE = {"cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis"}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DTYPES["fp8"] = DTYPES["bf16"]  # of weights and gradients


class StepResult(NamedTuple):
    """What one optimizer step measured."""

    loss: float  # of the global batch: the sum of what all ranks and micro-batches gave
    grad_norm: torch.Tensor  # global, before clipping; a scalar, inf or NaN where it is not finite
    applied: bool  # False where the step was skipped: weights and moments are bit for bit as before
    own_s: float  # seconds that this rank's forward passes took, which wait for nobody up to ZeRO-2
    update_ratio: float | None = None  # ‖Δw‖ ÷ ‖w‖ over all master weights; None: not asked for


class Engine:
    """A module under ZeRO, stepped with gradient accumulation.

    Gradients are those of the sum of all losses that `train_step` is given, over micro-batches
    and ranks: the caller weights each loss, so that a mean over unequal micro-batches is exact.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: dict[str, Any],
        ranks: Ranks,
        *,
        gathered_whole: Collection[type[nn.Module]] = (),
        compiles_update: bool = False,
    ) -> None:
        """Shard a module.

        gathered_whole: classes of modules whose parameters ZeRO-3 gathers at their entry, all at
        once, and not at that of each module inside: no hook stands in the way of a compiler there.
        compiles_update: whether the compiler may fuse the optimizer's passes; see `one_pass`.
        """
        self.ranks = ranks
        self.accumulation_steps: int = config["gradient_accumulation_steps"]
        self._stage: int = config["zero_optimization"]["stage"]
        self._engine = _initialize(module, optimizer, config, ranks, gathered_whole)
        zero_layout.attach(self._engine, self._stage, ranks)
        zero_gradients.attach(self._engine, self._stage, ranks)
        if compiles_update:
            one_pass.attach(self._engine, self._stage, ranks)
        self.module: nn.Module = self._engine.module
        scaler: Any = getattr(self._engine.optimizer, "loss_scaler", None)
        self._scaler = scaler if getattr(scaler, "dynamic", False) else None
        if self._scaler is not None:
            # The run's own patience decides, and says so in a line.
            self._scaler.raise_error_at_min_scale = False

    def train_step(
        self,
        micro_batches: Sequence[Any],
        loss_of: Callable[[nn.Module, Any], torch.Tensor],
        lr: float,
        *,
        accept: Callable[[float], bool] = math.isfinite,
        measure_update: bool = False,
    ) -> StepResult:
        """Forward, backward, one optimizer step over so many micro-batches, as many on all ranks.

        lr: of groups without an `lr_scale`; a group with one takes that multiple of it.
        accept: asked with the step's loss, the same on all ranks, before anything is updated. Where
        it says no, or a gradient of any rank is not finite, every rank skips the step.
        measure_update: also compute `update_ratio`, for which all ranks wait for one another.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        # DeepSpeed divides by the accumulation steps of its config, however many there are now, and
        # averages over the ranks; we want sums.
        scale = self.accumulation_steps * self.ranks.world_size
        total = torch.zeros((), device=self.ranks.device)
        loss, is_accepted, watch = math.nan, False, Stopwatch(self.ranks.device)
        grad_norm = torch.tensor(math.nan)
        for index, batch in enumerate(micro_batches):
            is_last = index == len(micro_batches) - 1
            self._engine.set_gradient_accumulation_boundary(is_last)
            with watch:
                share = loss_of(self._engine, batch)
            self._engine.backward(share * scale)
            total += share.detach().float()
            if is_last:
                (loss,) = dist.sum_over_ranks([float(total)])
                is_accepted = accept(loss) and math.isfinite(loss)
                if self._stage == 0:
                    grad_norm = self._plain_grad_norm()
                    is_accepted = is_accepted and bool(grad_norm.isfinite())
                zero_layout.skip_step(self._engine, not is_accepted)
                zero_layout.measure_step(self._engine, measure_update)
            self._engine.step()
        if self._stage > 0:
            grad_norm = torch.as_tensor(self._engine.get_global_grad_norm())
        applied = is_accepted and bool(self._engine.was_step_applied())
        ratio = None
        if measure_update:
            ratio = self._update_ratio() if applied else 0.0
        return StepResult(loss, grad_norm, applied, watch.seconds(), ratio)

    @property
    def forward(self) -> nn.Module:
        """What computes a pass of the module, with ZeRO-3's gathering. All ranks call it alike."""
        wrapped: nn.Module = self._engine
        return wrapped

    @property
    def is_at_lowest_scale(self) -> bool | None:
        """Whether fp16's loss scale can't be lowered any more; None without fp16."""
        return None if self._scaler is None else self._scaler.cur_scale <= self._scaler.min_scale

    def loss_scale_state(self) -> dict[str, float]:
        """What fp16's scaler goes on from; empty without fp16."""
        return {} if self._scaler is None else {n: getattr(self._scaler, n) for n in _SCALER_STATE}

    def load_loss_scale_state(self, state: dict[str, float]) -> None:
        """Go on where a run's scaler was. Raises TypeError or ValueError for other values."""
        if self._scaler is not None:
            for name in _SCALER_STATE & state.keys():
                kind = type(getattr(self._scaler, name))
                setattr(self._scaler, name, kind(state[name]))

    def _update_ratio(self) -> float:
        """‖w − w₀‖ ÷ ‖w₀‖ of the last step, w₀ the master weights before it. Collective."""
        shares = zero_layout.squared_norms(self._engine, self._stage, self.ranks)
        update, weight = dist.sum_over_ranks(shares)
        return math.sqrt(update / weight) if weight else 0.0

    def _plain_grad_norm(self) -> torch.Tensor:
        grads = [p.grad for p in self.module.parameters() if p.grad is not None]
        return torch.nn.utils.get_total_norm(grads)

    def compare_replicas(self) -> list[replicas.Drift]:
        """Ranks whose memory is not what it should be, by bits; see `replicas`. Collective."""
        return replicas.compare(self._engine, self._stage, self.ranks)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[nn.Module]:
        """Evaluation mode without gradients; the engine's call runs ZeRO-3's gathering hooks."""
        was_training = self.module.training
        self.module.eval()
        try:
            with torch.no_grad():
                yield self._engine
        finally:
            self.module.train(was_training)

    def full_parameters(self, wanted: Collection[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Those parameters by name, whole, each valid until the next is asked for.

        wanted: this rank's own choice; under ZeRO-3 all ranks gather every one. Collective.
        """
        for name, parameter in self.module.named_parameters():
            with _gathered(parameter):
                if name in wanted:
                    yield name, parameter.detach()

    def parameter_shapes(self) -> dict[str, list[int]]:
        """The shape of each whole parameter by name, also of those that ZeRO-3 has cut."""
        parameters = self.module.named_parameters()
        return {name: list(getattr(p, "ds_shape", p.shape)) for name, p in parameters}

    def optimizer_slices(self) -> Iterator[zero_layout.Slice]:
        """This rank's part of the master weights and moments, by parameter name and offset."""
        yield from zero_layout.slices(self._engine, self._stage, self.ranks)

    def optimizer_steps(self) -> int:
        """How many steps the optimizer's bias correction has counted."""
        return zero_layout.optimizer_steps(self._engine)

    def load_optimizer_slices(self, read: zero_layout.ReadSlice, optimizer_steps: int) -> None:
        """Fill this rank's part of master weights and moments, whatever topology wrote them.

        `read(parameter name, key, start, numel)` returns that stretch of the flattened tensor.
        The module's own parameters follow from the master weights. Collective.
        """
        zero_layout.load(self._engine, self._stage, self.ranks, read, optimizer_steps)


@contextlib.contextmanager
def partitioned_construction(config: dict[str, Any], ranks: Ranks) -> Iterator[None]:
    """Construct modules under ZeRO-3 so that no rank ever holds one of them whole. Collective.

    Each submodule is made as always, on the host and in fp32, so that it draws the random weights
    that it draws under every other stage; the moment it is made, its weights are rounded to the
    run's precision, moved to the device, and cut to this rank's part (Rajbhandari et al. 2020).
    A rank holds its part of the model and one submodule's own weights at a time.
    config: as given to `Engine`. Without effect at stages 0 to 2.
    """
    if config["zero_optimization"]["stage"] < 3:
        yield
        return
    deepspeed = _import_deepspeed(ranks)
    _prepare(deepspeed, config, ranks)
    deepspeed.init_distributed(dist_init_required=False, verbose=False)
    # Without overrides: DeepSpeed's own would have weights drawn in 16 bit, on the device.
    construction = deepspeed.zero.Init(config_dict_or_path=config, tensor_overrides=[])
    partition = construction._post_init_method

    def round_and_partition(module: nn.Module) -> None:
        for parameter in module.parameters(recurse=False):
            if not hasattr(parameter, "ds_id"):
                parameter.data = parameter.data.to(construction.dtype)
        partition(module)

    construction._post_init_method = round_and_partition
    with construction:
        yield


def _initialize(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: dict[str, Any],
    ranks: Ranks,
    gathered_whole: Collection[type[nn.Module]],
) -> Any:
    deepspeed = _import_deepspeed(ranks)
    if gathered_whole and config["zero_optimization"]["stage"] == 3:
        deepspeed.utils.set_z3_leaf_modules(module, list(gathered_whole))
    if not any(hasattr(parameter, "ds_id") for parameter in module.parameters()):
        _prepare(deepspeed, config, ranks)
    engine, *_ = deepspeed.initialize(
        model=module, optimizer=optimizer, config=config, dist_init_required=False
    )
    return engine


def _prepare(deepspeed: Any, config: dict[str, Any], ranks: Ranks) -> None:
    """Make way for an engine, in a process that may have had another. Collective with NVMe."""
    # DeepSpeed keeps hpZ's group in a global, and takes it for every engine that follows.
    deepspeed.utils.groups._ZERO_PARAM_INTRA_PARALLEL_GROUP = None
    places = config["zero_optimization"].get("offload_optimizer", {})
    if places.get("device") == "nvme":
        zero_swap.build_async_io(lambda: deepspeed.ops.op_builder.AsyncIOBuilder().load(), ranks)
        zero_swap.clear_away(places["nvme_path"], ranks)


def _import_deepspeed(ranks: Ranks) -> Any:
    os.environ["DS_ACCELERATOR"] = ranks.device.type
    os.environ.setdefault("LOCAL_RANK", str(ranks.local_rank))  # asserted by DeepSpeed
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    import deepspeed
    from deepspeed.utils import logger

    _skip_compiler(deepspeed.runtime.compiler)
    logger.setLevel(logging.WARNING)
    logger.addFilter(_is_news)
    # DeepSpeed calls collectives by names that torch 2.13 renames: nothing a user can mend.
    warnings.filterwarnings("ignore", r".*torch\.distributed\.\w+` is deprecated", FutureWarning)
    # The shared-memory collective compiles C++ for a minute on first use: plain gloo instead.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _skip_compiler(compiler: Any) -> None:
    """Import DeepSpeed's own Muon uncompiled: every engine loads it, for a second; ours never."""
    kept = compiler.compile
    compiler.compile = lambda *_, **__: lambda function: function
    try:
        with contextlib.suppress(ImportError):  # then it has gone, and costs nothing
            importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    finally:
        compiler.compile = kept


def _is_news(record: logging.LogRecord) -> bool:
    return "untested optimizer" not in record.getMessage()  # ours is: runtime.selftest


@contextlib.contextmanager
def _gathered(parameter: nn.Parameter) -> Iterator[None]:
    if not hasattr(parameter, "ds_id"):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter]):
        yield
