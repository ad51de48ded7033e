"""`python -m launch scaling`: measure how training scales over ranks, ZeRO stages and models.

Weak scaling keeps the sequences of a rank, strong scaling those of a step. Each point is a run of
`python -m pretrain` on random tokens, in turns; its steps are timed one by one, and so is every
collective. Every rank has the same number of CPU threads, also where it is alone.
"""

import argparse
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.scaling import results
from launch.scaling.data import random_tokens
from launch.scaling.results import Measured
from launch.scaling.runs import Case, Plan, cases, changed_model, measure, modes
from model.presets import PRESETS
from runtime import hardware, provenance
from runtime.errors import EXIT_BAD_INPUT, EXIT_OK, UserError

_EPILOG = """\
On a cluster, --launcher holds the words that start a Python script on {ranks} ranks:
  --launcher 'mpirun -n {ranks} --hostfile hosts python3'
  --launcher 'deepspeed --hostfile hosts --num_gpus 8'                  (with --ranks 8 per node)
  --launcher 'srun -n 1 python3 -m torch.distributed.run --nproc-per-node {ranks}'
All ranks must see --output, on a shared file system."""


def main(argv: Sequence[str]) -> int:
    """Measure, and write scaling.json, scaling.md and scaling.svg. Raises UserError."""
    options = _parser().parse_args(argv)
    if options.compare:
        print(results.compare(*options.compare))
        return EXIT_OK
    ranks = _numbers(options.ranks, "--ranks", 1, 1 << 14)
    stages = _numbers(options.zero, "--zero", 0, 3)
    models = list(dict.fromkeys(word for word in options.models.split(",") if word))
    _check(options, models, stages)
    output: Path = options.output.absolute()  # ranks start in the source tree
    if (output / "runs").exists():
        raise UserError(
            f"{output}: holds a measurement already; choose another --output, or delete it",
            status=EXIT_BAD_INPUT,
        )
    plan = Plan(
        data=random_tokens(output, options.vocab),
        output=output,
        steps=options.steps,
        seq_len=options.seq_len,
        precision=options.precision,
        threads=options.threads,
        launcher=options.launcher,
        timeout_s=options.timeout,
    )
    todo = list(cases(models, stages, ranks, options.batch))
    turns: dict[Case, list[list[dict[str, Any]]]] = {case: [] for case in todo}
    for turn in range(options.repeat):
        for number, case in enumerate(todo, start=1):
            print(f"{turn + 1}/{options.repeat} {number}/{len(todo)} {case.name}", flush=True)
            turns[case].append(measure(case, plan, turn))
            if not options.keep:
                shutil.rmtree(output / "runs" / f"{case.name}_{turn}" / "run", ignore_errors=True)
    found = [Measured(case, modes(case, ranks, options.batch), turns[case]) for case in todo]
    results.write(output / "scaling.json", _about(options, found), found, plan.seq_len)
    _report(output, found, plan.seq_len)
    return EXIT_OK


def _report(output: Path, found: Sequence[Measured], seq_len: int) -> None:
    points = results.points(found, seq_len)
    text = results.table(points)
    (output / "scaling.md").write_text(text + "\n", encoding="utf-8")
    from launch.report.efficiency_chart import efficiency_chart

    (output / "scaling.svg").write_text(efficiency_chart(points), encoding="utf-8")
    print(f"\n{text}\n\nwrote {output}/scaling.json, scaling.md and scaling.svg")


def _about(options: argparse.Namespace, found: Sequence[Measured]) -> dict[str, Any]:
    first = found[0].turns[0][0]
    hosts = sorted({rank["host"] for item in found for turn in item.turns for rank in turn})
    return {
        "machine": {
            "device": first["device"],
            "hosts": len(hosts),
            "cpu": hardware.cpu_name(),
            "cores": hardware.usable_cores(),
            "system": platform.platform(),
        },
        "versions": provenance.versions(),
        "settings": {
            "seq_len": options.seq_len,
            "batch": options.batch,
            "precision": options.precision,
            "threads": options.threads,
            "steps": options.steps,
            "repeat": options.repeat,
            "vocab": options.vocab,
            "launcher": options.launcher or "deepspeed",
        },
        "communication": "seconds inside torch.distributed's collectives and the waits for them, "
        "other ranks' lateness included; on a GPU: on the stream that called them",
    }


def _check(options: argparse.Namespace, models: Sequence[str], stages: Sequence[int]) -> None:
    for model in models:
        preset = model.partition("+")[0]
        if preset not in PRESETS:
            known = ", ".join(sorted(PRESETS))
            raise UserError(f"--models {preset}: no preset; known: {known}", status=EXIT_BAD_INPUT)
        changed_model(model)
    least = {"batch": 1, "seq_len": 2, "vocab": 2, "steps": 1, "repeat": 1, "threads": 0}
    for name, bound in least.items():
        if getattr(options, name) < bound:
            raise UserError(
                f"--{name.replace('_', '-')} {getattr(options, name)}: expected {bound} or more",
                status=EXIT_BAD_INPUT,
            )
    if 0 in stages and options.precision != "fp32":
        raise UserError(
            f"--zero 0 with --precision {options.precision} takes a wrong first step in "
            "DeepSpeed; leave 0 out, or write --precision fp32",
            status=EXIT_BAD_INPUT,
        )


def _numbers(text: str, option: str, least: int, most: int) -> list[int]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and least <= int(word) <= most for word in words):
        raise UserError(
            f"{option} {text}: expected numbers from {least} to {most}, as 1,2",
            status=EXIT_BAD_INPUT,
        )
    return sorted({int(word) for word in words})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m launch scaling",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--ranks", default="1,2", help="default 1,2")
    add("--zero", default="1,2,3", help="ZeRO stages; default 1,2,3")
    add("--models", default="llama-tiny", help="presets, with changes: llama-tiny+d_model=256")
    add("--output", type=Path, default=Path("runs/scaling"), help="default runs/scaling")
    add("--batch", type=int, default=4, help="sequences of a rank in weak scaling; default 4")
    add("--seq-len", type=int, default=128, help="default 128")
    add("--vocab", type=int, default=4096, help="kinds of random tokens; default 4096")
    add("--precision", choices=("fp32", "bf16", "fp16"), default="bf16", help="default bf16")
    add("--steps", type=int, default=10, help="counted steps of a run; default 10")
    add("--repeat", type=int, default=1, help="turns through all runs; default 1")
    add("--threads", type=int, default=1, help="CPU threads of each rank; 0: do not say")
    add(
        "--launcher",
        default="",
        metavar="WORDS",
        help="default: DeepSpeed's, here",
    )
    add("--timeout", type=float, default=1800, help="seconds for one run; default 1800")
    add("--keep", action="store_true", help="keep the runs' checkpoints")
    add("--compare", nargs=2, type=Path, metavar="JSON", help="print two results side by side")
    return parser
