"""The time of a step, measured in a few steps of the run itself on this machine. Torch-free."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from launch.check.target import Target
from launch.estimate.pretraining import Training
from launch.estimate.step_time import StepTime
from runtime.errors import EXIT_BAD_INPUT, UserError

_STEPS, _WARM = 6, 2  # the first ones load and compile
_TIMEOUT_S = 600
_SPREAD = 1.1  # at least: a run of hours sees more than a probe of seconds


def probed(
    one: Training, target: Target, predicted: StepTime, options: argparse.Namespace
) -> StepTime:
    """The prediction, with its computing as measured on one rank.

    What ranks send one another stays predicted. Raises UserError where nothing can be measured.
    """
    if not target.is_here or options.no_data:
        raise UserError(
            "--probe measures on this machine, with its data; leave out --gpu, --nodes, --no-data",
            status=EXIT_BAD_INPUT,
        )
    if target.ranks > 1:
        raise UserError("--probe measures one rank; leave out --ranks", status=EXIT_BAD_INPUT)
    seconds = measured_steps(one, options)
    step = statistics.median(seconds)
    spread = max(_SPREAD, max(seconds) / step)
    least = min(1 / _SPREAD, min(seconds) / step)
    return predicted._replace(
        compute_s=max(0.0, step - predicted.optimizer_s),
        total_s=step,
        low_s=least * step,
        high_s=spread * step,
    )


def measured_steps(one: Training, options: argparse.Namespace) -> list[float]:
    """Seconds of some steps of a run in a directory of its own."""
    with tempfile.TemporaryDirectory(prefix="ingot-probe-") as directory:
        short = [
            f"run.dir={Path(directory) / 'run'}",
            f"steps={_STEPS}",
            "tokens=null",
            *("schedule.warmup_steps=0", "schedule.decay_steps=null", "data.stages=[]"),
            *("run.branch_from=null", "batch.ramp=[]"),
            *("checkpoint.every_steps=0", "evaluate.every_steps=0", "log.every_steps=1"),
            *("log.tensorboard=false", "data.verify=false"),
        ]
        command = [sys.executable, "-m", "pretrain", str(options.config)]
        try:
            done = subprocess.run(
                [*command, *options.overrides, *short],
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_S,
                env={**os.environ, "WORLD_SIZE": "1"},
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise UserError(f"--probe: {_STEPS} steps took more than {_TIMEOUT_S} s") from None
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["it said nothing"]
            raise UserError(f"--probe: the run ended with {done.returncode}: {lines[-1][:300]}")
        text = (Path(directory) / "run" / "metrics.jsonl").read_text(encoding="utf-8")
    records = [json.loads(line) for line in text.splitlines()]
    rates = [r["tokens_per_second"] for r in records if r.get("tokens_per_second")]
    tokens = [r["tokens_seen"] for r in records if r.get("tokens_per_second")]
    taken = [after - before for before, after in zip([0, *tokens], tokens, strict=False)]
    return [count / rate for count, rate in zip(taken, rates, strict=True)][_WARM:]
