"""The model under DeepSpeed's ZeRO, with the face of `finetune.devices.Replicas`."""

from collections.abc import Sequence
from typing import Any

import torch

from finetune.devices import Counted, Objective, StepResult, plain
from model.heads import Model
from runtime.checkpoint.reader import TrainingState
from runtime.deepspeed_config import deepspeed_config
from runtime.dist import Ranks
from runtime.engine import Engine
from runtime.errors import EXIT_BAD_INPUT, UserError
from runtime.optim import build_optimizer
from runtime.sections import Optim, Parallel
from runtime.zero_layout import MASTER


class Sharded:
    """One model, its optimizer (and from stage 2 and 3 on its gradients and weights) cut by rank.

    micro_batches: of a whole step on each rank; where a last, smaller step has fewer, all ranks
    still go through as many, for gradients are summed over the ranks after each. With bf16 the
    weights are rounded, and the fp32 masters start from those that were loaded.
    """

    def __init__(
        self,
        net: Model,
        optim: Optim,
        ranks: Ranks,
        precision: str,
        *,
        parallel: Parallel,
        groups: list[dict[str, Any]],
        micro_batches: int,
        micro_batch_size: int,
        objective: Objective = plain,
    ) -> None:
        if parallel.zero_stage == 0 and precision == "bf16":
            raise UserError(
                "parallel.zero_stage: 0 is computed wrongly in bf16 by DeepSpeed; write 1, or "
                "none, or precision: fp32",
                status=EXIT_BAD_INPUT,
            )
        self.ranks, self.objective, self.module = ranks, objective, net
        sizes = [p.numel() for p in net.parameters()]
        settings = deepspeed_config(
            parallel,
            "bf16" if precision == "bf16" else "fp32",
            micro_batch_size=micro_batch_size,
            accumulation_steps=micro_batches,
            world_size=ranks.world_size,
            max_grad_norm=optim.max_grad_norm,
            device_type=ranks.device.type,
            largest_parameter=max(sizes),
            parameters=sum(sizes),
        )
        # The engine rounds the weights before it copies them into its masters.
        masters = {
            name: p.detach().to("cpu", torch.float32, copy=True).flatten()
            for name, p in net.named_parameters()
            if p.requires_grad
        }
        net.to(ranks.device)
        self.optimizer = build_optimizer(groups, optim)
        self.engine = Engine(net, self.optimizer, settings, ranks)
        self._start_from(masters)

    @property
    def forward(self) -> Any:
        """What computes a pass, as a module; all ranks must call it alike."""
        return self.engine.forward

    def _start_from(self, masters: dict[str, torch.Tensor]) -> None:
        def read(name: str, _key: str, start: int, numel: int) -> torch.Tensor:
            return masters[name][start : start + numel]

        self.engine.load_optimizer_slices(read, 0)

    def train_step(self, micro_batches: Sequence[Counted], total: int, lr: float) -> StepResult:
        """As `Replicas.train_step`. Collective."""
        self.module.train()
        missing = self.engine.accumulation_steps - len(micro_batches)

        def share(net: torch.nn.Module, counted: Counted) -> torch.Tensor:
            return self.objective(net, self.module, counted[0]) * (counted[1] / total)

        result = self.engine.train_step(
            [*micro_batches, *[_idle(micro_batches)] * missing], share, lr
        )
        return StepResult(result.loss, float(result.grad_norm))

    def load(self, state: TrainingState) -> None:
        """Go on with the moments of a checkpoint, whichever engine wrote it. Collective.

        The weights are those that the model was loaded with, unless there are fp32 masters.
        """
        has_masters = state.holds(MASTER)
        own: dict[Any, torch.Tensor] = {} if has_masters else dict(self._masters())

        def read(name: str, key: str, start: int, numel: int) -> torch.Tensor:
            if key == MASTER and not has_masters:
                return own[name, start][:numel]
            return state.read(name, key, start, numel)

        self.engine.load_optimizer_slices(read, state.values["optimizer_steps"])

    def _masters(self) -> Any:
        """This rank's masters, by parameter and where they start."""
        for piece in self.engine.optimizer_slices():
            if piece.key == MASTER:
                yield (piece.parameter, piece.start), piece.tensor.detach().clone()


def _idle(micro_batches: Sequence[Counted]) -> Counted:
    """A batch that counts nothing: one that is there, whole, for packed texts have no first row."""
    return micro_batches[-1][0], 0
