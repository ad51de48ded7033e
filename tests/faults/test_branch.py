"""Runs that begin from a checkpoint of another: several decays of one long stable run."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_prep.loader import Loader
from launch.__main__ import main as launch
from runtime.records import read_metrics
from tests.corpus import prepare_corpus
from tests.faults.harness import ForkServer
from tests.faults.injection import row_digests
from tests.faults.runs import Runs, digest, losses

STABLE = {"kind": "constant", "warmup_steps": 3}
DECAYING = {"kind": "wsd", "warmup_steps": 3, "decay_steps": 4}


class Branches(Runs):
    """A stable run of eight steps, and others beside it."""

    @property
    def source(self) -> Path:
        return self.step("stable", 8)

    def step(self, name: str, step: int) -> Path:
        return self.checkpoints(name) / f"step_{step:08d}"

    def branch(self, name: str, source: Path | None = None, **changes: object) -> Path:
        keys = {"steps": 12, "schedule": DECAYING, "run__branch_from": str(source or self.source)}
        return self.config(name, **{**keys, **changes})

    def refuse(self, path: Path, ranks: int = 1) -> str:
        run = self.start(path, ranks=ranks)
        assert run.wait() == [2] * ranks, run.output()
        assert "Traceback" not in run.output()
        return run.output()

    def state(self, name: str, step: int) -> dict[str, Any]:
        text = (self.step(name, step) / "training" / "state.json").read_text()
        found: dict[str, Any] = json.loads(text)
        return found


@pytest.fixture(scope="module")
def trained(server: ForkServer, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Branches:
    """With the run that decays at the same place without a break. Not to be changed."""
    found = Branches(server, corpus, tmp_path_factory.mktemp("trained"))
    found.finish(found.config("stable", steps=8, schedule=STABLE), ranks=1)
    found.finish(found.config("straight", steps=12, schedule=DECAYING), ranks=1)
    return found


@pytest.fixture
def runs(trained: Branches, tmp_path: Path) -> Branches:
    """The stable run and the straight one, copied to a directory of their own."""
    for name in ("stable", "straight"):
        shutil.copytree(trained.path(name), tmp_path / name)
    return Branches(trained.server, trained.corpus, tmp_path)


def contents(directory: Path) -> dict[Path, tuple[bytes, int]]:
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_a_branch_decays_as_the_run_without_a_break_does(runs: Branches) -> None:
    before = contents(runs.path("stable"))
    output = runs.finish(runs.branch("decayed"), ranks=1)
    assert f"step 8: branches from {runs.source}, which stays as it is" in output
    assert "changed: schedule.kind was constant, now wsd" in output
    assert "changed: run." not in output
    assert "warning" not in output
    found, whole = losses(runs.path("decayed")), losses(runs.path("straight"))
    assert list(found) == [9, 10, 11, 12]
    assert found == {step: whole[step] for step in found}
    assert digest(runs.step("decayed", 12)) == digest(runs.step("straight", 12))
    assert contents(runs.path("stable")) == before
    state, other = runs.state("decayed", 12), runs.state("straight", 12)
    for name in ("tokens_seen", "loader", "health", "optimizer_steps"):
        assert state[name] == other[name]
    manifest = (runs.source / "MANIFEST.json").read_bytes()
    assert state["branched_from"] == {
        "checkpoint": str(runs.source),
        "step": 8,
        "manifest_sha256": hashlib.sha256(manifest).hexdigest(),
    }
    assert "branched_from" not in other
    stored = yaml.safe_load((runs.path("decayed") / "config.yaml").read_text())
    assert stored["run"]["branch_from"] == str(runs.source)
    (event,) = read_metrics(runs.path("decayed") / "events.jsonl")
    assert (event["kind"], event["step"]) == ("branch", 8)


def test_a_broken_branch_goes_on_from_its_own_checkpoint(runs: Branches) -> None:
    """Also under another stage, and when its source is gone."""
    path = runs.branch("broken", checkpoint__every_steps=2, checkpoint__background=False)
    kill = {"kind": "step", "step": 4, "do": "SIGKILL"}
    assert runs.start(path, ranks=1, faults=[kill]).wait() == [-9]
    assert next(iter(losses(runs.path("broken")))) == 9
    shutil.rmtree(runs.path("stable"))
    output = runs.finish(path, "parallel.zero_stage=2", ranks=1)
    assert "resumed from" in output
    assert "branches from" not in output
    found, whole = losses(runs.path("broken")), losses(runs.path("straight"))
    assert found == pytest.approx({step: whole[step] for step in (9, 10, 11, 12)}, rel=1e-6)
    assert runs.state("broken", 12)["branched_from"]["step"] == 8


def test_a_roll_back_before_the_first_save_goes_back_to_the_source(runs: Branches) -> None:
    """And then leaves out the data, as from a checkpoint of its own."""
    loader = Loader([(str(runs.corpus), 1.0)], seq_len=16, global_batch_size=8, seed=3)
    rows = [row for step in (8, 9) for row in row_digests(loader.batch(step)["input_ids"])]
    path = runs.branch("back", health__max_skipped_steps=2, steps=12, schedule=STABLE)
    fault = {"kind": "poison", "rows": rows, "what": "loss nan"}
    output = runs.finish(path, ranks=1, faults=[fault])
    assert "step 8: back from step 10, leaving out data steps 8 to 9" in output
    assert list(losses(runs.path("back"))) == [9, 10, 11, 12]
    assert runs.state("back", 12)["loader"]["skipped"] == [[8, 10]]


def test_a_jump_of_the_learning_rate_is_told(
    runs: Branches, capsys: pytest.CaptureFixture[str]
) -> None:
    late = runs.branch("late", runs.step("straight", 12), steps=14, schedule=STABLE)
    up = "the learning rate jumps up, from 0.001 to 0.01: the source's wsd schedule had let it fall"
    assert f"warning: {up}" in runs.finish(late, ranks=2)
    short = runs.branch("short", steps=10)
    down = (
        "the learning rate falls at once, from 0.01 to 0.00325: the decay of 4 steps began 2 "
        "before the checkpoint; write schedule.decay_steps: 2, or let the run end later"
    )
    assert launch(["check", str(short)]) == 0
    assert down in " ".join(capsys.readouterr().out.split())
    assert f"warning: {down}" in runs.finish(short, ranks=1)


MISTAKES: dict[str, tuple[str, dict[str, Any], str]] = {
    "missing": ("stable/checkpoints/step_00000009", {}, "is no checkpoint; write {source}"),
    "a run": ("stable", {}, "is no checkpoint; write {source}"),
    "nothing": ("nowhere", {}, "is no checkpoint; write one of a run, as runs/NAME/checkpoints/"),
    "too short": ("", {"steps": 8}, "of step 8, and the run ends at step 8; raise steps"),
    "optimizer": ("", {"optim__name": "lion"}, "lion cannot go on with the moments of adamw"),
    "architecture": ("", {"model__n_layers": 3}, "(model.n_layers: 2 → 3); restore the config, "
                     "or choose another run.branch_from"),
    "seed": ("", {"run__seed": 4}, "seed was 3, now 4"),
    "itself": ("", {"run__dir": "stable"}, "a checkpoint of this very run; choose another"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_before_training(
    trained: Branches, mistake: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    place, changes, message = MISTAKES[mistake]
    changes = dict(changes)
    run_dir = trained.directory / str(changes.get("run__dir", tmp_path / "bad"))
    changes["run__dir"] = str(run_dir)
    source = trained.directory / place if place else trained.source
    path = trained.branch(f"bad_{mistake}".replace(" ", "_"), source, **changes)
    message = message.format(source=trained.source)
    assert message in " ".join(trained.refuse(path).split())
    assert launch(["check", str(path)]) == 2
    printed = capsys.readouterr()
    assert message in " ".join((printed.out + printed.err).split())
    if mistake != "itself":
        assert not list(run_dir.rglob("step_*"))
        assert not (run_dir / "metrics.jsonl").exists()


def test_a_damaged_checkpoint_is_refused(
    runs: Branches, capsys: pytest.CaptureFixture[str]
) -> None:
    path, weights = runs.branch("bad"), runs.source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    damage = f"run.branch_from: {weights}: its sha256 differs: damaged"
    assert f"{damage}; restore it, or name another checkpoint" in runs.refuse(path, ranks=2)
    assert launch(["check", str(path)]) == 0
    assert launch(["check", str(path), "--verify"]) == 2
    assert "its sha256 differs" in " ".join(capsys.readouterr().out.split())
    (runs.source / "training" / "state.json").write_text("[]")
    assert "not as a pretraining run writes it" in runs.refuse(path)


def test_other_data_is_refused(runs: Branches, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = prepare_corpus(tmp_path / "other", seed=1)
    assert "the data was" in runs.refuse(runs.branch("bad", data__train=str(other)))


def test_the_check_tells_what_is_left(
    trained: Branches, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found = []
    for source in ({}, {"run__branch_from": None}):
        path = trained.branch("looked_at", run__dir=str(tmp_path / "new"), **source)
        assert launch(["check", str(path), "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    branch, whole = found
    assert (branch["branches_at"], whole["branches_at"]) == (8, None)
    assert branch["cost"]["seconds"] < 0.6 * whole["cost"]["seconds"]
