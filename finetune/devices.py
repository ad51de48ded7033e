"""The model on its device, on every rank alike. The only file that imports accelerate."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from finetune import checkpoint
from model.heads import Model
from model.init import parameter_groups
from runtime import dist
from runtime.checkpoint.reader import TrainingState
from runtime.dist import Ranks
from runtime.engine import Engine
from runtime.optim import build_optimizer
from runtime.sections import Optim

Batch = dict[str, Tensor]
Counted = tuple[Batch, int]  # a micro-batch, and how many of its labels count in the loss
# The mean loss over the counted labels of a batch, from: what computes the passes that are learned
# from, the bare model for looks ahead without learning, and the batch. One backward pass follows.
Objective = Callable[[Callable[..., Any], Model, Batch], Tensor]


class StepResult(NamedTuple):
    """What one optimizer step measured."""

    loss: float  # mean over the counted labels of all ranks
    grad_norm: float  # global, before clipping


def plain(forward: Callable[..., Any], module: Model, batch: Batch) -> Tensor:
    """The model's own loss."""
    loss: Tensor = forward(**batch).loss
    return loss


class Replicas:
    """One copy of the model per rank, kept equal by summing the gradients of all.

    groups: of the optimizer; None = those of the model's parameters that are trained.
    """

    engine: Engine | None = None  # no rank holds anything that another lacks

    def __init__(
        self,
        net: Model,
        optim: Optim,
        ranks: Ranks,
        precision: str,
        *,
        groups: list[dict[str, Any]] | None = None,
        objective: Objective = plain,
    ) -> None:
        # Accelerate sets the threads of a CPU run itself, unless the environment has a number.
        os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
        self._accelerator = Accelerator(
            cpu=ranks.device.type == "cpu",
            mixed_precision="bf16" if precision == "bf16" else "no",
        )
        self.ranks = ranks
        self.objective = objective
        self.module = net.to(ranks.device)
        if groups is None:
            groups = parameter_groups(net, optim.weight_decay, muon=optim.name == "muon")
        self.optimizer = build_optimizer(groups, optim)
        self._max_grad_norm = optim.max_grad_norm or float("inf")
        self._model = self._accelerator.prepare(net)

    @property
    def forward(self) -> Model:
        """What computes a pass."""
        return self.module

    def load(self, state: TrainingState) -> None:
        """Go on with the moments of a checkpoint, whichever engine wrote it."""
        checkpoint.load_optimizer(self.module, self.optimizer, state)

    def train_step(self, micro_batches: Sequence[Counted], total: int, lr: float) -> StepResult:
        """Step on the mean loss over the `total` labels that all ranks count together. Collective.

        Every label weighs the same, however unequal the micro-batches are (averaging their means
        is transformers#34191). Each rank needs a micro-batch; it may count nothing.
        lr: of groups without an `lr_scale`; a group with one takes that multiple of it.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        if not self._model.training:  # walking through all modules takes a while
            self._model.train()
        own_loss = 0.0
        for number, (batch, counted) in enumerate(micro_batches, start=1):
            with self._synchronised_if(number == len(micro_batches)):
                mean = self.objective(self._model, self.module, batch)
                loss = mean * (counted / total)
                # The gradients of the ranks are averaged, and a sum is wanted.
                self._accelerator.backward(loss * self.ranks.world_size)
            own_loss += float(loss.detach())
        norm = self._clip()
        # Not through accelerate, whose own step only asks what is known here: nothing is scaled,
        # and all gradients are there.
        self.optimizer.step()
        self.optimizer.zero_grad()
        (mean_loss,) = dist.sum_over_ranks([own_loss])
        return StepResult(mean_loss, norm)

    def _clip(self) -> float:
        """Scale the gradients down to the greatest norm where theirs is more; returns theirs.

        As torch's clip_grad_norm_, which multiplies by 1 elsewhere: a pass over all gradients.
        """
        learned = [p for p in self.module.parameters() if p.grad is not None]
        norm = get_total_norm([p.grad for p in learned if p.grad is not None])
        value = float(norm)
        if value > self._max_grad_norm:
            clip_grads_with_norm_(learned, self._max_grad_norm, norm)
        return value

    @contextlib.contextmanager
    def _synchronised_if(self, is_last: bool) -> Iterator[None]:
        """Exchange gradients with the other ranks once per step, at its last micro-batch."""
        with contextlib.nullcontext() if is_last else self._accelerator.no_sync(self._model):
            yield


def resolve_precision(precision: str, device: torch.device) -> str:
    """`auto` → bf16 on a GPU that computes in it, else fp32."""
    if precision != "auto":
        return precision
    is_native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if is_native else "fp32"


def to_device(arrays: Mapping[str, object], device: torch.device) -> Batch:
    """NumPy arrays → tensors on the device."""
    return {
        name: torch.as_tensor(array).to(device, non_blocking=True) for name, array in arrays.items()
    }
