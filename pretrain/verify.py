"""Every byte of the training data is hashed before the first step, once for a run and its data."""

from collections.abc import Callable
from pathlib import Path

import orjson

from data_prep.verify import verify_directory
from pretrain.config import PretrainConfig
from runtime.errors import EXIT_BAD_INPUT, UserError

RECORD = "verified_data.json"


def verify_data(config: PretrainConfig, beat: Callable[[], None]) -> None:
    """Hash all shards, unless this run did and no file has changed since. Raises UserError.

    beat: called after each file.
    """
    if not config.data.verify:
        return
    record = config.run_dir / RECORD
    paths = sorted({config.data.valid_path, *(source.path for source in config.data.sources)})
    state = {path: _file_state(Path(path)) for path in paths}
    if record.exists() and record.read_bytes() == orjson.dumps(state):
        return
    for path in paths:
        print(f"verifying {path} …", flush=True)
        problems = verify_directory(Path(path), beat)
        if problems:
            raise UserError(
                f"{problems[0]}, or restore the file",
                status=EXIT_BAD_INPUT,
            )
    record.write_bytes(orjson.dumps(state))


def _file_state(directory: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file: cheap, and different after any ordinary change."""
    # Hidden files are data_prep's own: its lock changes whenever it looks.
    names = sorted(path for path in directory.iterdir() if path.is_file())
    files = [path for path in names if not path.name.startswith(".")]
    return {p.name: (p.stat().st_size, p.stat().st_mtime_ns) for p in files}
