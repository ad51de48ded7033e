"""Small pretraining runs, and what they leave behind, in a form that can be compared."""

import hashlib
from pathlib import Path
from typing import Any

from safetensors import safe_open

from runtime.checkpoint import list_checkpoints, verify
from runtime.records import read_metrics
from tests import tiny_run
from tests.faults.harness import ForkServer, Run


class Runs:
    """Starts runs of one prepared corpus below a directory."""

    def __init__(self, server: ForkServer, corpus: Path, directory: Path) -> None:
        self.server = server
        self.corpus = corpus
        self.directory = directory
        self.defaults: dict[str, object] = {}

    def config(self, name: str, **changes: object) -> Path:
        """A config of a run NAME, with changed keys: `optim__lr=1` is optim.lr."""
        plain = {
            "data__seq_len": 16,
            "batch__micro_batch_size": 2,
            "evaluate__every_steps": 0,
            "log__tensorboard": False,
        }
        changes = {**plain, **self.defaults, **changes}
        path = self.directory / f"{name}.yaml"
        return tiny_run.write_config(path, self.path(name), self.corpus, **changes)

    def path(self, name: str) -> Path:
        """The run directory."""
        return self.directory / name

    def checkpoints(self, name: str) -> Path:
        return self.path(name) / "checkpoints"

    def start(self, config: Path, *overrides: str, ranks: int = 2, **options: Any) -> Run:
        """Start the run that a config describes."""
        return self.server.start([config, *overrides], ranks=ranks, **options)

    def finish(self, config: Path, *overrides: str, ranks: int = 2, **options: Any) -> str:
        """Run to the end, which must be a good one; returns what was printed."""
        run = self.start(config, *overrides, ranks=ranks, **options)
        assert run.wait() == [0] * ranks, run.output()
        return run.output()


def losses(run_dir: Path) -> dict[int, float]:
    """The loss of each step; AssertionError where a step stands there twice."""
    records = [r for r in read_metrics(run_dir / "metrics.jsonl") if "loss" in r]
    steps = [r["step"] for r in records]
    assert len(steps) == len(set(steps)), f"steps stand in the metrics twice: {steps}"
    return {r["step"]: r["loss"] for r in records}


def steps_saved(checkpoints: Path) -> list[int]:
    """The steps whose checkpoints verify."""
    return [info.step for info in list_checkpoints(checkpoints) if not verify(info.path)]


def digest(checkpoint: Path) -> str:
    """sha256 of all weights, master weights and moments, by file and name."""
    found = hashlib.sha256()
    files = sorted(checkpoint.rglob("*.safetensors"))
    assert any(f.parent.name == "training" for f in files), f"{checkpoint} holds no optimizer"
    for file in files:
        with safe_open(file, framework="numpy") as opened:
            for name in sorted(opened.keys()):
                found.update(f"{file.relative_to(checkpoint)} {name}\n".encode())
                found.update(opened.get_tensor(name).tobytes())
    return found.hexdigest()


def last_digest(checkpoints: Path, step: int) -> str:
    """The digest of a step's checkpoint, which must be the newest and whole."""
    newest = list_checkpoints(checkpoints)[-1]
    assert newest.step == step
    assert verify(newest.path) == []
    return digest(newest.path)
