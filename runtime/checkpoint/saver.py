"""Saving under ZeRO while training goes on: every rank writes its part, one rename commits it."""

import shutil
import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from errno import ENOSPC
from pathlib import Path
from typing import Any, Protocol

import orjson
import torch

from runtime import dist
from runtime.checkpoint.commit import Attempt, Entries, sweep
from runtime.checkpoint.format import (
    ROOM,
    SCHEMA,
    TRAINING,
    CheckpointInfo,
    list_checkpoints,
    size_of,
    verify,
)
from runtime.checkpoint.hashed import HashedFile
from runtime.checkpoint.retention import delete, to_delete
from runtime.checkpoint.slices import write_slices
from runtime.checkpoint.snapshot import HostMemory, Snapshot, Trained
from runtime.dist import Ranks
from runtime.errors import EXIT_IO, UserError
from runtime.sections import Checkpoint

RETRY_PAUSES_S = (1.0, 3.0, 9.0)
GRACE_S = 5.0  # that a run which failed leaves a save in flight


class Export(Protocol):
    """Writes the model's own files, each rank a part of them."""

    def wanted(self) -> Collection[str]:
        """The parameters that this rank's part is made of."""
        ...

    def write(
        self,
        directory: Path,
        parameters: Mapping[str, torch.Tensor],
        create: Callable[[Path], AbstractContextManager[HashedFile]],
    ) -> None:
        """Write this rank's part, large files through `create`. Called in another thread."""
        ...


class _AttemptFailedError(Exception):
    """What any rank met; every rank knows of it."""

    def __init__(self, message: str, *, is_final: bool) -> None:
        super().__init__(message)
        self.is_final = is_final


class _Save:
    """One step's save, from the copy in host memory to the acknowledgement of all ranks."""

    def __init__(self, step: int, snapshot: Snapshot, export: Export, state: bytes) -> None:
        self.step, self.snapshot, self.export, self.state = step, snapshot, export, state
        self.thread: threading.Thread | None = None
        self.error: UserError | None = None


