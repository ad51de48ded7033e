"""Fine-tuning against transformers' Trainer: real tokens per second and memory of whole processes.

Both train the same checkpoint on the same labelled file in fp32, with the same batch size and
optimizer, in turns, one process after the other: ours as `python -m finetune` does, the Trainer
with dynamic padding and batches of like length. The first tenth of the steps is not counted.
Memory is the largest resident set of the process.

    python benchmarks/finetune_throughput.py MODEL TRAIN.jsonl[.gz] [--turns 5] [--json FILE]
"""

import argparse
import contextlib
import gzip
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

KINDS = ("ours", "trainer")
MAX_LENGTH = 64


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a labelled file."""
    content = path.read_bytes()
    content = gzip.decompress(content) if path.suffix == ".gz" else content
    return [json.loads(line) for line in content.splitlines()]


class Meter:
    """Real tokens and seconds after the first steps."""

    def __init__(self, steps: int) -> None:
        self._steps, self._skipped = steps, max(1, steps // 10)
        self._done = self._tokens = 0
        self._began = 0.0

    def step(self, tokens: int) -> None:
        """Count a step that has just ended."""
        self._done += 1
        if self._done == self._skipped:
            self._began = time.perf_counter()
        elif self._done > self._skipped:
            self._tokens += tokens

    def result(self) -> dict[str, float]:
        """Tokens per second, and megabytes."""
        seconds = time.perf_counter() - self._began
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {"tokens_per_second": self._tokens / seconds, "memory_mb": memory / 1e6}


def ours(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Train as `python -m finetune` does."""
    import torch

    from finetune.config import FinetuneConfig
    from finetune.session import Session, start
    from runtime import dist
    from runtime.config import load

    (folder / "config.yaml").write_text(
        json.dumps(
            {
                "run": {"dir": str(folder / "run"), "device": "cpu"},
                "model": str(options.model),
                "task": {"max_length": MAX_LENGTH},
                "data": {"train": str(options.train), "dev_fraction": 0.01},
                "batch": {"global_batch_size": options.batch_size},
                "steps": options.steps,
                "precision": "fp32",
                "log": {"tensorboard": False},
            }
        )
    )
    torch.set_num_threads(options.threads)
    ranks = dist.init("cpu", 600)
    session: Session = start(
        load(FinetuneConfig, folder / "config.yaml", []), ranks, beat=lambda: None
    )
    meter = Meter(options.steps)
    for _ in range(options.steps):
        session.replicas.train_step(*session.micro_batches(), 5e-5)
        meter.step(session.plan.tokens(session.step))
        session.step += 1
    found = meter.result()
    dist.shutdown()
    return found


def trainer(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Train with transformers' Trainer."""
    import torch
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    torch.set_num_threads(options.threads)
    rows = read(options.train)
    names = {name: i for i, name in enumerate(sorted({row["label"] for row in rows}))}
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    encoded = tokenizer([row["text"] for row in rows], truncation=True, max_length=MAX_LENGTH)
    data = [
        {"input_ids": ids, "labels": names[row["label"]], "length": len(ids)}
        for ids, row in zip(encoded["input_ids"], rows, strict=True)
    ]
    net = AutoModelForSequenceClassification.from_pretrained(
        options.model, num_labels=len(names), dtype=torch.float32
    )
    meter, seen = Meter(options.steps), [0]
    padding = DataCollatorWithPadding(tokenizer)

    def collate(batch: list[dict[str, Any]]) -> Any:
        seen[0] = sum(row["length"] for row in batch)
        return padding([{k: v for k, v in row.items() if k != "length"} for row in batch])

    class Count(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            meter.step(seen[0])

    arguments = TrainingArguments(
        output_dir=str(folder / "run"),
        max_steps=options.steps,
        per_device_train_batch_size=options.batch_size,
        train_sampling_strategy="group_by_length",
        length_column_name="length",
        remove_unused_columns=False,
        use_cpu=True,
        learning_rate=5e-5,
        save_strategy="no",
        report_to=[],
        logging_steps=100_000,
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
    )
    Trainer(
        model=net, args=arguments, train_dataset=data, data_collator=collate, callbacks=[Count()]
    ).train()
    return meter.result()


def measure(kind: str, options: argparse.Namespace) -> dict[str, float]:
    """Train in a process of its own."""
    words = [sys.executable, __file__, str(options.model), str(options.train), "--worker", kind]
    for name in ("steps", "batch_size", "threads"):
        words += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{kind} failed:\n{done.stderr[-3000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure in turns and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("train", type=Path)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
            found = globals()[options.worker](options, Path(folder))
        print(json.dumps(found))
        return
    turns = [{kind: measure(kind, options) for kind in KINDS} for _ in range(options.turns)]
    medians = {
        kind: {
            name: statistics.median(turn[kind][name] for turn in turns) for name in turns[0][kind]
        }
        for kind in KINDS
    }
    ratios = {
        name: statistics.median(turn["ours"][name] / turn["trainer"][name] for turn in turns)
        for name in turns[0]["ours"]
    }
    for kind, values in medians.items():
        told = "  ".join(f"{name} {value:,.0f}" for name, value in values.items())
        print(f"{kind:8} {told}")
    print("ratio    " + "  ".join(f"{name} {value:.2f}" for name, value in ratios.items()))
    if options.json:
        settings = {name: getattr(options, name) for name in ("steps", "batch_size", "threads")}
        content = {"settings": settings, "medians": medians, "ratios": ratios, "turns": turns}
        options.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
