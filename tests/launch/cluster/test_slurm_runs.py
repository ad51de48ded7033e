"""Runs under a real Slurm: pre-empted, out of time, chained, in an array, and failing."""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime.checkpoint.format import list_checkpoints
from runtime.records import read_metrics
from tests import slurm
from tests.corpus import prepare_corpus
from tests.faults.runs import digest, losses
from tests.processes import ROOT, environment, run
from tests.tiny_run import write_config

pytestmark = pytest.mark.slow
SCRIPT = "launch/pretrain.sh"


class Cluster:
    """A Slurm of one node and a corpus."""

    def __init__(self, variables: dict[str, str], folder: Path) -> None:
        found = environment(VENV=sys.prefix)
        slurms = {name: variables[name] for name in ("PATH", "SLURM_CONF")}
        self.environment = {**found, **slurms, "PATH": f"{found['PATH']}:/usr/sbin:/sbin"}
        self.folder = folder
        self.corpus = prepare_corpus(folder / "corpus", documents=120)

    def config(self, name: str, **changes: object) -> Path:
        plain = {"evaluate__every_steps": 0, "log__tensorboard": False}
        plain |= {"data__seq_len": 16, "checkpoint__every_steps": 0}
        return write_config(
            self.folder / f"{name}.yaml", self.run_dir(name), self.corpus, **{**plain, **changes}
        )

    def run_dir(self, name: str) -> Path:
        return self.folder / name

    def call(self, *words: str) -> str:
        done = subprocess.run(
            words, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def sbatch(self, *words: str, name: str = "job") -> str:
        """Submit; returns the job's number. What it prints is in NAME.log."""
        log = f"--output={self.folder / name}.log"
        return self.call("sbatch", "--parsable", "--mem=3000", log, *words).strip()

    def launch(self, *words: str) -> list[str]:
        """Submit by our own command; returns the numbers of the jobs."""
        log = ["--output", f"{self.folder}/%j.log"]
        told = self.call(sys.executable, "-m", "launch", "slurm", "--mem", "3000", *log, *words)
        return re.findall(r"submitted job (\d+)", told)

    def show(self, job: str) -> dict[str, str]:
        return dict(re.findall(r"(\w+)=(\S*)", self.call("scontrol", "show", "job", job)))

    def log(self, name: str = "job") -> str:
        path = self.folder / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def until(self, condition: Callable[[], object], seconds: float = 150) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            logs = "\n".join(p.read_text(errors="replace") for p in self.folder.glob("*.log"))
            assert time.monotonic() < deadline, f"{self.call('squeue')}\n{logs}"
            time.sleep(0.2)

    def until_state(self, job: str, *states: str) -> dict[str, str]:
        self.until(lambda: self.show(job)["JobState"] in states)
        return self.show(job)

    def steps(self, name: str) -> list[int]:
        return [r["step"] for r in read_metrics(self.run_dir(name) / "metrics.jsonl")]

    def saved(self, name: str) -> list[int]:
        return [c.step for c in list_checkpoints(self.run_dir(name) / "checkpoints")]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    why = slurm.missing()
    if why:
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("slurm")
    with slurm.slurm(folder / "slurm") as variables:
        yield Cluster(variables, folder)


def test_a_preempted_job_ends_as_an_undisturbed_one(cluster: Cluster) -> None:
    # Slow enough a run that Slurm comes in between.
    slow: dict[str, object] = {"steps": 150, "batch__micro_batch_size": 1}
    config = cluster.config("preempted", **slow)
    job = cluster.sbatch(SCRIPT, str(config), name="preempted")
    cluster.until(lambda: len(cluster.steps("preempted")) > 3)
    urgent = cluster.sbatch("--partition=urgent", "--exclusive", "--wrap", "true", name="urgent")
    cluster.until_state(urgent, "COMPLETED")
    cut = cluster.saved("preempted")
    assert len(cut) == 1, "saved on SIGTERM, and at no other time"
    assert 3 < cut[0] < 150
    assert cluster.show(job)["JobState"] == "PENDING"
    calm = cluster.config("calm", **slow)
    assert run(["-m", "pretrain", str(calm)])[0] == 0
    ended = cluster.until_state(job, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
    assert (ended["JobState"], ended["Restarts"], ended["ExitCode"]) == ("COMPLETED", "1", "0:0")
    assert f"stopped at step {cut[0]}; job {job} is queued again" in cluster.log("preempted")
    assert losses(cluster.run_dir("preempted")) == losses(cluster.run_dir("calm"))
    last = [cluster.run_dir(name) / "checkpoints/step_00000150" for name in ("calm", "preempted")]
    assert digest(last[0]) == digest(last[1])


def test_time_runs_out(cluster: Cluster) -> None:
    """One job that is queued again, and a chain of two; both go on where they were."""
    soon = ["--time", "1", "--signal", "USR1@10"]  # Slurm looks every 30 s
    lone = cluster.config("lone", steps=1_000_000)
    long = cluster.config("long", steps=1_000_000)
    (job,) = cluster.launch(*soon, "--", str(lone))
    first, second = cluster.launch(*soon, "--chain", "2", "--", str(long))
    assert cluster.show(second)["Dependency"].startswith(f"afterany:{first}")
    cluster.until(lambda: cluster.saved("lone") and cluster.saved("long"))
    cuts = {name: cluster.saved(name)[0] for name in ("lone", "long")}
    for which in (job, second):  # once is enough, however busy this machine
        cluster.call("scontrol", "update", f"JobId={which}", "TimeLimit=30")
    ended = cluster.until_state(first, "COMPLETED", "FAILED", "TIMEOUT")
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "75:0", "0")
    cluster.until(lambda: all(cluster.steps(name)[-1] > cuts[name] > 0 for name in cuts))
    for name, which, restarts in (("lone", job, "1"), ("long", second, "0")):
        assert cluster.show(which)["Restarts"] == restarts
        steps = cluster.steps(name)
        assert steps == list(range(1, steps[-1] + 1)), "no step twice, none left out"
    # The batch script alone hears this, and srun would not take it for "save".
    cluster.call("scancel", "--batch", "--signal=TERM", second)
    cluster.call("scancel", job)
    ended = cluster.until_state(second, "FAILED", "COMPLETED", "CANCELLED")
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "75:0")
    assert cluster.saved("long")[-1] == cluster.steps("long")[-1] > cuts["long"]
    assert cluster.until_state(job, "CANCELLED", "PENDING", "FAILED")["JobState"] == "CANCELLED"


