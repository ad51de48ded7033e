"""`python -m launch slurm -- CONFIG`: a run as a Slurm job, an array or a chain of jobs."""

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from launch.arguments import counted
from launch.cluster import sweep, training
from launch.cluster.printing import ROOT, CommandLine
from launch.cluster.slurm_job import SWEEP
from launch.cluster.torchrun import MAX_NODES, MAX_RANKS
from runtime.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_OK, UserError

MAX_TASKS = 1000  # what Slurm takes where MaxArraySize says nothing (1001, not included)
_TIMES = (  # Slurm's six ways of writing a limit
    r"(?P<m>\d+)",
    r"(?P<m>\d+):(?P<s>\d+)",
    r"(?P<h>\d+):(?P<m>\d+):(?P<s>\d+)",
    r"(?P<d>\d+)-(?P<h>\d+)",
    r"(?P<d>\d+)-(?P<h>\d+):(?P<m>\d+)",
    r"(?P<d>\d+)-(?P<h>\d+):(?P<m>\d+):(?P<s>\d+)",
)
_SECONDS = {"d": 86_400, "h": 3600, "m": 60, "s": 1}
_SCRIPTS_SIGNAL = "USR1@300"  # as the scripts have it


class _Option(NamedTuple):
    """An option of sbatch's that is passed on as it is."""

    pattern: str
    expected: str
    help: str


_OPTIONS = {
    "partition": _Option(r"[\w.,-]+", "a name", "Slurm's partition"),
    "account": _Option(r"[\w.-]+", "a name", "who pays"),
    "qos": _Option(r"[\w.-]+", "a name", "quality of service"),
    "reservation": _Option(r"[\w.,-]+", "a name", "reservation"),
    "constraint": _Option(r"[\w.,&|*\[\]()-]+", "features", "features of the nodes"),
    "cpus-per-task": _Option(r"[1-9]\d{0,4}", "a number", "CPUs of a node's ranks, all together"),
    "mem": _Option(r"\d{1,9}[KMGT]?", "a size such as 200G", "memory of a node; 0 takes all"),
    "output": _Option(r"[^\s\\'\"#]+", "a path without spaces or quotes", "log; %%j is the job"),
}


def main(argv: Sequence[str]) -> int:
    """Submit, or print what would be. Raises UserError."""
    options = _options(argv)
    tasks, limit = _tasks(options)
    ranks = options.nodes * options.gpus_per_node if options.gpus_per_node else None
    run = training.read(options, ranks)
    for task in tasks:  # a mistake in the last line is worth finding today
        sweep.of_task(run.stage, run.file, run.overrides, task, options.sweep)
    _check_lead(options)
    script, *arguments = run.words
    if options.sweep is not None:
        arguments.insert(0, f"{SWEEP}{_found_from_here(options.sweep)}")
    words = ["sbatch", "--parsable", *_sbatch_options(options, run.config.run.name)]
    if tasks:
        words.append(f"--array={_ranges(tasks)}{limit}")
    command = CommandLine([*words, script, *arguments], _environment())
    if options.print:
        print(_chain_text(command, options.chain))
        return EXIT_OK
    _submit(command, options.chain)
    return EXIT_OK


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m launch slurm",
        description=__doc__,
        epilog="Slurm's own defaults hold for what is not given.",
    )
    parser.add_argument("--nodes", type=counted("nodes", 1, MAX_NODES), default=1, help="machines")
    parser.add_argument(
        "--gpus-per-node",
        type=counted("gpus-per-node", 0, MAX_RANKS),
        default=0,
        help="ranks on each; 0: one rank, on CPUs",
    )
    parser.add_argument("--time", help="limit, as Slurm writes it: 24:00:00, 2-12, 90")
    for name, option in _OPTIONS.items():
        parser.add_argument(f"--{name}", help=option.help)
    parser.add_argument("--exclusive", action="store_true", help="whole nodes: all their CPUs")
    parser.add_argument("--job-name", help="default: the run's name")
    parser.add_argument(
        "--array", help="tasks, such as 0-4 or 0-9%%2 (two at once); each is a run of its own"
    )
    parser.add_argument(
        "--sweep",
        metavar="FILE|key=[…]",
        help="overrides of each task: a file with a line for each, or the values of one key; "
        "without it tasks differ in run.seed",
    )
    parser.add_argument(
        "--chain",
        type=counted("chain", 1, 100),
        default=1,
        metavar="K",
        help="K jobs, one after the other; each goes on where the last one stopped",
    )
    parser.add_argument(
        "--requeue",
        action=argparse.BooleanOptionalAction,
        help="queue the job again when it was stopped; default, but for a chain",
    )
    parser.add_argument(
        "--signal", help=f"when to save before the limit, NAME@SECONDS; default {_SCRIPTS_SIGNAL}"
    )
    training.add_arguments(parser)
    return parser.parse_args(argv)


def _sbatch_options(options: argparse.Namespace, run_name: str) -> list[str]:
    """sbatch's words; what is not given is as in the script's #SBATCH lines."""
    name = options.job_name or run_name
    _check("job-name", name, _Option(r"\w[\w.-]{0,99}", "letters, digits and . _ -", ""))
    words = [f"--job-name={name}", f"--nodes={options.nodes}"]
    if options.gpus_per_node:
        words.append(f"--gpus-per-node={options.gpus_per_node}")
    if options.time:
        _seconds(options.time)
        words.append(f"--time={options.time}")
    for key, option in _OPTIONS.items():
        value = getattr(options, key.replace("-", "_"))
        if value is not None:
            _check(key, value, option)
            words.append(f"--{key}={value}")
    if options.exclusive:
        words.append("--exclusive")
    if options.signal:
        words.append(f"--signal={options.signal}")
    if options.requeue is not None or options.chain > 1:
        words.append("--requeue" if options.requeue else "--no-requeue")
    return [*words, "--export=ALL"]


