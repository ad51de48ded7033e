"""Tokens per CPU-second of the loader from the page cache, beside numpy's memmap and `datasets`.

All three give the same batches of int64 inputs and targets for next-token prediction: the loader in
its shuffled order; a loop over a memory-mapped array that copies windows in file order, which is
what the memory allows; Hugging Face's `datasets`, an Arrow file of rows of seq_len + 1 tokens read
in shuffled order with_format("torch"). One process and one thread, in turns; prints medians.

Also: how long opening a directory of a trillion tokens (8,000 shards, sparse files) takes, and the
memory of it, in a process of its own.

    python benchmarks/data_loader.py DATA [--turns 5] [--json FILE]

DATA: a directory that data_prep wrote.
"""

import argparse
import json
import resource
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from data_prep import manifest
from data_prep.loader import Loader
from data_prep.shards import Shards
from runtime import provenance

ROOT = Path(__file__).resolve().parent.parent
BATCH = 32
SHARDS, TOKENS, DOCUMENTS = 8000, 125_000_000, 180_000  # each shard's tokens and documents


def ours(data: Path, seq_len: int) -> Iterator[Any]:
    """The loader."""
    return iter(Loader([(data, 1.0)], seq_len=seq_len, global_batch_size=BATCH, seed=1))


def limit(data: Path, seq_len: int) -> Iterator[Any]:
    """Windows in file order, copied from one shard's memory map."""
    shard = max(data.glob("train*.bin"), key=lambda path: path.stat().st_size)
    tokens = np.memmap(shard, dtype=manifest.load(data).dtype, mode="r")
    rows = (len(tokens) - 1) // seq_len
    number = 0
    while True:
        inputs = np.empty((BATCH, seq_len), np.int64)
        targets = np.empty((BATCH, seq_len), np.int64)
        for row in range(BATCH):
            start = (number % rows) * seq_len
            inputs[row] = tokens[start : start + seq_len]
            targets[row] = tokens[start + 1 : start + seq_len + 1]
            number += 1
        yield {"input_ids": torch.from_numpy(inputs), "targets": torch.from_numpy(targets)}


def peer(data: Path, seq_len: int, scratch: Path) -> Iterator[Any]:
    """Hugging Face's datasets: the same rows in an Arrow file."""
    import datasets  # the benchmark's own; no part of the library

    shards = Shards(data)
    rows = min((shards.tokens - 1) // seq_len, 20_000_000 // seq_len)
    table = [shards.read(row * seq_len, seq_len + 1) for row in range(rows)]
    datasets.Dataset.from_dict({"tokens": table}).save_to_disk(scratch / str(seq_len))
    rows_of = datasets.load_from_disk(scratch / str(seq_len)).with_format("torch")
    order = np.random.default_rng(1)
    while True:
        batch = rows_of[order.integers(0, rows, BATCH)]["tokens"]
        batch = batch if isinstance(batch, torch.Tensor) else torch.stack(batch)
        yield {"input_ids": batch[:, :-1].contiguous(), "targets": batch[:, 1:].contiguous()}


def speed(batches: Iterator[Any], seq_len: int, seconds: float = 0.7) -> float:
    """Million tokens per CPU-second."""
    for _ in range(3):
        next(batches)
    count, begin = 0, time.process_time()
    while time.process_time() - begin < seconds:
        next(batches)
        count += BATCH * seq_len
    return count / (time.process_time() - begin) / 1e6


def make_large(directory: Path) -> None:
    """A trillion tokens that take no space."""
    unhashed = "0" * 64
    shards: list[dict[str, Any]] = []
    for number in range(SHARDS):
        sizes = {"bin": 2 * TOKENS, "idx": 34 + 12 * DOCUMENTS + 8 * (DOCUMENTS + 1)}
        names = {kind: f"train_{number:05d}.{kind}" for kind in sizes}
        for kind, size in sizes.items():
            with (directory / names[kind]).open("wb") as file:
                if kind == "idx":
                    head = (b"MMIDIDX\0\0", 1, 8, DOCUMENTS, DOCUMENTS + 1)
                    file.write(struct.pack("<9sQBQQ", *head))
                file.truncate(size)
        of = {k: {"file": names[k], "bytes": sizes[k], "sha256": unhashed} for k in sizes}
        counts = {"split": "train", "documents": DOCUMENTS, "tokens": TOKENS}
        shards.append({**of["bin"], **counts, "index": of["idx"]})
    small = ("tokenizer.json", "tokenizer_config.json", "quarantine.jsonl")
    entry = {name: {"file": name, "bytes": 0, "sha256": unhashed} for name in small}
    for name in small:
        (directory / name).write_bytes(b"")
    vocabulary = {"vocab_size": 32_000, "eod": "<eod>", "eod_id": 0}
    total = {"documents": DOCUMENTS * SHARDS, "tokens": TOKENS * SHARDS}
    listed = {
        **{"schema": 1, "fingerprint": unhashed, "dtype": "uint16", **total, "dropped": {}},
        **{"splits": {"train": total}, "shards": shards, "sources": [], "plan": {}},
        "tokenizer": {**entry[small[0]], "config": entry[small[1]], **vocabulary},
        "quarantine": entry[small[2]],
    }
    (directory / manifest.NAME).write_bytes(manifest.to_json(listed))


def opening(directory: Path) -> dict[str, float]:
    """Seconds until a directory is open, and the process's peak memory; without torch."""
    code = (
        "import sys, time, json; from data_prep.shards import Shards\n"
        "from data_prep.windows import Windows; from data_prep.samples import Layout\n"
        "begin = time.perf_counter(); shards = Shards(sys.argv[1])\n"
        "Windows(shards, Layout('concat', 4096), 0); took = time.perf_counter() - begin\n"
        # Not ru_maxrss, which a process inherits from the one that started it.
        "status = open('/proc/self/status').read()\n"
        "peak = int(status.partition('VmHWM:')[2].split()[0]) / 1e3\n"
        "print(json.dumps({'tokens': shards.tokens, 'seconds': took, 'peak_mb': peak}))"
    )
    command = [sys.executable, "-c", code, str(directory)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {"versions": provenance.versions(), "million_tokens_per_cpu_s": {}}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        for seq_len in (1024, 4096):
            ways: dict[str, Callable[[], Iterator[Any]]] = {
                "ours": lambda n=seq_len: ours(options.data, n),
                "numpy": lambda n=seq_len: limit(options.data, n),
                "datasets": lambda n=seq_len: peer(options.data, n, scratch),
            }
            open_ones = {way: make() for way, make in ways.items()}
            turns: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(options.turns):
                for way, batches in open_ones.items():
                    turns[way].append(speed(batches, seq_len))
            medians = {way: statistics.median(found) for way, found in turns.items()}
            results["million_tokens_per_cpu_s"][seq_len] = medians
            print(f"seq_len {seq_len}: {medians}")
        large = scratch / "large"
        large.mkdir()
        make_large(large)
        found = [opening(large) for _ in range(options.turns)]
        results["opening"] = {key: statistics.median(one[key] for one in found) for key in found[0]}
        print(f"opening: {results['opening']}")
    results["peak_mb_of_this_process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    if options.json:
        options.json.write_text(json.dumps(results, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