def test_a_wrong_config_is_not_queued_again(cluster: Cluster) -> None:
    config = cluster.config("wrong", steps=5)
    job = cluster.sbatch(SCRIPT, str(config), "stepz=1", name="wrong")
    ended = cluster.until_state(job, "COMPLETED", "FAILED")
    assert (ended["JobState"], ended["Restarts"], ended["ExitCode"]) == ("FAILED", "0", "2:0")
    assert "did you mean steps" in cluster.log("wrong")


def test_the_tasks_of_an_array_are_runs_of_their_own(cluster: Cluster) -> None:
    config = cluster.config("swept", steps=4)
    sweep = ["--sweep", "optim.lr=[1e-2, 5e-3]"]
    (job,) = cluster.launch(*sweep, "--", str(config))
    for task in range(2):
        ended = cluster.until_state(f"{job}_{task}", "COMPLETED", "FAILED")
        assert ended["JobState"] == "COMPLETED", cluster.log(ended["JobId"])
    stored = [(cluster.folder / f"swept-{t}/config.yaml").read_text() for t in range(2)]
    assert [re.search(r"  lr: (\S+)", text)[1] for text in stored] == ["0.01", "0.005"]
    found = [losses(cluster.folder / f"swept-{task}") for task in range(2)]
    assert found[0][1] == found[1][1]
    assert found[0][4] != found[1][4]
    assert not cluster.run_dir("swept").exists()
