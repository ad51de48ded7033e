"""data_order.json of a run directory: which data its steps are made of. Torch-free.

The trainer writes it at every start and roll-back. It is the loader's state with the stages to come
and the directories of the sources, so that it answers for every step of the run as it stands.
"""

from pathlib import Path
from typing import Any

import orjson

from data_prep.atomic import write_atomic
from data_prep.order import Mixing, Order, upgraded
from data_prep.samples import Layout
from data_prep.shards import Shards
from data_prep.skipping import SkippedSteps
from runtime.checkpoint.format import TRAINING, list_checkpoints, read_json
from runtime.errors import EXIT_BAD_INPUT, UserError

NAME = "data_order.json"
_STATE = "state.json"


def write_order(run_dir: Path, planned: dict[str, Any]) -> None:
    """Store what `Loader.planned` gave; replaces the file atomically."""
    write_atomic(run_dir / NAME, orjson.dumps(planned, option=orjson.OPT_INDENT_2) + b"\n")


def read_order(run_dir: Path) -> tuple[Order, SkippedSteps]:
    """The order of a run's data and the data steps it leaves out.

    A run of a version that wrote no such file is answered for by its newest checkpoint. Raises
    UserError where there is neither, and for data that has changed since.
    """
    path = run_dir / NAME
    try:
        stored = read_json(path) if path.exists() else _of_checkpoint(run_dir)
        return _built(upgraded(stored))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{path}: not as this version writes it ({what})") from error


def _of_checkpoint(run_dir: Path) -> dict[str, Any]:
    checkpoints = list_checkpoints(run_dir / "checkpoints")
    if not checkpoints:
        raise UserError(
            f"{run_dir} has no {NAME} and no checkpoint: it is not a directory of a pretraining "
            "run, or nothing was trained there yet",
            status=EXIT_BAD_INPUT,
        )
    state = read_json(checkpoints[-1].path / TRAINING / _STATE)
    train = state["config"]["data"]["train"]
    sources = [train] if isinstance(train, str) else [source["path"] for source in train]
    return {**state["loader"], "sources": sources}


def _built(stored: dict[str, Any]) -> tuple[Order, SkippedSteps]:
    split = stored["split"]
    shards = [Shards(source, split) for source in stored["sources"]]
    for own, fingerprint in zip(shards, stored["fingerprints"], strict=True):
        if own.fingerprint != fingerprint:
            raise UserError(
                f"{own.directory} has changed since the run was trained on it (fingerprint "
                f"{own.fingerprint[:12]}…, then {fingerprint[:12]}…); restore it"
            )
    layout = Layout(
        stored["packing"],
        stored["seq_len"],
        overhead=stored["overhead"],
        drops_eod=stored["drops_eod"],
    )
    mixing = Mixing((1.0,) * len(shards), (None,) * len(shards))  # the state's own follows
    batch, seed, ramp = stored["global_batch_size"], stored["seed"], stored["ramp"]
    order = Order(shards, layout, mixing, global_batch_size=batch, seed=seed, ramp=ramp)
    order.take_up(stored)
    return order, SkippedSteps.from_json(stored["skipped"])
