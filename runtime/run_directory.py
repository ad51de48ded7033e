"""The directory of a run: what is written when it starts, and where it goes on."""

from pathlib import Path

import orjson
import pydantic

from runtime import dist, provenance
from runtime.checkpoint import CheckpointInfo, list_checkpoints, verify
from runtime.checkpoint.commit import sweep
from runtime.checkpoint.format import checkpoints_in, newest_of
from runtime.config import to_yaml
from runtime.dist import Ranks
from runtime.errors import UserError


def prepare_run_directory(run_dir: Path, config: pydantic.BaseModel) -> None:
    """Make the directory and store what the run is made of. Collective; the main rank writes."""

    def write() -> None:
        (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
        sweep(run_dir / "checkpoints")
        (run_dir / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
        versions = orjson.dumps(provenance.versions(), option=orjson.OPT_INDENT_2)
        (run_dir / "versions.json").write_bytes(versions)

    dist.together(write, only_main=True)


def newest_checkpoint(root: Path, ranks: Ranks) -> CheckpointInfo | None:
    """The newest whole checkpoint, the same on all ranks. Collective.

    Every byte is read and hashed, by all ranks together. Raises UserError where there are
    checkpoints and none is whole.
    """
    root = checkpoints_in(root)
    candidates = list_checkpoints(root)
    seen = dist.gather_text(orjson.dumps([info.step for info in candidates]).decode())
    if len(set(seen)) > 1:
        raise UserError(
            f"{root}: ranks see different checkpoints here; all must see one run.dir (a shared "
            "file system)"
        )

    def problems_of(checkpoint: Path) -> list[str]:
        own = verify(checkpoint, ranks.rank, ranks.world_size)
        found = (orjson.loads(text) for text in dist.gather_text(orjson.dumps(own).decode()))
        return [problem for problems in found for problem in problems]

    return newest_of(root, candidates, problems_of, print if ranks.is_main else lambda _: None)
