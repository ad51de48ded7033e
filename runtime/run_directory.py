"""The directory of a run: what is written when it starts, and where it goes on."""

import fcntl
import hashlib
import os
from pathlib import Path

import orjson
import pydantic

from runtime import dist, provenance
from runtime.checkpoint import CheckpointInfo, list_checkpoints, verify
from runtime.checkpoint.commit import sweep
from runtime.checkpoint.format import checkpoints_in, newest_of, step_dir
from runtime.config import to_yaml
from runtime.dist import Ranks
from runtime.errors import UserError
from runtime.sections import Parallel


def prepare_run_directory(run_dir: Path) -> None:
    """Make the directory, alone in it, and put away what a killed run left. Collective.

    Raises UserError where another process trains there.
    """

    def prepare() -> None:
        (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
        _lock(run_dir)
        sweep(run_dir / "checkpoints")

    dist.together(prepare, only_main=True)


def _lock(run_dir: Path) -> None:
    """Hold the directory until this process ends: two runs in one would mix their saves."""
    file = (run_dir / ".lock").open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        raise UserError(
            f"{run_dir}: process {file.read().strip() or 'unknown'} is training here; wait for it, "
            "or choose another run.dir"
        ) from error
    except OSError:
        return  # a file system without locks
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    dist.before_shutdown(file.close)


def describe_run(run_dir: Path, config: pydantic.BaseModel) -> None:
    """Store what the run is made of, once it is sure to go on so. Collective."""

    def write() -> None:
        versions = orjson.dumps(provenance.versions(), option=orjson.OPT_INDENT_2)
        documents = {"config.yaml": to_yaml(config).encode(), "versions.json": versions}
        for name, content in documents.items():
            temporary = run_dir / f".{name}.tmp"
            temporary.write_bytes(content)
            temporary.replace(run_dir / name)

    dist.together(write, only_main=True)


def newest_checkpoint(root: Path, ranks: Ranks) -> CheckpointInfo | None:
    """The newest whole checkpoint, the same on all ranks. Collective.

    Every byte is read and hashed, by all ranks together. Raises UserError where there are
    checkpoints and none is whole.
    """
    root = checkpoints_in(root)
    # The main rank's list counts: it alone makes and deletes checkpoints, perhaps just now.
    steps = orjson.loads(
        dist.gather_text(orjson.dumps([info.step for info in list_checkpoints(root)]).decode())[0]
    )
    candidates = [CheckpointInfo(step, step_dir(root, step)) for step in steps]
    missing = [str(info.path) for info in candidates if not info.path.is_dir()]
    dist.raise_together(
        f"{missing[0]}: not to be seen here; all ranks must see one run.dir (a shared file system)"
        if missing
        else None
    )

    def problems_of(checkpoint: Path) -> list[str]:
        return verify_together(checkpoint, ranks)

    return newest_of(root, candidates, problems_of, print if ranks.is_main else lambda _: None)


def verify_together(checkpoint: Path, ranks: Ranks) -> list[str]:
    """What is wrong with a checkpoint, each rank hashing its share of the bytes. Collective."""
    own = verify(checkpoint, ranks.rank, ranks.world_size)
    found = (orjson.loads(text) for text in dist.gather_text(orjson.dumps(own).decode()))
    return [problem for problems in found for problem in problems]


def swap_directory(parallel: Parallel, run_dir: Path) -> str | None:
    """Where ZeRO keeps this run's tensors on disk: two runs on one disk must not share files."""
    if parallel.nvme_path is None:
        return None
    name = hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:16]
    return str(Path(parallel.nvme_path) / f"{run_dir.name}-{name}")
