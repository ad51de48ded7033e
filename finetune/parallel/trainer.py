"""What trains a run's model: replicas, or ZeRO, as the config says."""

from typing import Any

from torch import Tensor

from finetune.config import FinetuneConfig
from finetune.devices import Objective, Replicas
from finetune.parallel.sharded import Sharded
from model.heads import Model
from model.transformer import Transformer
from runtime.dist import Ranks
from runtime.errors import EXIT_BAD_INPUT, UserError

Trainer = Replicas | Sharded


def build_trainer(
    net: Model,
    config: FinetuneConfig,
    ranks: Ranks,
    precision: str,
    groups: list[dict[str, Any]],
    objective: Objective,
) -> Trainer:
    """Put a model under its engine; groups: of the optimizer. Collective. Raises UserError."""
    _set_recompute(net, config)
    zero = config.parallel.zero
    if zero is None:
        return Replicas(net, config.optim, ranks, precision, groups=groups, objective=objective)
    size = config.micro_batch_size(ranks.world_size)
    pieces = -(-config.batch.global_batch_size // size)
    return Sharded(
        net,
        config.optim,
        ranks,
        precision,
        parallel=zero,
        groups=groups,
        micro_batches=-(-pieces // ranks.world_size),
        micro_batch_size=size,
        objective=objective,
    )


def _set_recompute(net: Model, config: FinetuneConfig) -> None:
    part = config.parallel.activation_checkpointing
    if part == "none":
        return
    trunk = getattr(net, "trunk", None)
    if not isinstance(trunk, Transformer):
        raise UserError(
            "parallel.activation_checkpointing: is not there for this kind of model; write none",
            status=EXIT_BAD_INPUT,
        )
    trunk.set_recompute(part)


def numel(parameter: Tensor) -> int:
    """Elements of a whole parameter; ZeRO-3 leaves it empty between its uses."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))
