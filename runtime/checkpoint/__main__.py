"""`python -m runtime.checkpoint list|verify|prune|export DIR`. Torch-free, but for the export."""

import argparse
import sys
from pathlib import Path
from time import localtime, strftime
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from runtime.checkpoint.format import (
    MANIFEST,
    TRAINING,
    CheckpointInfo,
    checkpoints_in,
    list_checkpoints,
    read_json,
    size_of,
    step_of,
    verify,
)
from runtime.checkpoint.retention import delete, to_delete
from runtime.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_OK, UserError, command

_DIR = "a run directory, its folder of checkpoints, or one checkpoint"


@command
def main(argv: list[str] | None = None) -> int:
    """Run one command. Exit status: 0 good, 1 something is damaged, 2 a mistake in the command."""
    parser = argparse.ArgumentParser(
        prog="python -m runtime.checkpoint", description="Look at checkpoints."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="what there is; reads no weights")
    check = commands.add_parser("verify", help="read and hash every byte, name all that is wrong")
    prune = commands.add_parser("prune", help="delete old checkpoints; two whole ones always stay")
    for parsed in (listing, check, prune):
        parsed.add_argument("directory", metavar="DIR", type=Path, help=_DIR)
    prune.add_argument(
        "--keep-last", type=int, required=True, metavar="N", help="newest checkpoints kept, ≥ 2"
    )
    prune.add_argument(
        "--keep-every", type=int, default=0, metavar="N", help="also keep multiples of N (0: none)"
    )
    prune.add_argument("--dry-run", action="store_true", help="say what would go, delete nothing")
    export = commands.add_parser("export", help="fp32 weights, as zero_to_fp32 gives them")
    export.add_argument("directory", metavar="DIR", type=Path, help=f"{_DIR}: the newest is taken")
    export.add_argument("destination", metavar="OUT", type=Path, help="the new directory to write")
    options = parser.parse_args(argv)
    if not options.directory.is_dir():
        raise UserError(f"{options.directory}: no such directory", status=EXIT_BAD_INPUT)
    if options.command == "prune":
        return _prune(options.directory, options.keep_last, options.keep_every, options.dry_run)
    found = _find(options.directory)
    if options.command == "export":
        return _export(found[-1].path, options.destination)
    return _list(found) if options.command == "list" else _verify(found)


def _find(directory: Path) -> list[CheckpointInfo]:
    step = step_of(directory.absolute())
    if step is not None:
        return [CheckpointInfo(step, directory)]
    found = list_checkpoints(checkpoints_in(directory))
    if not found:
        raise UserError(f"{directory}: no checkpoint (step_…); name {_DIR}", status=EXIT_BAD_INPUT)
    return found


class _Facts(NamedTuple):
    """What a checkpoint says of itself; None where it cannot be read."""

    size: int | None  # bytes
    saved: float | None  # seconds since the epoch
    state: dict[str, Any]

    def config(self, section: str, key: str) -> Any:
        """A setting of the run that wrote it."""
        inner = self.state.get("config", {})
        for name in (section, key):
            inner = inner.get(name) if isinstance(inner, dict) else None
        return inner


def _facts(info: CheckpointInfo) -> _Facts:
    size = size_of(info.path)
    saved = None if size is None else (info.path / MANIFEST).stat().st_mtime
    try:
        state = read_json(info.path / TRAINING / "state.json")
    except (OSError, ValueError):
        state = {}
    return _Facts(size, saved, state)


def _list(found: list[CheckpointInfo]) -> int:
    facts = [_facts(info) for info in found]
    keep_every = facts[-1].config("checkpoint", "keep_every")
    table = Table(box=None, pad_edge=False)
    for title in ("step", "size", "saved", "tokens seen", "ranks", "ZeRO", "kept"):
        table.add_column(title, justify="right" if title != "kept" else "left")
    for info, fact in zip(found, facts, strict=True):
        is_pinned = isinstance(keep_every, int) and keep_every and info.step % keep_every == 0
        tokens, ranks = fact.state.get("tokens_seen"), fact.state.get("world_size")
        stage = fact.config("parallel", "zero_stage")
        table.add_row(
            f"{info.step:,}",
            "damaged" if fact.size is None else f"{fact.size / 1e6:,.1f} MB",
            "" if fact.saved is None else strftime("%Y-%m-%d %H:%M:%S", localtime(fact.saved)),
            f"{tokens:,}" if isinstance(tokens, int) else "",
            *(str(value) if isinstance(value, int) else "" for value in (ranks, stage)),
            f"keep_every {keep_every:,}" if is_pinned else "",
        )
    # Rows are wanted whole in a file or a pipe, which have no width.
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    return EXIT_FAILED if any(fact.size is None for fact in facts) else EXIT_OK


def _verify(found: list[CheckpointInfo]) -> int:
    status = EXIT_OK
    for info in found:
        problems = verify(info.path)
        print("\n".join(problems) if problems else f"{info.path}: whole", flush=True)
        status = EXIT_FAILED if problems else status
    return status


def _prune(directory: Path, keep_last: int, keep_every: int, is_dry: bool) -> int:
    if keep_last < 2 or keep_every < 0:
        raise UserError(
            f"--keep-last {keep_last} --keep-every {keep_every}: expected at least 2 and 0; with"
            " one checkpoint, damage to it would lose the run",
            status=EXIT_BAD_INPUT,
        )
    if step_of(directory.absolute()) is not None:
        raise UserError(
            f"{directory}: one checkpoint; name the folder that it is in", status=EXIT_BAD_INPUT
        )
    root = checkpoints_in(directory)
    found = _find(directory)
    surplus = to_delete(root, keep_last, keep_every)
    for info in surplus:
        if not is_dry:
            delete(info)
        print(f"{'would delete' if is_dry else 'deleted'} {info.path}")
    print(f"{len(found) - len(surplus)} of {len(found)} checkpoints stay")
    return EXIT_OK


def _export(checkpoint: Path, destination: Path) -> int:
    from runtime.checkpoint.export import export

    found = export(checkpoint, destination)
    print(
        f"{destination}: {found.tensors} tensors in {found.files} files, {found.bytes / 1e9:.3f} GB"
    )
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
