"""Memory and scaling of whole data preparation runs on an input of any size.

Text of the given files is made into so many gigabytes of different documents: paragraphs of all of
them, shuffled, each line numbered. Each row is one run with one or two workers in a process of its
own, alternating; memory is the peak of the sum over all its processes (proportional set size,
sampled every 0.2 s), so that pages which they share count once.

    python benchmarks/data_prep_scale.py FILE.jsonl.gz… --gigabytes 3 --rounds 3
"""

import argparse
import gzip
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import psutil

ROOT = Path(__file__).resolve().parent.parent
RULES: dict[str, dict[str, Any]] = {
    "tokenise": {},
    "rules and duplicates": {
        "clean": ["normalize", "gopher_quality", "gopher_repetition"],
        "dedup": {"exact": True, "near": True, "paragraphs": True},
    },
}


def main() -> None:
    """Make the input, run every row, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rules", choices=RULES, default="tokenise")
    parser.add_argument("--folder", type=Path, help="where to work; else a temporary folder")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        size = make_input(options.files, folder / "in", int(options.gigabytes * 1e9))
        prepare_tokenizer(options.files, folder)
        rows: dict[int, list[dict[str, float]]] = {1: [], 2: []}
        for _ in range(options.rounds):
            for workers, found in rows.items():
                found.append(measure(folder, workers, RULES[options.rules]))
                print(f"{workers} workers: {found[-1]}", flush=True)
    result = summary(rows, size) | {"rules": options.rules}
    print(json.dumps(result, indent=2))
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


def make_input(files: list[Path], folder: Path, wanted: int) -> int:
    """Write JSONL files of about 250 MB each; the bytes written."""
    folder.mkdir()
    paragraphs = [p for file in files for text in texts(file) for p in text.split("\n\n") if p]
    rng = random.Random(0)
    written = 0
    number = 0
    while written < wanted:
        with (folder / f"part_{number:03}.jsonl").open("wb") as stream:
            number += 1
            while stream.tell() < min(250_000_000, wanted - written):
                chosen = rng.sample(paragraphs, rng.randint(4, 40))
                text = "\n\n".join(f"{rng.randrange(10**9)} {p}" for p in chosen)
                stream.write(orjson.dumps({"text": text}, option=orjson.OPT_APPEND_NEWLINE))
            written += stream.tell()
    return written


def texts(file: Path) -> Iterator[str]:
    """The documents of a JSONL file."""
    with gzip.open(file) as stream:
        for line in stream:
            yield orjson.loads(line)["text"]


def prepare_tokenizer(files: list[Path], folder: Path) -> None:
    """Train the tokenizer that every run uses."""
    config = {
        "input": {"paths": [str(file.resolve()) for file in files]},
        "output": str(folder / "tokenizer"),
        "tokenizer": {"train": {"vocab_size": 32000}},
    }
    run(folder, config)


def run(folder: Path, config: dict[str, Any]) -> subprocess.Popen[bytes]:
    """Run data preparation to its end."""
    process = start(folder, config)
    if process.wait():
        raise SystemExit(f"data_prep failed with {process.returncode}")
    return process


def start(folder: Path, config: dict[str, Any]) -> subprocess.Popen[bytes]:
    """Begin a run in a process of its own."""
    path = folder / "config.yaml"
    path.write_text(json.dumps(config))
    command = [sys.executable, "-m", "data_prep", "run", str(path)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)


def measure(folder: Path, workers: int, rules: dict[str, Any]) -> dict[str, float]:
    """One run: seconds, CPU-seconds, and the peak memory of all its processes."""
    output = folder / "out"
    shutil.rmtree(output, ignore_errors=True)
    config = {
        "input": {"paths": [str(folder / "in")]},
        "output": str(output),
        "tokenizer": {"path": str(folder / "tokenizer")},
        "workers": workers,
        **rules,
    }
    before = os.times()
    began = time.monotonic()
    process = start(folder, config)
    peak = 0
    while process.poll() is None:
        peak = max(peak, proportional_bytes(process.pid))
        time.sleep(0.2)
    seconds = time.monotonic() - began
    after = os.times()
    if process.returncode:
        raise SystemExit(f"data_prep failed with {process.returncode}")
    cpu = after.children_user + after.children_system
    cpu -= before.children_user + before.children_system
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_bytes": peak}


def proportional_bytes(pid: int) -> int:
    """Memory of a process and of those it started; shared pages count once."""
    total = 0
    try:
        tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return 0
    for process in tree:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue  # it has just ended
    return total


def summary(rows: dict[int, list[dict[str, float]]], size: int) -> dict[str, Any]:
    """Medians, and how two workers compare with one."""
    found: dict[str, Any] = {"input_bytes": size}
    for workers, runs in rows.items():
        seconds = statistics.median(run["seconds"] for run in runs)
        found[f"workers_{workers}"] = {
            "seconds": seconds,
            "megabytes_per_second": size / 1e6 / seconds,
            "megabytes_per_cpu_second": size
            / 1e6
            / statistics.median(run["cpu_seconds"] for run in runs),
            "peak_megabytes": max(run["peak_bytes"] for run in runs) / 1e6,
        }
    ratios = [a["seconds"] / b["seconds"] for a, b in zip(rows[1], rows[2], strict=True)]
    found["two_workers_over_one"] = statistics.median(ratios)
    return found


if __name__ == "__main__":
    main()
