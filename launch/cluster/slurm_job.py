"""Inside a Slurm job: torchrun on every node, and the job queued again when it was stopped.

Slurm signals the tasks of a step when it pre-empts a job (SIGTERM) or its time runs out (SIGUSR1,
as --signal says); the ranks save and leave with 75. Then this process, the job's batch script, asks
Slurm to queue the job again, and the next start goes on from the checkpoint.
"""

import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from launch.cluster import local, sweep, training
from launch.cluster.torchrun import agent, supervised
from runtime.checkpoint.format import list_checkpoints
from runtime.errors import EXIT_BAD_INPUT, EXIT_OK, EXIT_PREEMPTED, UserError
from runtime.signals import STOPS
from runtime.watcher import read_json

SWEEP = "--sweep="  # the first argument of a job whose tasks differ
MAX_IDLE_STOPS = 3
# A signal that came before the ranks' own handlers were there ends them by itself.
_STOPPED = {EXIT_PREEMPTED, *(128 + number for number in STOPS)}


class Run(NamedTuple):
    """A training script with its arguments, as far as they say what is trained."""

    words: list[str]
    run_dir: Path | None  # None: nothing is trained, such as with --print-config

    def step(self) -> int:
        """The newest checkpoint's; -1 where there is none."""
        found = list_checkpoints(self.run_dir / "checkpoints") if self.run_dir else []
        return found[-1].step if found else -1


class Job:
    """This job, as Slurm describes it. Raises UserError where it is none."""

    def __init__(self) -> None:
        number = os.environ.get("SLURM_JOB_ID", "")
        if not (number.isascii() and number.isdigit()):
            raise UserError(
                "SLURM_JOB_NODELIST is set and SLURM_JOB_ID names no job; unset it to train on "
                "this machine",
                status=EXIT_BAD_INPUT,
            )
        array, self.task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
        # The number of one of an array's tasks is also that of the whole array.
        self.name = f"{array}_{self.task}" if array and self.task else number
        self.number = int(number)
        self.restarts = int(os.environ.get("SLURM_RESTART_COUNT") or 0)

    def why_not_requeued(self) -> str | None:
        """Why Slurm would not, or should not, queue this job again; None where it may."""
        done = _slurm("scontrol", "show", "job", self.name)
        found = dict(re.findall(r"\b(JobState|Requeue|BatchFlag)=(\w+)", done.stdout))
        if done.returncode or "JobState" not in found:
            return f"Slurm does not answer ({done.stderr.strip()})"
        if found["JobState"] != "RUNNING":  # cancelled, out of time: somebody has decided
            return f"it is {found['JobState']}"
        if found.get("BatchFlag") == "0":
            return "it is no batch job"
        return None if found.get("Requeue") == "1" else "it was submitted with --no-requeue"

    def requeue(self) -> bool:
        """Queue it again, which ends this process."""
        done = _slurm("scontrol", "requeue", self.name)
        if done.returncode:
            _say(f"Slurm refused: {done.stderr.strip()}")
        return done.returncode == 0


def run(argv: Sequence[str]) -> int:
    """Run SCRIPT [--sweep=…] [ARGUMENT …] on every node of the job. Raises UserError."""
    job = Job()
    wanted = _wanted(argv, job.task)
    step = _Step(_srun(job, wanted.words))
    status = step.wait()
    if status in (EXIT_OK, EXIT_BAD_INPUT):
        return status
    if status not in _STOPPED and not step.asked:
        return status  # it failed; the supervisors have tried
    why = job.why_not_requeued()
    if why is None and _stops_without_progress(wanted, job.restarts) > MAX_IDLE_STOPS:
        why = (
            f"it was stopped {MAX_IDLE_STOPS} times in a row without a new checkpoint; give it "
            "more time than --signal leaves before the limit"
        )
    if why is not None:
        _say(f"stopped at step {wanted.step()}, and not queued again: {why}")
    elif job.requeue():
        _say(f"stopped at step {wanted.step()}; job {job.name} is queued again")
    return status


