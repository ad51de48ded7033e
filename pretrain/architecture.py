"""Whether a config goes on with the run that its directory holds. Torch-free."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from model.config import LABEL_KEYS, ModelConfig
from model.hf import CheckpointError, read_config
from pretrain.branch import BRANCH_FROM, branch_point
from runtime.checkpoint import CheckpointInfo
from runtime.checkpoint.format import TRAINING, list_checkpoints, read_json
from runtime.config import Problem
from runtime.errors import EXIT_BAD_INPUT, UserError

if TYPE_CHECKING:
    from data_prep.order import Order
    from pretrain.config import PretrainConfig


def check_architecture(
    wanted: ModelConfig, checkpoint: CheckpointInfo, key: str = "run.dir"
) -> None:
    """Raise UserError, with the differences, for a checkpoint of another model.

    key: that which named the checkpoint.
    """
    try:
        stored = read_config(checkpoint.path).model_dump()
    except CheckpointError as error:
        raise UserError(
            f"{error}; restore the file, or choose another {key}", status=EXIT_BAD_INPUT
        ) from None
    # What a checkpoint does not say, or what may change from one stretch of a run to the next.
    free = {"dropout", "init_std", "mup_base_width", "pad_token_id", *LABEL_KEYS}
    free.add("vocab_multiple")  # compared with the run's own config, once that is read
    different = [k for k, v in wanted.model_dump().items() if k not in free and stored[k] != v]
    if different:
        listed = ", ".join(f"model.{k}: {stored[k]} → {getattr(wanted, k)}" for k in different)
        raise UserError(
            f"{checkpoint.path} is of another architecture ({listed}); "
            f"restore the config, or choose another {key}",
            status=EXIT_BAD_INPUT,
        )


def check_vocab_multiple(wanted: ModelConfig, stored: dict[str, Any], key: str = "run.dir") -> None:
    """Raise UserError where the rows in memory were others. stored: the checkpoint's config."""
    multiple = stored["model"].get("vocab_multiple") or 1
    if multiple != wanted.vocab_multiple:
        raise UserError(
            f"model.vocab_multiple: got {wanted.vocab_multiple}, expected {multiple}, with which"
            f" the run was started; restore it, or choose another {key}",
            status=EXIT_BAD_INPUT,
        )


def newest_step(config: "PretrainConfig") -> int | None:
    """The step that the run would go on from; None for a new run."""
    committed = list_checkpoints(config.run_dir / "checkpoints")
    return committed[-1].step if committed else None


def check_resume(
    config: "PretrainConfig", model: ModelConfig, order: "Order | None"
) -> Iterator[Problem]:
    """What would stop a run from going on from its checkpoint, before it is verified.

    That is its newest, or else the one that it branches from.
    """
    committed = list_checkpoints(config.run_dir / "checkpoints")
    newest, key = (committed[-1], "run.dir") if committed else (branch_point(config), BRANCH_FROM)
    if newest is None:
        return
    try:
        check_architecture(model, newest, key)
        state = read_json(newest.path / TRAINING / "state.json")
        check_vocab_multiple(model, state["config"], key)
        if order is not None:
            order.go_on(state["loader"], state["loader"]["step"])
    except UserError as error:
        yield Problem(key, str(error))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return  # damaged: the run itself looks for one that is whole
