"""One training step of ours against nanoGPT's loop, transformers' Trainer and litgpt.

Each peer lives in a process of its own and steps when told, so that turns alternate step by step
and memory is each peer's own. All begin with the same weights and see the same batches; losses
after the last step say whether they computed the same. Prints a table and whether the targets are
met; writes both, and a plot, into benchmarks/results/.

    python benchmarks/train_step.py [--size 6.9m] [--peers DIR] [--turns 9] [--only ours,nanoGPT]

--peers: a folder with litgpt, which is installed there when missing. Without it litgpt's rows are
left out. Memory: `whole` is the process's largest resident set, compiling included; `step` the
largest after the warm-up, less what was resident when all was imported (GPU: reserved memory).
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.peers.process import Peer, PeerError, install
from benchmarks.peers.report import plot, print_table, targets
from benchmarks.peers.rows import Row, rows
from benchmarks.peers.shapes import SIZES, Work, write_first_weights
from model.flops import mfu, parameters
from runtime import hardware, provenance

RESULTS = Path(__file__).resolve().parent / "results"
LOSS_WITHIN = {"fp32": 2e-3, "bf16": 3e-2, "bf16-true": 3e-2}  # of ours, relative


def start(row: Row, options: argparse.Namespace, folder: Path) -> tuple[Peer, dict[str, float]]:
    """Start a peer and step it until it is warm."""
    told = {
        "size": options.size,
        "batch_size": options.batch_size,
        "device": options.device,
        "threads": options.threads,
        "weights": str(folder / f"{row.family}.safetensors"),
        "folder": str(folder),
        "cache": options.compile_cache and str(options.compile_cache.resolve()),
    }
    peer = Peer(row, told, options.peers)
    first = peer.ask("step 1")["seconds"]
    warm = peer.ask(f"step {options.warmup}")["seconds"]
    peak = peer.ask("memory")["peak_mb"]
    return peer, {"first_step_s": first, "compile_s": max(0.0, first - warm), "whole_mb": peak}


def measure(
    chosen: list[Row], options: argparse.Namespace, folder: Path
) -> dict[str, dict[str, Any]]:
    """Time one family's rows in turns; a row that fails says why."""
    found: dict[str, dict[str, Any]] = {}
    peers: dict[str, Peer] = {}
    for row in chosen:
        print(f"starting {row.key} …", file=sys.stderr, flush=True)
        try:
            peers[row.key], found[row.key] = start(row, options, folder)
        except PeerError as error:
            found[row.key] = {"failed": str(error)}
    order = list(peers)
    turns: dict[str, dict[str, list[float]]] = {k: {"seconds": [], "cpu_s": []} for k in order}
    for turn in range(options.turns):
        for key in order[turn % len(order) :] + order[: turn % len(order)]:
            if options.device == "cuda":
                peers[key].ask("step 1")  # takes back the memory that others had
            answer = peers[key].ask(f"step {options.steps}")
            for kind, values in turns[key].items():
                values.append(answer[kind])
            found[key]["loss"] = answer["loss"]
    for key, peer in peers.items():
        memory = peer.ask("memory")
        found[key] |= {"step_mb": memory["step_mb"], "turns_s": turns[key]["seconds"]}
        found[key]["turns_cpu_s"] = turns[key]["cpu_s"]
        if options.profile:
            options.profile.mkdir(parents=True, exist_ok=True)
            name = "".join(c if c.isalnum() else "-" for c in key)
            peer.ask(f"profile {options.profile.resolve() / name}.txt")
        peer.close()
    return found


def summary(row: Row, found: dict[str, Any], work: Work, device: torch.device) -> dict[str, Any]:
    """The row of the table: rates from the turns' median."""
    if "failed" in found:
        return {**row._asdict(), **found}
    tokens = work.batch_size * work.seq_len
    median = statistics.median(found["turns_s"])
    rate = tokens / median
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    used = mfu(rate, work.config(), work.seq_len, name)
    return {
        **row._asdict(),
        **found,
        "median_ms": median * 1e3,
        "min_ms": min(found["turns_s"]) * 1e3,
        "cpu_ms": statistics.median(found["turns_cpu_s"]) * 1e3,
        "tokens_per_second": rate,
        "mfu": used and used.full,
        "mfu_causal": used and used.causal,
    }


def check_losses(table: list[dict[str, Any]]) -> None:
    """Mark each row whose loss is not that of the first row of its family."""
    first = {row["family"]: row["loss"] for row in reversed(table) if "loss" in row}
    for row in table:
        if "loss" in row:
            expected = first[row["family"]]
            off = abs(row["loss"] - expected) / expected
            row["loss_agrees"] = off <= LOSS_WITHIN[row["precision"]]


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, help="default: 6.9m on a CPU, 124m on a GPU")
    parser.add_argument("--device", choices=["cpu", "cuda"])
    parser.add_argument("--batch-size", type=int, default=0, help="sequences; 0: the size's own")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--steps", type=int, default=3, help="steps per turn")
    parser.add_argument("--warmup", type=int, default=4, help="steps before the turns")
    parser.add_argument("--threads", type=int, default=hardware.usable_cores())
    parser.add_argument("--peers", type=Path, help="folder of peers that are not ours to install")
    parser.add_argument("--only", help="comma-separated parts of the rows' names")
    parser.add_argument("--profile", type=Path, help="folder for a table of operators per row")
    parser.add_argument("--compile-cache", type=Path, help="kept; compile times then say nothing")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    options.size = options.size or ("124m" if options.device == "cuda" else "6.9m")
    return options


def main() -> None:
    """Measure, print, and write."""
    options = arguments()
    if options.peers:
        install(options.peers)
    chosen = [
        row
        for row in rows(options.device)
        if not options.only or any(part in row.key for part in options.only.split(","))
    ]
    skipped = [row.key for row in chosen if row.peer == "litgpt" and not options.peers]
    chosen = [row for row in chosen if row.key not in skipped]
    works = {
        name: work._replace(batch_size=options.batch_size or work.batch_size)
        for name, work in SIZES[options.size].items()
    }
    load, found = [os.getloadavg()[0]], {}
    with tempfile.TemporaryDirectory() as folder:
        for family in dict.fromkeys(row.family for row in chosen):
            write_first_weights(works[family], Path(folder) / f"{family}.safetensors")
            rows_here = [row for row in chosen if row.family == family]
            found |= measure(rows_here, options, Path(folder))
    load.append(os.getloadavg()[0])
    device = torch.device(options.device)
    table = [summary(row, found[row.key], works[row.family], device) for row in chosen]
    check_losses(table)
    result = {
        "settings": {
            **{name: getattr(options, name) for name in ("size", "turns", "steps", "threads")},
            "tokens_per_step": {n: w.batch_size * w.seq_len for n, w in works.items()},
            "parameters": {name: parameters(work.config()) for name, work in works.items()},
            "device": torch.cuda.get_device_name()
            if device.type == "cuda"
            else hardware.cpu_name(),
            "load": load,
            "versions": provenance.versions(),
        },
        "left_out": skipped,
        "rows": table,
        "targets": targets(table),
    }
    print_table(result)
    options.results.mkdir(parents=True, exist_ok=True)
    name = f"train_step_{options.device}_{options.size}"
    (options.results / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    plot(result, options.results / f"{name}.svg")


if __name__ == "__main__":
    main()
