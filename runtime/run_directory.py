"""The directory of a run: what is written when it starts, and where it goes on."""

from pathlib import Path

import orjson
import pydantic

from runtime import dist, provenance
from runtime.checkpoint import CheckpointInfo, list_checkpoints, newest_verified
from runtime.config import to_yaml
from runtime.dist import Ranks
from runtime.errors import UserError


def prepare_run_directory(run_dir: Path, config: pydantic.BaseModel) -> None:
    """Make the directory and store what the run is made of. Collective; the main rank writes."""

    def write() -> None:
        (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
        (run_dir / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
        versions = orjson.dumps(provenance.versions(), option=orjson.OPT_INDENT_2)
        (run_dir / "versions.json").write_bytes(versions)

    dist.together(write, only_main=True)


def newest_checkpoint(root: Path, ranks: Ranks) -> CheckpointInfo | None:
    """The newest whole checkpoint, which the main rank verifies; the same on all. Collective."""
    step, error = "", None
    if ranks.is_main:
        try:
            found = newest_verified(root)
            step = str(found.step) if found else ""
        except UserError as problem:
            error = str(problem)
    dist.raise_together(error)
    step = dist.gather_text(step)[0]
    mine = next((info for info in list_checkpoints(root) if str(info.step) == step), None)
    missing = bool(step) and mine is None
    dist.raise_together(
        f"{root}: step {step} is not here; all ranks must see one run.dir (a shared file system)"
        if missing
        else None
    )
    return mine