class Saver:
    """Saves a run's checkpoints; at most one is being written. All ranks make one together.

    Protocol of an attempt: every rank writes and fsyncs its files in a temporary directory; hashes
    are gathered; the main rank writes and fsyncs the manifest and the directory, renames it, and
    fsyncs the parent; all ranks are told, and then the save counts. A crash at any point leaves
    either the previous checkpoint or the new one.

    say: tells people a line. beat: called now and then while the caller waits for bytes being
    written, so that a watchdog does not take that for a hang.
    """

    def __init__(
        self,
        root: Path,
        ranks: Ranks,
        settings: Checkpoint,
        *,
        say: Callable[[str], None],
        beat: Callable[[], None],
    ) -> None:
        self.committed: int | None = None
        self._root, self._ranks, self._settings = root, ranks, settings
        self._say, self._beat = say, beat
        self._group = dist.new_host_group()
        self._memory = HostMemory()
        self._save: _Save | None = None
        self._whole: set[int] = set()  # steps whose bytes this process wrote or verified
        self._written = 0  # bytes so far: a sign of life
        dist.before_shutdown(self._end)

    def trust(self, checkpoint: CheckpointInfo) -> None:
        """Take this checkpoint, and no other, for whole: the caller has just verified it.

        What this process wrote may have been found damaged since.
        """
        self._whole = {checkpoint.step}

    def look_ahead(self, need: int | None = None) -> None:
        """Warn where the disk may not hold the next checkpoint, before it is lost. Main rank.

        need: bytes of a checkpoint, an estimate; the newest one's size is taken where there is one.
        """
        if not self._ranks.is_main:
            return
        sizes = (size_of(info.path) for info in reversed(list_checkpoints(self._root)))
        need = next((size for size in sizes if size), need)
        free = shutil.disk_usage(self._root if self._root.is_dir() else Path()).free
        if need and free < ROOM * need:
            self._say(
                f"warning: {self._root}: {free / 1e9:.2f} GB free; the next checkpoint needs "
                f"{need / 1e9:.2f} GB, and {ROOM} times that should be there"
            )

    def save(self, step: int, trained: Trained, export: Export, state: dict[str, Any]) -> None:
        """Copy a step to host memory and have it written. Collective.

        Waits for the save before. Raises UserError where that one failed, or, in the foreground,
        this one.
        """
        self.wait()
        snapshot = self._memory.snapshot(trained, export.wanted())
        fixed = {
            "schema": SCHEMA,
            "optimizer_steps": trained.optimizer_steps(),
            "shapes": trained.parameter_shapes(),
        }
        text = orjson.dumps(fixed | state, option=orjson.OPT_INDENT_2)
        self._save = _Save(step, snapshot, export, text)
        self._save.thread = threading.Thread(
            target=self._run, args=[self._save], name=f"save of step {step}", daemon=True
        )
        self._save.thread.start()
        if not self._settings.background:
            self.wait()

    def failed(self) -> bool:
        """Whether the save in flight failed for good, after its retries. Local and quick."""
        return self._save is not None and self._save.error is not None

    def wait(self) -> None:
        """Wait until the save in flight counts on all ranks. Collective.

        Raises UserError on all ranks where it failed for good.
        """
        if self._save is None:
            return
        assert self._save.thread is not None
        seen = -1
        while self._save.thread.is_alive():
            self._save.thread.join(timeout=0.5)
            # Waiting for other ranks is no progress: theirs is seen by the watchers of all.
            if seen != self._written:
                seen = self._written
                self._beat()
        error, self._save = self._save.error, None
        if error is not None:
            raise error

    def _end(self) -> None:
        """Where the run ended without waiting, for it failed: the last save may still succeed."""
        if self._save is not None and self._save.thread is not None:
            self._save.thread.join(GRACE_S)

    # --- in the thread of a save -------------------------------------------------------------

    def _run(self, save: _Save) -> None:
        try:
            self._write_until_committed(save)
        except _AttemptFailedError as error:
            intact = f"; step {max(self._whole)} is intact" if self._whole else ""
            save.error = UserError(
                f"{self._root}: step {save.step} could not be saved: {error}{intact}. "
                "Mend that and run the same command again",
                status=EXIT_IO,
            )
        except Exception as error:  # among them those of a rank that is gone
            save.error = UserError(
                f"{self._root}: step {save.step} could not be saved: {error!r}", status=EXIT_IO
            )
        else:
            self._tidy()

    def _write_until_committed(self, save: _Save) -> None:
        for pause in (*RETRY_PAUSES_S, None):
            attempt = Attempt(self._root, save.step, self._progress)
            try:
                self._attempt(attempt, save)
                break
            except _AttemptFailedError as error:
                if self._ranks.is_main:
                    attempt.discard()
                if pause is None or error.is_final:
                    raise
                self._say(f"warning: step {save.step} not saved yet: {error}; trying again")
                self._progress(1)  # a pause is no hang
                time.sleep(pause)
                self._progress(1)
        self.committed = save.step
        self._whole.add(save.step)
        self._say(f"saved {self._root / f'step_{save.step:08d}'}")

    def _attempt(self, attempt: Attempt, save: _Save) -> None:
        total = sum(self._together(lambda: save.snapshot.nbytes))

        def begin() -> None:
            self._root.mkdir(parents=True, exist_ok=True)
            self._check_room(total)
            attempt.begin()

        def write() -> Entries:
            name = f"optimizer_{self._ranks.rank:05d}.safetensors"
            with attempt.create(attempt.directory / TRAINING / name) as file:
                write_slices(file, save.snapshot.slices)
            save.export.write(attempt.directory, save.snapshot.parameters, attempt.create)
            if self._ranks.is_main:
                with attempt.create(attempt.directory / TRAINING / "state.json") as file:
                    file.write(save.state)
            return attempt.entries

        self._together(begin, only_main=True)
        files: Entries = {}
        for entries in self._together(write):
            files |= entries
        self._together(lambda: attempt.commit(files), only_main=True)

    def _together(self, action: Callable[[], Any], *, only_main: bool = False) -> list[Any]:
        """What the action returned on each rank. Where one failed, all of them raise. Collective.

        Only the errors of disks pass: what else goes wrong would go wrong again.
        """
        report: dict[str, Any] = {}
        if not only_main or self._ranks.is_main:
            try:
                report["value"] = action()
            except OSError as error:
                report["error"] = str(error)
            except Exception as error:
                report |= {"error": str(error) or repr(error), "is_final": True}
        texts = dist.gather_text(orjson.dumps(report).decode(), self._group)
        reports = [orjson.loads(text) for text in texts]
        is_final = any(report.get("is_final") for report in reports)
        for rank, other in enumerate(reports):
            if "error" in other:
                where = f"rank {rank}: " if len(reports) > 1 else ""
                raise _AttemptFailedError(f"{where}{other['error']}", is_final=is_final)
        return [other.get("value") for other in reports]

    def _progress(self, size: int) -> None:
        self._written += size

    def _check_room(self, need: int) -> None:
        free = shutil.disk_usage(self._root).free
        if free < ROOM * need:
            raise OSError(
                ENOSPC,
                f"{need / 1e9:.2f} GB to write, {free / 1e9:.2f} GB free ({ROOM} × is due)",
            )

    def _tidy(self) -> None:
        """Delete what need not be kept. The save counts already: a failure here is only told."""
        if not self._ranks.is_main:
            return
        settings = self._settings
        try:
            sweep(self._root)
            for info in to_delete(
                self._root, settings.keep_last, settings.keep_every, is_whole=self._is_whole
            ):
                delete(info)
            self.look_ahead()
        except OSError as error:
            self._say(f"warning: {self._root}: old checkpoints not deleted: {error}")

    def _is_whole(self, info: CheckpointInfo) -> bool:
        if info.step not in self._whole:
            self._progress(1)
            problems = verify(info.path)
            if problems:
                self._say(f"warning: not counted as a checkpoint: {problems[0]}")
                return False
            self._whole.add(info.step)
        return True
