"""The runs of a scaling benchmark: which there are, and one of them carried out."""

import json
import math
import os
import re
import shlex
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from launch import leftovers
from launch.cluster import local
from launch.cluster.printing import ROOT, CommandLine
from runtime.config import read_value
from runtime.errors import EXIT_BAD_INPUT, UserError
from runtime.yaml_documents import documents_to_yaml

WARM_UP = 3  # steps that are not counted: buffers are made, caches are filled
_KEY = re.compile(r"[a-z_]+")

Mode = Literal["weak", "strong"]


class Case(NamedTuple):
    """One point: what is run, and on how many ranks."""

    model: str  # a preset, with changed keys: llama-tiny+d_model=256
    stage: int
    ranks: int
    sequences: int  # of a step, over all ranks
    micro_batch_size: int

    @property
    def name(self) -> str:
        """A file's name for it."""
        model = re.sub(r"[^\w.-]", "-", self.model)  # an = would make a path an override
        return f"{model}_zero{self.stage}_ranks{self.ranks}_batch{self.sequences}"


@dataclass(frozen=True)
class Plan:
    """What all runs have in common."""

    data: Path
    output: Path
    steps: int  # that are counted
    seq_len: int
    precision: str
    threads: int  # of a rank
    launcher: str  # a shell's words with {ranks}; empty: DeepSpeed's runner on this machine
    timeout_s: float


def cases(
    models: Sequence[str], stages: Sequence[int], ranks: Sequence[int], per_rank: int
) -> Iterator[Case]:
    """Every point once: weak scaling keeps a rank's sequences, strong scaling the step's."""
    most = max(ranks)
    for model in models:
        for stage in stages:
            for n in ranks:
                for sequences in dict.fromkeys((per_rank * n, per_rank * most)):
                    if sequences % n == 0:
                        yield Case(model, stage, n, sequences, math.gcd(per_rank, sequences // n))


def modes(case: Case, ranks: Sequence[int], per_rank: int) -> list[Mode]:
    """Which curves a point belongs to; the one on the most ranks is on both."""
    found: list[Mode] = []
    if case.sequences == per_rank * case.ranks:
        found.append("weak")
    if case.sequences == per_rank * max(ranks):
        found.append("strong")
    return found


def changed_model(text: str) -> dict[str, Any]:
    """PRESET+key=value as the config's section. Raises UserError."""
    preset, *changes = text.split("+")
    model: dict[str, Any] = {"preset": preset}
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals or not _KEY.fullmatch(name):
            raise UserError(
                f"--models {text}: expected PRESET+key=value, as llama-tiny+d_model=256",
                status=EXIT_BAD_INPUT,
            )
        model[name] = read_value(value, name)
    return model


def settings(case: Case, plan: Plan, run_dir: Path) -> dict[str, Any]:
    """The run's config."""
    return {
        "run": {"name": case.name[:100], "dir": str(run_dir)},
        "model": changed_model(case.model),
        "data": {"train": str(plan.data), "seq_len": plan.seq_len},
        "batch": {
            "global_batch_size": case.sequences,
            "micro_batch_size": case.micro_batch_size,
        },
        "steps": WARM_UP + plan.steps + 1,
        "parallel": {"zero_stage": case.stage},
        "precision": plan.precision,
        "evaluate": {"every_steps": 0},
        "checkpoint": {"every_steps": 0},
        "log": {"every_steps": WARM_UP + plan.steps + 1, "tensorboard": False},
    }


def launcher(case: Case, plan: Plan) -> CommandLine:
    """What stands before the script. Raises UserError for words that are none."""
    if not plan.launcher:
        return local.launcher(case.ranks)
    try:
        told = shlex.split(plan.launcher)
    except ValueError as error:
        raise UserError(f"--launcher {plan.launcher}: {error}", status=EXIT_BAD_INPUT) from error
    return CommandLine([word.replace("{ranks}", str(case.ranks)) for word in told], {})


def measure(case: Case, plan: Plan, turn: int) -> list[dict[str, Any]]:
    """Carry out one run; what each of its ranks measured. Raises UserError where it fails."""
    home = plan.output / "runs" / f"{case.name}_{turn}"
    home.mkdir(parents=True, exist_ok=False)
    config = home / "config.yaml"
    text = documents_to_yaml([settings(case, plan, home / "run")])
    config.write_text(text, encoding="utf-8")
    script = str(ROOT / "launch" / "scaling" / "worker.py")
    starts = launcher(case, plan)
    command = [*starts.words, script, str(home / "measured"), str(config)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **starts.environment}
    if plan.threads:
        environment["OMP_NUM_THREADS"] = str(plan.threads)
    log = home / "log.txt"
    leftovers.adopt_orphans()
    with log.open("w", encoding="utf-8") as out:
        try:
            done = subprocess.run(
                command, stdout=out, stderr=subprocess.STDOUT, env=environment, check=False,
                timeout=plan.timeout_s, cwd=ROOT, preexec_fn=leftovers.end_with_parent,
            )  # fmt: skip
        except FileNotFoundError as error:
            raise UserError(f"{command[0]}: no such launcher", status=EXIT_BAD_INPUT) from error
        except subprocess.TimeoutExpired as error:
            while leftovers.reap(except_pid=0):  # the ranks outlive their launcher
                leftovers.kill_all()
                time.sleep(0.1)
            raise UserError(
                f"{case.name}: not done after {plan.timeout_s:.0f} s (--timeout); see {log}"
            ) from error
    found = [json.loads(path.read_text()) for path in sorted(home.glob("measured_rank*.json"))]
    if done.returncode or len(found) != case.ranks:
        last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise UserError(
            f"{case.name}: status {done.returncode}, {len(found)} of {case.ranks} ranks measured; "
            f"{''.join(last[-1:])[:300]} (see {log})"
        )
    return sorted(found, key=lambda rank: int(rank["rank"]))
