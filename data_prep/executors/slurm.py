"""Run tasks as a Slurm array. Inputs and output must be on a file system that all nodes share.

The array's tasks run `python -m data_prep task OUTPUT STAGE NUMBER…`; results are files, so that
all this process needs of Slurm is to submit, and to know whether the array is still there.
"""

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


def map_by_slurm(stage: Stage, numbers: Sequence[int], plan: Plan) -> Iterator[int]:
    """Run tasks in an array and yield their numbers as their results are seen.

    Raises UserError where Slurm is missing or refuses, and when the array has ended and tasks
    are not done; interrupted, it cancels the array.
    """
    if shutil.which("sbatch") is None:
        raise UserError(
            "executor: slurm needs sbatch, which is not here; run this on a login node of the "
            "cluster, or write executor: local",
            status=EXIT_BAD_INPUT,
        )
    folder = plan.work / "slurm"
    folder.mkdir(exist_ok=True)
    script = folder / f"{stage.name}.sh"
    write_atomic(script, array_script(plan, stage, numbers).encode())
    job = _command(["sbatch", "--parsable", str(script)]).split(";")[0].strip()
    print(f"{stage.told}: Slurm job {job}, {script}", flush=True)
    try:
        yield from _watched(stage, list(numbers), plan, job)
    except BaseException:
        subprocess.run(["scancel", job], check=False)  # noqa: S603, S607
        raise


def array_script(plan: Plan, stage: Stage, numbers: Sequence[int]) -> str:
    """The batch script of a stage: valid for `sbatch`, and for `bash` with the array's variable."""
    options = plan.config.slurm
    count = min(options.tasks, len(numbers))
    limit = f"%{options.at_once}" if options.at_once else ""
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
        "output": plan.work.resolve() / "slurm" / f"{stage.name}_%a.log",
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


def _watched(stage: Stage, left: list[int], plan: Plan, job: str) -> Iterator[int]:
    gone_since: float | None = None
    while left:
        done = [number for number in left if stage.is_done(number)]
        yield from done
        left = [number for number in left if number not in set(done)]
        if not left:
            return
        if _is_queued(job):
            gone_since = None
        else:
            gone_since = gone_since or time.monotonic()
            if time.monotonic() - gone_since > min(_SETTLE_S, 4 * plan.config.slurm.poll_s):
                raise UserError(
                    f"Slurm job {job} has ended and {len(left)} tasks are not done"
                    f"{_last_words(plan, stage)}; run the same command again: finished work is kept"
                )
        time.sleep(plan.config.slurm.poll_s)


def _is_queued(job: str) -> bool:
    done = subprocess.run(  # noqa: S603
        ["squeue", "--noheader", "--jobs", job, "--format=%t"],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode == 0 and bool(done.stdout.strip())


def _last_words(plan: Plan, stage: Stage) -> str:
    """What failed array tasks said last, where they said something."""
    for log in sorted((plan.work / "slurm").glob(f"{stage.name}_*.log")):
        errors = [line for line in log.read_text(errors="replace").splitlines() if "error" in line]
        if errors:
            return f" ({log}: {' '.join(errors[-_TOLD_LINES:])})"
    return ""


def _command(arguments: list[str]) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise UserError(f"{arguments[0]} refused: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