def _wanted(argv: Sequence[str], task: str | None) -> Run:
    """The script's words with what an array's task changes."""
    script, *arguments = argv
    given = None
    if arguments and arguments[0].startswith(SWEEP):
        given = arguments.pop(0).removeprefix(SWEEP)
        if task is None:
            raise UserError("--sweep needs a job array; add --array", status=EXIT_BAD_INPUT)
    stage = Path(script).stem
    overrides = [word for word in arguments if "=" in word]
    others = [word for word in arguments if "=" not in word]
    if len(others) > 1 or any(word.startswith("-") for word in others):
        return Run([script, *arguments], None)  # another command than to train
    path = Path(others[0]) if others else training.built_in(stage)
    if task is not None:
        changes = sweep.of_task(stage, path, overrides, int(task), given)
        overrides, arguments = [*overrides, *changes], [*arguments, *changes]
    try:
        run_dir = training.read_config(stage, path, overrides).run_dir
    except UserError:
        run_dir = None  # the script says what is wrong
    return Run([script, *arguments], run_dir)


def _srun(job: Job, script: Sequence[str]) -> list[str]:
    """One torchrun a node, which starts a rank for each GPU, or one on a CPU."""
    nodes = _slurm("scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"])
    if nodes.returncode or not nodes.stdout.split():
        raise UserError(f"scontrol does not name the job's nodes: {nodes.stderr.strip()}")
    first = nodes.stdout.split()[0]
    gpus = os.environ.get("SLURM_GPUS_ON_NODE", "")
    ranks = int(gpus) if gpus.isdigit() else local.visible_gpus()
    endpoint = f"{first}:{20000 + job.number % 20000}"
    count = int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
    # Where another cluster's job of this number holds the port, they share a store, not a run.
    run_id = f"{job.number}-{secrets.token_hex(4)}"
    launcher = agent(count, max(ranks, 1), endpoint=endpoint, run_id=run_id)
    # A node that fails makes the others fail as well; all start again and meet at the first one.
    words = ["srun", "--ntasks-per-node=1", "--kill-on-bad-exit=1"]
    # srun passes neither on by itself: a task would get one CPU for all ranks of its node.
    if cpus := os.environ.get("SLURM_CPUS_PER_TASK"):
        words.append(f"--cpus-per-task={cpus}")
    return [*words, "--cpu-bind=none", *supervised([*launcher, *script])]


class _Step:
    """The step of the job that trains."""

    def __init__(self, words: Sequence[str]) -> None:
        self.asked = False  # to stop, by a signal to this process and not to the step
        self._process: subprocess.Popen[bytes] | None = None
        for number in STOPS:
            signal.signal(number, self._on_signal)
        sys.stdout.flush()
        self._process = subprocess.Popen(words)
        if self.asked:
            self._pass_on()

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True
        self._pass_on()

    def _pass_on(self) -> None:
        # Not the signal itself: srun takes SIGTERM and SIGINT for "abort", and kills the tasks
        # without leaving time for a save. SIGUSR1 it hands to them.
        if self._process is not None:
            self._process.send_signal(signal.SIGUSR1)

    def wait(self) -> int:
        """The worst exit status of the tasks."""
        assert self._process is not None
        code = None
        while code is None:
            # A signal that comes just before a wait without a limit would be handled after it.
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self._process.wait(1.0)
        return 128 - code if code < 0 else code


def _stops_without_progress(wanted: Run, restarts: int) -> int:
    """How many stops in a row came, with this one, without a newer checkpoint than the one before.

    Remembered in the run's directory; where there is none yet, no start has trained anything.
    """
    if wanted.run_dir is None or not wanted.run_dir.is_dir():
        return restarts + 1
    file = wanted.run_dir / "health" / "requeues.json"
    earlier = read_json(file) or {}
    step = wanted.step()
    stops = 0 if step > int(earlier.get("step", -1)) else int(earlier.get("stops", 0)) + 1
    file.parent.mkdir(mode=0o700, exist_ok=True)
    file.touch(mode=0o600)
    file.write_text(json.dumps({"step": step, "stops": stops}), encoding="utf-8")
    return stops


def _slurm(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, check=False)


def _say(text: str) -> None:
    print(f"slurm: {text}", file=sys.stderr, flush=True)