def _environment() -> dict[str, str]:
    """What the script must know: Slurm runs a copy of it, and our Python may be anywhere."""
    found = {"INGOT_ROOT": str(ROOT)}
    if sys.prefix != sys.base_prefix:
        found["VENV"] = sys.prefix
    return found


def _found_from_here(given: str) -> str:
    """A sweep with its whole path: the job may start in another folder."""
    return given if "=" in given else str(Path(given).absolute())


def _tasks(options: argparse.Namespace) -> tuple[list[int], str]:
    """The numbers of an array's tasks, and its `%LIMIT`. Raises UserError."""
    runs = None if options.sweep is None else len(sweep.read(options.sweep))
    text = options.array
    if text is None:
        if runs is None:
            return [], ""
        if not runs:
            raise _refused(f"--sweep: no values in {options.sweep[:80]!r}; give key=[value, …]")
        text = f"0-{runs - 1}"
    ranges, percent, limit = text.partition("%")
    found: set[int] = set()
    is_good = not percent or re.fullmatch(r"[1-9]\d{0,4}", limit)
    for part in ranges.split(","):
        span = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6})(?::([1-9]\d{0,5}))?)?", part, re.ASCII)
        if span is None or not is_good:
            raise _refused(f"--array: expected numbers, as in 0-4, 1,3 or 0-9%2, got {text[:80]!r}")
        first, last = int(span[1]), int(span[2] or span[1])
        found.update(range(first, last + 1, int(span[3] or 1)))
        if len(found) > MAX_TASKS:
            raise _refused(f"--array: expected at most {MAX_TASKS} tasks, got {text[:80]!r}")
    if not found:
        raise _refused(f"--array: no task in {text[:80]!r}")
    if runs is not None and max(found) >= runs:
        raise _refused(
            f"--array: task {max(found)} has no line in {options.sweep}: it holds {runs} runs, "
            f"numbered from 0; write 0-{runs - 1}"
        )
    return sorted(found), percent + limit


def _ranges(tasks: Sequence[int]) -> str:
    """Numbers as Slurm writes them: 0-4,7."""
    spans: list[list[int]] = []
    for task in tasks:
        if spans and task == spans[-1][1] + 1:
            spans[-1][1] = task
        else:
            spans.append([task, task])
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in spans)


def _check_lead(options: argparse.Namespace) -> None:
    """The signal must leave time to train. Raises UserError."""
    text = options.signal or _SCRIPTS_SIGNAL
    found = re.fullmatch(r"(?:B:)?(?:USR1|TERM|INT)@(\d{1,5})", text, re.ASCII)
    if found is None:
        raise _refused(f"--signal: expected USR1, TERM or INT and @SECONDS, got {text[:80]!r}")
    if options.time and (limit := _seconds(options.time)) <= int(found[1]):
        raise _refused(
            f"--time {options.time} is {limit} s and the signal to save would come {found[1]} s "
            "before its end, so at once; give more time, or --signal USR1@60"
        )


def _seconds(text: str) -> int:
    for pattern in _TIMES:
        if found := re.fullmatch(pattern, text, re.ASCII):
            total = sum(int(v) * _SECONDS[unit] for unit, v in found.groupdict().items())
            if 0 < total < 366 * _SECONDS["d"]:
                return total
    raise _refused(f"--time: expected minutes, H:MM:SS or D-HH:MM:SS, got {text[:80]!r}")


def _check(name: str, value: str, option: _Option) -> None:
    if len(value) > 1000 or not re.fullmatch(option.pattern, value, re.ASCII):
        raise _refused(f"--{name}: expected {option.expected}, got {value[:80]!r}")


def _chain_text(command: CommandLine, length: int) -> str:
    """The commands of a chain, as bash would run them."""
    if length == 1:
        return command.text()
    lines = []
    for number in range(length):
        after = ["--dependency=afterany:$job"] if number else []
        text = _with(command, after).text()
        # The one word that bash is to expand.
        text = text.replace("'--dependency=afterany:$job'", '"--dependency=afterany:$job"')
        lines.append(f"job=$({text})")
    return "\n".join(lines)


def _with(command: CommandLine, more: Sequence[str]) -> CommandLine:
    return CommandLine([*command.words[:2], *more, *command.words[2:]], command.environment)


def _submit(command: CommandLine, length: int) -> None:
    if shutil.which("sbatch") is None:
        raise _refused(
            "sbatch is not here; run this on a login node of the cluster, or add --print"
        )
    number = ""
    for _ in range(length):
        after = [f"--dependency=afterany:{number}"] if number else []
        done = subprocess.run(
            _with(command, after).words,
            env={**os.environ, **command.environment},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            why = done.stderr.strip() or done.stdout.strip()
            raise UserError(f"sbatch refused: {why}", status=EXIT_FAILED)
        number = done.stdout.split(";")[0].strip()
        print(f"submitted job {number}{', after the last one' if after else ''}", flush=True)


def _refused(message: str) -> UserError:
    return UserError(message, status=EXIT_BAD_INPUT)
