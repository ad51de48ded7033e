"""Run tasks as a Slurm array. Inputs and output must be on a file system that all nodes share.

The array's tasks run `python -m data_prep task OUTPUT STAGE NUMBER…`; results are files, so that
all this process needs of Slurm is to submit, and to know whether the array is still there.
"""

import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.atomic import write_atomic
from data_prep.plan import Plan
from data_prep.stages import Stage
from runtime.errors import EXIT_BAD_INPUT, UserError

_ROOT = Path(__file__).resolve().parents[2]
_SETTLE_S = 60.0  # how long a result may take to be seen through a shared file system
_TOLD_LINES = 3
_UNNAMEABLE = re.compile(r"""[\s"'\\#]""")  # Slurm cuts a line of options at these


def map_by_slurm(stage: Stage, numbers: Sequence[int], plan: Plan) -> Iterator[int]:
    """Run tasks in an array and yield their numbers as their results are seen.

    Raises UserError where Slurm is missing or refuses, and when the array has ended and tasks
    are not done; interrupted, it cancels the array. An array that a killed process left behind is
    cancelled first, so that two never write beside each other.
    """
    if shutil.which("sbatch") is None:
        raise UserError(
            "executor: slurm needs sbatch, which is not here; run this on a login node of the "
            "cluster, or write executor: local",
            status=EXIT_BAD_INPUT,
        )
    folder = plan.work / "slurm"
    folder.mkdir(exist_ok=True)
    script, noted = folder / f"{stage.name}.sh", folder / f"{stage.name}.job"
    write_atomic(script, array_script(plan, stage, numbers).encode())
    _end_earlier(noted, plan.config.slurm.poll_s)
    for log in folder.glob(f"{stage.name}_*.log"):
        log.unlink(missing_ok=True)  # else what an earlier run said is taken for this one's
    job = _Job(_submit(script))
    try:
        write_atomic(noted, job.number.encode())
        print(f"{stage.told}: Slurm job {job.number}, {script}", flush=True)
        yield from _watched(stage, list(numbers), plan, job)
    except BaseException:
        job.cancel()
        raise
    noted.unlink(missing_ok=True)


def array_script(plan: Plan, stage: Stage, numbers: Sequence[int]) -> str:
    """The batch script of a stage: valid for `sbatch`, and for `bash` with the array's variable.

    Raises UserError where the output's path cannot be written in one.
    """
    options = plan.config.slurm
    count = min(options.tasks, len(numbers))
    limit = f"%{options.at_once}" if options.at_once else ""
    folder = str(plan.work.resolve() / "slurm")
    if _UNNAMEABLE.search(folder):
        raise UserError(
            f"{folder}: a Slurm script cannot name a folder with white space, quotes, # or "
            "backslashes; choose another output",
            status=EXIT_BAD_INPUT,
        )
    chosen = {
        "job-name": f"data_prep-{stage.name}",
        "array": f"0-{count - 1}{limit}",
        "ntasks": 1,
        "cpus-per-task": 1,
        "time": options.time,
        "mem": options.memory,
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "output": f"{folder.replace('%', '%%')}/{stage.name}_%a.log",
        "open-mode": "append",
    }
    lines = ["#!/usr/bin/env bash"]
    lines += [f"#SBATCH --{name}={value}" for name, value in chosen.items() if value != ""]
    lines += ["set -euo pipefail", *options.setup, "numbers=("]
    lines += [f"    {' '.join(map(str, numbers[k::count]))!r}" for k in range(count)]
    python, output = shlex.quote(sys.executable), shlex.quote(str(plan.output.resolve()))
    lines += [
        ")",
        f"cd {shlex.quote(str(Path.cwd()))}",
        f"export PYTHONPATH={shlex.quote(str(_ROOT))}${{PYTHONPATH:+:$PYTHONPATH}}",
        "export TOKENIZERS_PARALLELISM=false",
        "# Unquoted: one word for each number.",
        f"exec {python} -m data_prep task {output} {stage.name} ${{numbers[$SLURM_ARRAY_TASK_ID]}}",
    ]
    return "\n".join(lines) + "\n"


def _watched(stage: Stage, left: list[int], plan: Plan, job: "_Job") -> Iterator[int]:
    gone_since: float | None = None
    while left:
        done = [number for number in left if stage.is_done(number)]
        yield from done
        left = [number for number in left if number not in set(done)]
        if not left:
            return
        if job.is_queued():
            gone_since = None
        else:
            gone_since = gone_since or time.monotonic()
            if time.monotonic() - gone_since > min(_SETTLE_S, 4 * plan.config.slurm.poll_s):
                raise UserError(
                    f"Slurm job {job.number} has ended and {len(left)} tasks are not done"
                    f"{_last_words(plan, stage)}; run the same command again: finished work is kept"
                )
        time.sleep(plan.config.slurm.poll_s)


class _Job:
    """An array that was submitted."""

    def __init__(self, number: str) -> None:
        self.number = number
        self._has_warned = False

    def is_queued(self) -> bool:
        """Whether it waits or runs. Where Slurm does not answer it is taken to, and that is said.

        A controller that is busy or away for minutes says nothing about its jobs.
        """
        done = _run("squeue", "--noheader", "--jobs", self.number, "--format=%t")
        if done.returncode == 0:
            return bool(done.stdout.strip())
        if "invalid job id" in done.stderr.lower():  # long ended, and forgotten
            return False
        if not self._has_warned:
            self._has_warned = True
            print(
                f"squeue does not answer ({done.stderr.strip()}); waiting for Slurm job "
                f"{self.number} all the same",
                file=sys.stderr,
                flush=True,
            )
        return True

    def cancel(self) -> None:
        """End it, if it is there."""
        _run("scancel", self.number)


def _end_earlier(noted: Path, poll_s: float) -> None:
    """Cancel what a killed process has submitted, and wait until it is gone."""
    try:
        job = _Job(noted.read_text().strip())
    except FileNotFoundError:
        return
    if job.is_queued():
        print(f"cancelling Slurm job {job.number} of an earlier run", flush=True)
        job.cancel()
        while job.is_queued():
            time.sleep(poll_s)
            job.cancel()  # again: it may not have been heard
    noted.unlink()


def _last_words(plan: Plan, stage: Stage) -> str:
    """What failed array tasks said last, where they said something."""
    for log in sorted((plan.work / "slurm").glob(f"{stage.name}_*.log")):
        errors = [line for line in log.read_text(errors="replace").splitlines() if "error" in line]
        if errors:
            return f" ({log}: {' '.join(errors[-_TOLD_LINES:])})"
    return ""


def _submit(script: Path) -> str:
    done = _run("sbatch", "--parsable", str(script))
    if done.returncode:
        raise UserError(f"sbatch refused: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.split(";")[0].strip()


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - Slurm's own programs, no shell
        arguments, capture_output=True, text=True, check=False
    )
