"""Everything that is to be known of one GPU, in one command of less than nine minutes.

The ceiling of matrix products at our shapes, attention by every back-end, the fused operations and
the optimizer's step (through kernels.py), and whole training steps from 124 M to 7 B parameters and
of BERT-base: rate, utilisation, memory, and what the time goes to. Median and minimum of nine
turns, in which what is compared alternates. Each part has a budget and a process of its own: when
it is about to be over, the part ends with what it has, and says what it left out; what its end did
not reach is cut off. Needs no network, and of packages torch, transformers' requirements and
pydantic; with DeepSpeed and orjson the steps are those of `python -m pretrain`, else of a bare
loop, and with matplotlib there is a plot. The step in FP8 needs torchao; its utilisation counts
against the peak of bf16.

    python benchmarks/h200.py [--minutes 8.8] [--parts gemm,steps:124M] [--peers DIR]
    python benchmarks/h200.py --dry-run             # tiny shapes: does every part run, on a CPU?
    python benchmarks/h200.py --without deepspeed   # as where that package is not installed

shares: of the device's time, by kernels' names. head alone: output matrix and loss by themselves;
their products are part of gemm too. --peers: a folder with liger-kernel.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.sweep import report

ROOT = Path(__file__).resolve().parent.parent
# Seconds at most, in this order; what a part leaves over, the later ones have.
PARTS = {
    "gemm": 25,
    "steps:124M": 75,  # two rows
    "steps:1.5B": 60,
    "steps:BERT-base": 45,
    "steps:350M": 45,
    "steps:774M": 45,
    "steps:7B": 75,
    "attention": 55,
    "kernels": 55,
    "steps:1.5B-fp8": 40,  # last: where no time is left, by --parts steps:1.5B,steps:1.5B-fp8
}
MINUTES = 8.8
_END = 5  # seconds of a budget in which a part no longer begins anything
DRY_PARTS = ("gemm", "attention", "kernels", "steps:124M", "steps:7B", "steps:BERT-base")
DRY_PARTS += ("steps:1.5B-fp8",)


def rows_of(part: str, until: float, *, is_dry: bool) -> Iterator[dict[str, Any]]:
    """Measure one part, as far as it comes until then (of `time.monotonic`)."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if part == "gemm":
        from benchmarks.sweep.gemm import rows

        yield from rows(device, is_dry=is_dry, until=until)
    elif part == "attention":
        from benchmarks.sweep.attention import rows

        yield from rows(device, is_dry=is_dry, until=until)
    else:
        from benchmarks.sweep.steps import rows

        yield from rows(device, part.removeprefix("steps:"), is_dry=is_dry, until=until)


def run_part(part: str, seconds: float, options: argparse.Namespace) -> dict[str, Any]:
    """Run a part in its own process group, and end it when its time is over."""
    start = time.monotonic()
    words = [sys.executable, str(Path(__file__)), "--part", part]
    words += ["--until", str(start + seconds - _END), "--without", ",".join(options.without)]
    words += ["--dry-run"] if options.dry_run else []
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w+") as log:
        if part == "kernels":
            words = [sys.executable, str(ROOT / "benchmarks" / "kernels.py")]
            words += ["--results", folder, "--turns", "9", "--repeats", "5"]
            words += ["--skip", "DeepSpeed FusedAdam"]  # which is built when first used
            words += ["--size", "dry", "--repeats", "1"] if options.dry_run else []
            words += ["--peers", str(options.peers)] if options.peers else []
        out = Path(folder) / "out"
        with out.open("w") as stdout:
            process = subprocess.Popen(words, stdout=stdout, stderr=log, start_new_session=True)
            try:
                status: int | str = process.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                status = "time is over"
        found = _read(out, Path(folder), part)
        result = {"rows": found, "status": status, "seconds": time.monotonic() - start}
        if status not in (0, "time is over"):
            log.seek(0)
            result["error"] = log.read()[-1500:]
        return result


def _read(out: Path, folder: Path, part: str) -> list[dict[str, Any]]:
    if part == "kernels":
        files = list(folder.glob("kernels_*.json"))
        table: list[dict[str, Any]] = json.loads(files[0].read_text())["rows"] if files else []
        return table
    found: list[dict[str, Any]] = []
    for line in out.read_text(encoding="utf-8").splitlines(keepends=True):
        if not line.startswith('{"') or not line.endswith("\n"):
            continue  # a library's, or cut off
        row = json.loads(line)
        if row.pop("continues", False):
            next(r for r in reversed(found) if r.get("kernels") == row["kernels"]).update(row)
        else:
            found.append(row)
    return found


def print_part(part: str, result: dict[str, Any]) -> None:
    """Print what a part found, a line a row."""
    print(f"\n== {part}: {result['seconds']:.0f} s, status {result['status']}", flush=True)
    for row in result["rows"]:
        print("  " + "  ".join(f"{name} {_short(value)}" for name, value in row.items()))
    if "error" in result:
        print(result["error"])


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if isinstance(value, dict):
        return "(" + ", ".join(f"{name} {_short(inner)}" for name, inner in value.items()) + ")"
    return f"[{len(value)}]" if isinstance(value, list) else str(value)


def main() -> None:
    """Run the parts one after the other, and write what they found after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--parts", type=lambda text: text.split(","))
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--without", type=lambda text: text.split(","), default=[])
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := set(options.parts or ()) - set(PARTS):
        parser.error(f"--parts: no {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if options.part:
        # With None in its place an import fails as if it were not installed.
        with mock.patch.dict(sys.modules, dict.fromkeys(filter(None, options.without))):
            for row in rows_of(options.part, options.until, is_dry=options.dry_run):
                print(json.dumps(row), flush=True)
        return
    sweep(options)


def sweep(options: argparse.Namespace) -> None:
    """Run the parts that are asked for."""
    ends = time.monotonic() + 60 * options.minutes
    content: dict[str, Any] = {"about": _about(), "parts": {}}
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / ("h200_dry.json" if options.dry_run else "h200.json")
    spare = max(0.0, 60 * options.minutes - sum(PARTS.values()))
    for part in options.parts or (DRY_PARTS if options.dry_run else tuple(PARTS)):
        left = ends - time.monotonic() - _END
        allowed = left if options.dry_run or options.parts else min(left, PARTS[part] + spare)
        start = time.monotonic()
        if left < 2 * _END:
            result = {"rows": [], "status": "no time was left", "seconds": 0.0}
        else:
            result = run_part(part, allowed, options)
            spare = max(0.0, spare + PARTS[part] - (time.monotonic() - start))
        content["parts"][part] = result
        print_part(part, result)
        path.write_text(json.dumps(content, indent=1) + "\n")
    steps = report.step_rows(content)
    if steps:
        report.print_table(steps)
        try:
            report.plot(steps, path.with_suffix(".svg"))
        except ImportError as error:
            print(f"no plot, as {error.name} is not installed")
    print(f"\nwritten to {path}")


def _about() -> dict[str, Any]:
    import torch

    from runtime import provenance

    found: dict[str, Any] = {"versions": provenance.versions()}
    if torch.cuda.is_available():
        found |= {"gpu": torch.cuda.get_device_name(), "cudnn": torch.backends.cudnn.version()}
    return found


if __name__ == "__main__":
    main()
