"""R2, R3, R5, R6: processes die at each single change that a save makes on the disk."""

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from runtime.checkpoint import list_checkpoints, newest_verified
from tests.faults.harness import STORAGE, ForkServer
from tests.faults.runs import Runs, last_digest, losses, steps_saved
from tests.faults.storage_worker import torn


class Op(NamedTuple):
    """One change on the disk, as a rank recorded it."""

    time_ns: int
    rank: int
    number: int  # of that rank's, from 1
    text: str


class Store:
    """Ranks that save toy checkpoints in a folder."""

    def __init__(self, server: ForkServer, directory: Path, background: int) -> None:
        self.server, self.directory, self.background = server, directory, background
        self.root = directory / "checkpoints"
        self.root.mkdir(parents=True)

    def save_until(self, step: int, *, ranks: int = 2, faults: list[dict] | None = None) -> list:
        arguments = [self.root, self.directory / "acknowledged", step, self.background]
        run = self.server.start(arguments, target=STORAGE, ranks=ranks, faults=faults or [])
        return run.wait_then_kill(patience_s=2)

    def record(self, step: int, *, ranks: int = 2) -> list[Op]:
        """Save, and say what the ranks change on the disk meanwhile."""
        logs = [self.directory / f"ops{rank}" for rank in range(ranks)]
        faults = [
            {"kind": "record_ops", "rank": r, "path": str(log), "under": str(self.directory)}
            for r, log in enumerate(logs)
        ]
        assert self.save_until(step, ranks=ranks, faults=faults) == [0] * ranks
        found = []
        for rank, log in enumerate(logs):
            for number, line in enumerate(log.read_text().splitlines(), 1):
                time_ns, text = line.split(" ", 1)
                found.append(Op(int(time_ns), rank, number, text))
        return sorted(found)

    def copy(self, name: str) -> "Store":
        copied = Store(self.server, self.directory.parent / name, self.background)
        shutil.copytree(self.root, copied.root, dirs_exist_ok=True)
        return copied

    def kill_at(self, op: Op) -> dict:
        under = str(self.directory)
        return {"kind": "op", "rank": op.rank, "do": "SIGKILL", "op": op.number, "under": under}

    def acknowledged(self) -> int:
        path = self.directory / "acknowledged"
        return int(path.read_text().split()[-1]) if path.exists() else 0


def test_a_crash_at_any_point_leaves_the_previous_save_or_the_new_one(
    server: ForkServer, tmp_path: Path
) -> None:
    """The third save, which also deletes the first, in the foreground and in the background."""
    points = 0
    for background in (0, 1):
        base = Store(server, tmp_path / f"base{background}", background)
        assert base.save_until(2) == [0, 0]
        for op in base.copy(f"recorded{background}").record(3):
            if op.text.startswith("write ops"):
                continue
            points += 1
            store = base.copy(f"point{points}")
            where = f"rank {op.rank} killed before {op.text!r}, background {background}"
            statuses = store.save_until(3, faults=[store.kill_at(op)])
            assert statuses[op.rank] == -9, where
            found = newest_verified(store.root)
            assert found is not None, where
            assert found.step in (2, 3), where
            assert found.step >= store.acknowledged(), where
            assert torn(found.path, found.step) == [], where
            # All ranks take the same one up, and what was left behind goes.
            assert store.save_until(4) == [0, 0], where
            assert steps_saved(store.root) == [3, 4], where
            assert sorted(p.name for p in store.root.glob(".*")) == [], where
            shutil.rmtree(store.directory)
    assert points >= 40


