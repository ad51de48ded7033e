"""What a save costs the loop, how fast it is written, and how long a resume takes.

In turns, so that a machine that slows down slows all: a save in the foreground, the same save in
the background (the stall is the time until training may go on), a plain write of as many bytes to
the same disk, a plain sha256 of as many bytes in memory, a resume with its files out of the page
cache, and a plain read and sha256 of the same files, out of the cache too. Medians of the turns;
where there are several ranks, the slowest one's time.

    python benchmarks/checkpoint.py [--preset llama-60m] [--ranks 1 2] [--turns 5] [--json FILE]
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from model import build, preset
from model.heads import Model
from model.init import parameter_groups
from pretrain.export import ModelExport
from runtime import dist, provenance, sections
from runtime.checkpoint.hashed import PIECE_BYTES
from runtime.checkpoint.reader import TrainingState
from runtime.checkpoint.saver import Saver
from runtime.deepspeed_config import deepspeed_config
from runtime.dist import Ranks
from runtime.engine import Engine, partitioned_construction
from runtime.errors import leave
from runtime.optim import build_optimizer
from runtime.run_directory import newest_checkpoint


def new_engine(options: argparse.Namespace, ranks: Ranks) -> Engine:
    """An engine after one step, so that there are moments to save."""
    config = deepspeed_config(
        sections.Parallel(zero_stage=options.zero_stage),
        "fp32",
        micro_batch_size=1,
        accumulation_steps=1,
        world_size=ranks.world_size,
        max_grad_norm=1.0,
        device_type=ranks.device.type,
    )
    with partitioned_construction(config, ranks):
        net = build(preset(options.preset))
    optimizer = build_optimizer(parameter_groups(net, 0.1), sections.Optim())
    engine = Engine(net.to(ranks.device), optimizer, config, ranks)
    ids = torch.randint(0, 100, (1, 17))
    engine.train_step(
        [{"input_ids": ids[:, :-1], "targets": ids[:, 1:]}],
        lambda module, batch: module(**batch).loss / ranks.world_size,
        1e-4,
    )
    return engine


def slowest(action: Callable[..., object], *arguments: object) -> float:
    """Seconds of the slowest rank, all of which begin together."""
    dist.gather_text("")
    begun = time.perf_counter()
    action(*arguments)
    took = time.perf_counter() - begun
    return max(float(text) for text in dist.gather_text(str(took)))


def write_plainly(path: Path, size: int) -> None:
    """As many bytes as a save's, in its pieces, without a hash."""
    piece = memoryview(bytearray(os.urandom(PIECE_BYTES)))
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for start in range(0, size, PIECE_BYTES):
        os.write(handle, piece[: min(PIECE_BYTES, size - start)])
        os.posix_fadvise(handle, start, PIECE_BYTES, os.POSIX_FADV_DONTNEED)
    os.fsync(handle)
    os.close(handle)


def hash_plainly(size: int) -> None:
    """As many bytes in memory, one thread."""
    piece, digest = os.urandom(PIECE_BYTES), hashlib.sha256()
    for start in range(0, size, PIECE_BYTES):
        digest.update(memoryview(piece)[: min(PIECE_BYTES, size - start)])


def out_of_the_cache(files: list[Path]) -> None:
    """Let Linux forget what it holds of files, which are on the disk already."""
    for path in files:
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def read_and_hash(files: list[Path]) -> None:
    """Each file once, one thread."""
    for path in files:
        with path.open("rb") as file:
            hashlib.file_digest(file, "sha256")


