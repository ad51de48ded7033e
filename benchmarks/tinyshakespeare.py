"""tinyshakespeare on a CPU: our shipped config against nanoGPT's CPU preset, in turn.

The peer is the model and loop of nanoGPT's README for a CPU, written anew for this purpose with its
documented settings: 4 layers of width 128 without biases, context 64, batch 12, 2000 iterations,
fp32, unfused AdamW, 20 + 20 evaluation batches every 250 iterations. It writes no checkpoint.

    python benchmarks/tinyshakespeare.py DATA [--runs 3] [--json FILE]

DATA is what data_prep/configs/tinyshakespeare-char.yaml prepares. Wall time is that of the whole
process, from command to exit; the losses are nats per character over the whole validation split.
The first run has each side's own seed, every further one the next number.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

ITERATIONS, BATCH, CONTEXT, WARMUP, PEAK = 2000, 12, 64, 100, 1e-3
PEER_SEED = 1337


def peer(data: Path, seed: int) -> None:
    """Train nanoGPT's preset and print the loss on the whole validation split."""
    import torch

    from benchmarks.peers import nanogpt
    from data_prep.shards import Shards
    from model.config import ModelConfig

    torch.manual_seed(seed)
    train, valid = (
        torch.from_numpy(s.read(0, s.tokens)).long()
        for s in (Shards(data, "train"), Shards(data, "valid"))
    )
    vocab = Shards(data).vocab_size
    shape = ModelConfig(
        family="gpt2", n_layers=4, n_heads=4, d_model=128, vocab_size=vocab, max_seq_len=CONTEXT
    )
    net = nanogpt.Gpt(shape, bias=False)
    nanogpt.initialise(net)
    optimizer = torch.optim.AdamW(nanogpt.decaying(net, 0.1), lr=PEAK, betas=(0.9, 0.99))

    def sample(text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        starts = torch.randint(len(text) - CONTEXT, (BATCH,))
        rows = torch.stack([text[s : s + CONTEXT + 1] for s in starts])
        return rows[:, :-1], rows[:, 1:].contiguous()

    for iteration in range(ITERATIONS):
        if iteration % 250 == 0:
            with torch.no_grad():
                for text in (train, valid):
                    sum(net(*sample(text)).item() for _ in range(20))
        lr = PEAK * (iteration + 1) / WARMUP
        if iteration >= WARMUP:
            progress = (iteration - WARMUP) / (ITERATIONS - WARMUP)
            lr = 1e-4 + 0.5 * (1 + math.cos(math.pi * progress)) * (PEAK - 1e-4)
        for group in optimizer.param_groups:
            group["lr"] = lr
        loss = net(*sample(train))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()  # it logs every iteration
    print(json.dumps({"valid_loss": _whole_loss(net, valid)}))


def _whole_loss(net: Any, text: Any) -> float:
    import torch

    rows = (len(text) - 1) // CONTEXT
    inputs = text[: rows * CONTEXT].view(rows, CONTEXT)
    targets = text[1 : rows * CONTEXT + 1].view(rows, CONTEXT)
    with torch.no_grad():
        pairs = zip(inputs.split(64), targets.split(64), strict=True)
        total = sum(net(i, t).item() * len(i) for i, t in pairs)
    return total / rows


def run_peer(data: Path, seed: int) -> dict[str, float]:
    """One whole process of the peer."""
    start = time.perf_counter()
    command = [sys.executable, __file__, str(data), "--peer", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    wall = time.perf_counter() - start
    return {"seed": seed, "wall_s": wall, **json.loads(done.stdout)}


def run_ours(data: Path, seed: int) -> dict[str, float]:
    """One whole process of `python -m pretrain` on the shipped config."""
    with tempfile.TemporaryDirectory() as scratch:
        start = time.perf_counter()
        subprocess.run(
            [
                *(sys.executable, "-m", "pretrain", "pretrain/configs/tinyshakespeare-cpu.yaml"),
                *(f"data.train={data}", f"run.dir={scratch}", f"run.seed={seed}"),
            ],
            cwd=ROOT,
            check=True,
            capture_output=True,
        )
        wall = time.perf_counter() - start
        records = [json.loads(line) for line in (Path(scratch) / "metrics.jsonl").open()]
    last = [r for r in records if "valid_loss" in r][-1]
    found = {"valid_loss": last["valid_loss"], "tokens": last["tokens_seen"]}
    return {"seed": seed, "wall_s": wall, **found}


def main() -> None:
    """Run both in turn, print and store the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peer", type=int, metavar="SEED", help="be the peer (for the script)")
    options = parser.parse_args()
    data = options.data.resolve()
    if options.peer is not None:
        peer(data, options.peer)
        return
    pairs = []
    for number in range(options.runs):
        pairs.append((run_peer(data, PEER_SEED + number), run_ours(data, number)))
        print(f"run {number + 1}: peer {pairs[-1][0]}, ours {pairs[-1][1]}", flush=True)
    result = {
        "peer_wall_s": statistics.median(p["wall_s"] for p, _ in pairs),
        "ours_wall_s": statistics.median(o["wall_s"] for _, o in pairs),
        "wall_ratio": statistics.median(o["wall_s"] / p["wall_s"] for p, o in pairs),
        "peer_valid_loss": statistics.mean(p["valid_loss"] for p, _ in pairs),
        "ours_valid_loss": statistics.mean(o["valid_loss"] for _, o in pairs),
        "ours_tokens": pairs[0][1]["tokens"],
        "peer_tokens": ITERATIONS * BATCH * CONTEXT,
        "cores": len(os.sched_getaffinity(0)),
        "runs": pairs,
    }
    print(json.dumps({k: v for k, v in result.items() if k != "runs"}, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
