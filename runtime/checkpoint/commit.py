"""The commit protocol on one disk: files, then the manifest, then one rename. Torch-free."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import orjson

from runtime.checkpoint.format import (
    LATEST,
    MANIFEST,
    SCHEMA,
    TRAINING,
    fsync_path,
    hash_file,
    step_dir,
    temporary_dir,
)
from runtime.checkpoint.hashed import HashedFile

Entries = dict[str, dict[str, Any]]  # file name in the checkpoint → size and sha256
_REPLACED = ".replaced_"


class Attempt:
    """One attempt to save a step: the hidden directory, and what this rank wrote into it."""

    def __init__(
        self, root: Path, step: int, progress: Callable[[int], None] = lambda _: None
    ) -> None:
        self.step = step
        self.directory = temporary_dir(root, step)
        self.entries: Entries = {}
        self._final = step_dir(root, step)
        self._progress = progress

    def begin(self) -> None:
        """Make the directory, in place of one that a crash left. Main rank."""
        self.discard()
        (self.directory / TRAINING).mkdir(parents=True)

    def discard(self) -> None:
        """Remove what was written, as far as it lets itself be removed."""
        shutil.rmtree(self.directory, ignore_errors=True)

    @contextmanager
    def create(self, path: Path) -> Iterator[HashedFile]:
        """Open a file of the checkpoint; it is on disk, and its hash known, when the context ends.

        path: inside `directory`.
        """
        file = HashedFile(path, self._progress)
        try:
            yield file
            file.sync()
        except OSError as error:
            error.filename = error.filename or str(path)  # writing to an open file names none
            raise
        finally:
            file.close()
        name = path.relative_to(self.directory).as_posix()
        self.entries[name] = {"size": file.size, "sha256": file.sha256()}

    def commit(self, files: Entries) -> None:
        """Make the directory a checkpoint. A crash leaves the previous state or the new one.

        files: what all ranks wrote with `create`. Other files, which are few and small, are hashed
        here. Main rank.
        """
        there = files_in(self.directory)
        if missing := files.keys() - there:
            raise FileNotFoundError(
                f"{self.directory}: {min(missing)} was written but is not here; all ranks must see "
                "one run.dir (a shared file system)"
            )
        rest = seal(self.directory, [name for name in there if name not in files])
        manifest = {"schema": SCHEMA, "step": self.step, "files": files | rest}
        with self.create(self.directory / MANIFEST) as file:
            file.write(orjson.dumps(manifest, option=orjson.OPT_INDENT_2))
        for path in (self.directory / TRAINING, self.directory):
            fsync_path(path)
        replaced = self._final.with_name(f"{_REPLACED}{self._final.name}")
        if self._final.exists():  # of the same step, before the run went back
            shutil.rmtree(replaced, ignore_errors=True)
            self._final.rename(replaced)
        self.directory.rename(self._final)
        fsync_path(self._final.parent)
        shutil.rmtree(replaced, ignore_errors=True)
        with suppress(OSError):  # for people alone
            hint = self._final.parent / f".{LATEST}.tmp"
            hint.write_text(f"{self._final.name}\n")
            hint.replace(self._final.parent / LATEST)


def files_in(directory: Path) -> list[str]:
    """The names of all files below a directory, as the manifest writes them."""
    paths = (path for path in directory.rglob("*") if path.is_file())
    return sorted(path.relative_to(directory).as_posix() for path in paths)


def seal(directory: Path, names: list[str]) -> Entries:
    """Force files to the disk, and return their manifest entries."""
    entries: Entries = {}
    for name in names:
        path = directory / name
        fsync_path(path)
        entries[name] = {"size": path.stat().st_size, "sha256": hash_file(path)}
    return entries


def sweep(root: Path) -> None:
    """Put away what a process that was killed left behind. Main rank, no save in flight."""
    for replaced in root.glob(f"{_REPLACED}step_*"):
        # Killed between the two renames: the earlier save of the step is the one there is.
        final = root / replaced.name.removeprefix(_REPLACED)
        if not final.exists():
            replaced.rename(final)
    for leftover in (".old_step_*", ".tmp_step_*", f"{_REPLACED}step_*"):
        for path in root.glob(leftover):
            shutil.rmtree(path, ignore_errors=True)