def measure(options: argparse.Namespace, root: Path) -> dict[str, list[float]]:
    """Seconds of each turn, by what they are of; bytes of a save. Run as a rank."""
    ranks = dist.init("cpu", 600)
    engine = new_engine(options, ranks)
    tokenizer = Path(options.tokenizer)
    assert isinstance(engine.module, Model)
    export = ModelExport(engine.module, ranks, tokenizer, None)
    savers = {
        # Nothing is deleted, nor verified for that, while a save is timed.
        name: Saver(
            root,
            ranks,
            sections.Checkpoint(background=name == "async", keep_last=0),
            say=lambda _: None,
            beat=lambda: None,
        )
        for name in ("sync", "async")
    }
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    for turn in range(options.turns + 1):  # the first takes memory, and is not counted
        if turn == 1:
            found.clear()
        for name, saver in savers.items():
            step = 2 * turn + (name == "async") + 1
            begun = time.perf_counter()
            note(name, slowest(saver.save, step, engine, export, {"step": step}))
            if name == "async":
                while saver.committed != step and not saver.failed():
                    time.sleep(0.002)
                note("async_committed", time.perf_counter() - begun)
            saver.wait()
        files = sorted(p for p in (root / f"step_{step:08d}").rglob("*") if p.is_file())
        total = sum(path.stat().st_size for path in files)
        note("bytes", total)
        share = total // ranks.world_size
        scratch = root / f"plain_{ranks.rank}"
        note("write", slowest(write_plainly, scratch, share))
        note("sha256", slowest(hash_plainly, share))
        scratch.unlink()

        def resume() -> None:
            checkpoint = newest_checkpoint(root, ranks)
            assert checkpoint is not None
            state = TrainingState(checkpoint.path)
            engine.load_optimizer_slices(state.read, state.values["optimizer_steps"])

        out_of_the_cache(files)
        note("resume", slowest(resume))
        out_of_the_cache(files)
        own = files[ranks.rank :: ranks.world_size]
        note("read_and_hash", slowest(read_and_hash, own))
        if ranks.is_main:
            for path in root.glob("step_*"):
                shutil.rmtree(path)
    dist.shutdown()
    return found if ranks.is_main else {}


def as_ranks(options: argparse.Namespace, ranks: int) -> dict[str, list[float]]:
    """Start the ranks of one measurement and take what the main one prints."""
    root = Path(tempfile.mkdtemp(dir=options.dir))
    arguments = [sys.executable, __file__, "--root", str(root), "--turns", str(options.turns)]
    arguments += ["--preset", options.preset, "--zero-stage", str(options.zero_stage)]
    arguments += ["--tokenizer", options.tokenizer]
    group = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1"}
    group |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(options.port)}
    try:
        started = [
            subprocess.Popen(
                arguments,
                env={**os.environ, **group, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(ranks)
        ]
        outputs = [process.communicate()[0] for process in started]
    finally:
        shutil.rmtree(root)
    lines = [line for text in outputs for line in text.splitlines() if line.startswith('{"sync"')]
    result: dict[str, list[float]] = json.loads(lines[0])
    return result


def summary(found: dict[str, list[float]]) -> dict[str, float]:
    """Medians, and the three ratios of the targets, each the median of the turns' own."""
    mid = {name: statistics.median(values) for name, values in found.items()}

    def ratio(name: str, of: list[float]) -> float:
        return statistics.median(a / b for a, b in zip(found[name], of, strict=True))

    written = [a - b for a, b in zip(found["async_committed"], found["async"], strict=True)]
    slower = [max(a, b) for a, b in zip(found["write"], found["sha256"], strict=True)]
    return {
        **mid,
        "stall_of_sync": ratio("async", found["sync"]),
        "of_the_limit": statistics.median(a / b for a, b in zip(slower, written, strict=True)),
        "resume_of_read_and_hash": ratio("resume", found["read_and_hash"]),
    }


def main() -> None:
    """Measure with each number of ranks; print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="llama-60m")
    parser.add_argument("--zero-stage", type=int, default=1)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--tokenizer", required=True, help="a directory with a tokenizer.json")
    parser.add_argument("--dir", default=".", help="on the disk to measure")
    parser.add_argument("--port", type=int, default=29517)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.root is not None:
        found = measure(options, options.root)
        if found:
            print("\n" + json.dumps(found), flush=True)
        leave(0)
    results = {}
    for ranks in options.ranks:
        found = as_ranks(options, ranks)
        results[str(ranks)] = {"summary": summary(found), "turns": found}
        for name, value in summary(found).items():
            print(f"{ranks} ranks: {name} {value:.3f}", flush=True)
    if options.json is not None:
        about = {"preset": options.preset, "zero_stage": options.zero_stage, "turns": options.turns}
        content = {**about, "versions": provenance.versions(), "ranks": results}
        options.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
