"""Runs that differ by a few overrides: a list of them, and what a task of an array changes."""

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from launch.cluster import training
from runtime.config import read_value
from runtime.errors import EXIT_BAD_INPUT, UserError

MAX_BYTES = 1 << 20
_LIST = re.compile(r"([\w.]+)=(\[.*\])", re.DOTALL)


def read(given: str) -> list[list[str]]:
    """The overrides of each run: of a file, a run a line, or of `key=[value, …]`.

    Lines are words as a shell splits them; comments stand after `#`. Raises UserError.
    """
    found = _LIST.fullmatch(given)
    if found:
        values = read_value(found[2], f"--sweep {found[1]}")
        # JSON is YAML, and keeps a word such as "1e3" a word.
        return [[f"{found[1]}={json.dumps(v, ensure_ascii=False)}"] for v in values]
    try:
        with Path(given).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        text = data.decode()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "not UTF-8 text"
        raise _refused(f"{given[:200]}: {why}; give a file, or key=[value, …]") from error
    if len(data) > MAX_BYTES:
        raise _refused(f"{given}: larger than {MAX_BYTES} bytes")
    runs = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise _refused(f"{given}:{number}: {error}") from error
        wrong = [word for word in words if "=" not in word]
        if wrong:
            raise _refused(f"{given}:{number}: expected key=value, got {wrong[0][:80]!r}")
        runs += [words] if words else []
    if not runs:
        raise _refused(f"{given}: no runs; write the overrides of each on a line")
    return runs


def of_task(
    stage: str, path: Path | None, overrides: Sequence[str], task: int, given: str | None
) -> list[str]:
    """What a task changes: its line of the sweep, or its seed, and its own name and directory.

    Raises UserError, also where a changed key is wrong.
    """
    if given is None:
        seed = training.read_config(stage, path, overrides).run.seed
        changes = [f"run.seed={seed + task}"]
    else:
        runs = read(given)
        if task >= len(runs):
            raise _refused(f"{given}: {len(runs)} runs, and none of them is number {task}")
        changes = runs[task]
    run = training.read_config(stage, path, [*overrides, *changes]).run
    keys = {change.partition("=")[0].lstrip("-") for change in changes}
    if "run.name" not in keys:
        changes = [*changes, f"run.name={json.dumps(f'{run.name}-{task}')}"]
    if "run.dir" not in keys and "{name}" not in run.dir:
        changes = [*changes, f"run.dir={json.dumps(f'{run.dir}-{task}', ensure_ascii=False)}"]
    return changes


def _refused(message: str) -> UserError:
    return UserError(message, status=EXIT_BAD_INPUT)
