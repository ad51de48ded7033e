"""Real tokens per second of whole training processes on short documents: padded, unpadded, packed.

Every process trains the same model on the same documents, the same number of positions a step,
in turns. padded: one document to a row, attention and MLP run on the padding too. unpadded: the
same rows, padding dropped before the first layer. packed: whole documents side by side in a row
(best_fit). Tokens are those of the texts, without padding; time is that between the first and the
last step. Prints the medians and ratios; --json writes them.

    python benchmarks/short_documents.py DATA [--objective masked_lm] [--turns 3]

DATA: a directory that data_prep wrote, such as the Tang poems by characters.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from runtime import provenance
from runtime.records import read_metrics

ROOT = Path(__file__).resolve().parent.parent
MODES = {"padded": "padded", "unpadded": "padded", "packed": "best_fit"}
MODELS = {
    "masked_lm": ["model.preset=bert-mini", "model.max_seq_len=512"],
    "causal_lm": ["model.preset=llama-tiny", "model.d_model=256", "model.max_seq_len=512"],
}


def train(mode: str, arguments: list[str]) -> None:
    """Run one training process; "padded" is the trunk without its own unpadding."""
    from model.transformer import Transformer
    from pretrain.__main__ import main
    from runtime.errors import leave

    Transformer.unpads = mode != "padded"
    leave(main(arguments))


def tokens_per_second(mode: str, options: argparse.Namespace, scratch: Path) -> float:
    """Train some steps in a process of its own and read its records."""
    run = scratch / f"{mode}-{len(list(scratch.iterdir()))}"
    # Padded rows hold fewer tokens: as many positions, and so as much work without unpadding.
    arguments = [
        f"objective={options.objective}",
        *MODELS[options.objective],
        f"data.train={options.data}",
        f"data.packing={MODES[mode]}",
        "data.seq_len=512",
        f"batch.global_batch_size={options.batch_size}",
        f"steps={options.steps}",
        "schedule.warmup_steps=0",
        f"precision={options.precision}",
        "evaluate.every_steps=0",
        "checkpoint.every_steps=0",
        "log.every_steps=1",
        "log.tensorboard=false",
        f"run.dir={run}",
    ]
    config = scratch / "empty.yaml"
    config.write_text("run: {name: benchmark}\n")
    command = [sys.executable, str(Path(__file__)), "--child", mode, str(config), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    records = [r for r in read_metrics(run / "metrics.jsonl") if "tokens_per_second" in r]
    seconds = sum(
        (now["tokens_seen"] - before["tokens_seen"]) / now["tokens_per_second"]
        for before, now in pairwise(records)
    )
    return (records[-1]["tokens_seen"] - records[0]["tokens_seen"]) / seconds


def main() -> None:
    """Measure and print."""
    if sys.argv[1:2] == ["--child"]:
        train(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--objective", choices=MODELS, default="masked_lm")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    found: dict[str, list[float]] = {mode: [] for mode in MODES}
    with tempfile.TemporaryDirectory() as scratch:
        for _ in range(options.turns):
            for mode in MODES:
                found[mode].append(tokens_per_second(mode, options, Path(scratch)))
    medians = {mode: statistics.median(rates) for mode, rates in found.items()}
    ratios = {
        mode: statistics.median(a / b for a, b in zip(found[mode], found["padded"], strict=True))
        for mode in MODES
    }
    for mode in MODES:
        print(f"{mode:<10} {medians[mode]:10,.0f} tokens/s  {ratios[mode]:5.2f} × padded")
    if options.json:
        result = {
            "script": "short_documents.py",
            "objective": options.objective,
            "precision": options.precision,
            "batch_size": options.batch_size,
            "turns": options.turns,
            "median_tokens_per_second": {k: round(v, 1) for k, v in medians.items()},
            "ratio_to_padded": {k: round(v, 3) for k, v in ratios.items()},
            "versions": provenance.versions(),
        }
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