def test_kills_while_deleting_leave_two_whole(server: ForkServer, tmp_path: Path) -> None:
    """A hundred of them: at each change, of a save after which seven checkpoints are too many."""
    base = Store(server, tmp_path / "base", 0)
    for step in range(1, 8):
        assert base.save_until(step, ranks=1) == [0]
        kept = base.root / f"step_{step:08d}"
        shutil.copytree(kept, tmp_path / "kept" / kept.name)
    shutil.copytree(tmp_path / "kept", base.root, dirs_exist_ok=True)
    ops = base.copy("recorded").record(8, ranks=1)
    deletes = [op for op in ops if op.text.split()[0] in ("rename", "remove", "rmdir")]
    assert len(deletes) > 30
    for number in range(100):
        store = base.copy(f"kill{number}")
        fault = store.kill_at(deletes[number % len(deletes)])
        assert store.save_until(8, ranks=1, faults=[fault]) == [-9]
        found = steps_saved(store.root)
        where = f"killed before {deletes[number % len(deletes)]}"
        assert len(found) >= 2, where
        listed = [info.step for info in list_checkpoints(store.root)]
        assert listed == found, f"half of one stands under its name, {where}"
        shutil.rmtree(store.directory)


def test_the_order_on_the_disk(server: ForkServer, tmp_path: Path) -> None:
    """Files, then the manifest, then its folder, then the rename, then the parent, then the word.

    SIGKILL leaves the page cache alone: only the order shows that a power cut is survived.
    """
    store = Store(server, tmp_path / "store", 1)
    ops = [op.text for op in store.record(1)]
    temporary, final = "checkpoints/.tmp_step_00000001", "checkpoints/step_00000001"
    files = [
        p.relative_to(tmp_path / "store" / final) for p in (store.root / "step_00000001").rglob("*")
    ]
    committed = ops.index(f"rename {temporary} {final}")
    manifest = ops.index(f"fsync {temporary}/MANIFEST.json")
    for file in files:
        path = f"{temporary}/{file}"
        forced = max(i for i, text in enumerate(ops) if text == f"fsync {path}")
        assert forced < committed, path
        if file.suffix and file.name != "MANIFEST.json":
            assert forced < ops.index(f"write {temporary}/MANIFEST.json"), path
    assert manifest < ops.index(f"fsync {temporary}") < committed
    parent = ops.index("fsync checkpoints", committed)
    assert parent < ops.index("write acknowledged")


def test_a_rank_that_dies_before_its_shard(runs: Runs) -> None:
    runs.finish(runs.config("calm"))
    config = runs.config("broken")
    run = runs.start(
        config,
        faults=[
            {"kind": "op", "rank": 1, "do": "SIGKILL", "op": 1, "under": str(runs.path("broken"))}
        ],
    )
    statuses = run.wait_then_kill(patience_s=30)
    assert statuses[1] == -9
    assert statuses[0] not in (0, -9), "the other rank was left waiting"
    assert steps_saved(runs.checkpoints("broken")) == []
    assert not (runs.checkpoints("broken") / "latest").exists()
    runs.finish(config)
    assert losses(runs.path("broken")) == losses(runs.path("calm"))
    digests = [last_digest(runs.checkpoints(name), 12) for name in ("broken", "calm")]
    assert digests[0] == digests[1]


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_a_training_run_killed_at_each_point_of_its_saves(runs: Runs, tmp_path: Path) -> None:
    """Real runs, each rank, both ways of saving; each goes on and ends as the undisturbed one."""
    for background in (False, True):
        keys = {"steps": 6, "checkpoint__every_steps": 2, "checkpoint__background": background}
        name = f"calm{int(background)}"
        logs = [tmp_path / f"{name}_{rank}" for rank in range(2)]
        under = str(runs.checkpoints(name))
        faults = [
            {"kind": "record_ops", "rank": r, "path": str(log), "under": under}
            for r, log in enumerate(logs)
        ]
        runs.finish(runs.config(name, **keys), faults=faults)
        calm = last_digest(runs.checkpoints(name), 6)
        for rank, log in enumerate(logs):
            for op, line in enumerate(log.read_text().splitlines(), 1):
                config = runs.config("broken", **keys)
                under = str(runs.checkpoints("broken"))
                fault = {"kind": "op", "rank": rank, "do": "SIGKILL", "op": op, "under": under}
                run = runs.start(config, faults=[fault])
                assert run.wait_then_kill(patience_s=2)[rank] in (-9, 0), line
                runs.finish(config)
                assert last_digest(runs.checkpoints("broken"), 6) == calm, line
                assert losses(runs.path("broken")) == losses(runs.path(name)), line
                shutil.rmtree(runs.path("broken"))
