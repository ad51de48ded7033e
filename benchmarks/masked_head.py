"""What a BERT step saves when the masked-LM head is computed on the predicted tokens alone.

Both steps train the same model on the same batches, in turns, so that a machine that slows down
slows both; the peer computes all logits and lets the loss ignore most of them, as transformers'
BertForMaskedLM does. Prints the median of the turns; --json writes it.

    python benchmarks/masked_head.py [--preset bert-mini] [--vocab-size 32768] [--turns 11]
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from model import build, preset
from model.init import parameter_groups
from runtime import provenance, sections
from runtime.engine import DTYPES
from runtime.optim import build_optimizer

MASKED = 0.15


def batch(options: argparse.Namespace) -> dict[str, torch.Tensor]:
    """Random tokens of which a share is predicted, (B, T) each."""
    shape = (options.batch_size, options.seq_len)
    ids = torch.randint(5, options.vocab_size, shape)
    targets = ids.masked_fill(torch.rand(shape) >= MASKED, -100)
    return {"input_ids": ids, "targets": targets}


def make_step(options: argparse.Namespace, *, predicted_only: bool) -> Callable[[], None]:
    """One optimizer step; the two kinds differ in nothing but the rows that the head sees."""
    torch.manual_seed(0)
    config = preset(options.preset, vocab_size=options.vocab_size, dropout=0.0)
    net = build(config).to(DTYPES[options.precision])
    optim = sections.Optim()
    optimizer = build_optimizer(parameter_groups(net, optim.weight_decay), optim)
    name = "targets" if predicted_only else "labels"

    def step() -> None:
        made = batch(options)
        loss = net(made["input_ids"], **{name: made["targets"]}).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        float(loss.detach())

    return step


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="bert-mini")
    parser.add_argument("--vocab-size", type=int, default=32768)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--turns", type=int, default=11)
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    steps = {
        "all positions": make_step(options, predicted_only=False),
        "predicted positions": make_step(options, predicted_only=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(options.turns + 1):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if turn:  # the first turn warms up
                seconds[name].append(time.perf_counter() - started)
    whole, rows = (seconds[name] for name in steps)
    saved = statistics.median(1 - b / a for a, b in zip(whole, rows, strict=True))
    for name, values in seconds.items():
        print(f"{name:<20} {1000 * statistics.median(values):8.1f} ms a step")
    print(f"saved: {saved:.1%} of the step (median of {options.turns} turns)")
    if options.json:
        result = {
            "script": "masked_head.py",
            "options": {k: v for k, v in vars(options).items() if k != "json"},
            "median_seconds": {n: statistics.median(v) for n, v in seconds.items()},
            "saved_share": saved,
            "versions": provenance.versions(),
        }
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
