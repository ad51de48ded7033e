"""What `python -m launch check` predicts, beside what runs really take.

Memory on a CPU: the largest resident set (`ru_maxrss`, VmHWM of /proc) of each training process
from its start to its end, saves and evaluations included; the largest of the ranks counts. On a
GPU: the largest `memory_bytes` of metrics.jsonl, which is torch.cuda.max_memory_reserved(). Each
case is a run of `python -m pretrain` as anyone would start it. Cases marked as held out were not
looked at when the prediction was written; `round` 1 were, later, when it was corrected.

    python benchmarks/predictions.py [--only NAME …] [--device h200] [--json FILE]
    python benchmarks/predictions.py --again benchmarks/results/predictions_cpu.json

A FILE that exists keeps its other cases, and of those that are measured once more the error of the
first time. The second predicts once more what is already measured, and prints the table.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from launch.estimate.devices import find
from launch.estimate.pretraining import memory_of, training
from pretrain.config import PretrainConfig, check
from runtime.config import load

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "pretrain" / "configs" / "demo.yaml"
GPT = ["model.preset=gpt2-124m", "model.vocab_size=null", "model.max_seq_len=512"]
SMALL_GPT = [*GPT, "model.n_layers=8", "model.d_model=640", "model.n_heads=10"]
LLAMA = ["model.preset=llama-60m", "model.max_seq_len=512"]
BERT = ["objective=masked_lm", "model.max_seq_len=512"]


class Case(NamedTuple):
    """One run."""

    name: str
    overrides: list[str]
    ranks: int = 1
    round: int = 1  # 0: looked at from the beginning
    data: str = "plain"  # or "bert": with [MASK] and its like


def shape(batch: int, seq_len: int, *, micro: int | None = None, steps: int = 5) -> list[str]:
    """The batch, and a save in the middle of the run."""
    given = [f"batch.global_batch_size={batch}", f"data.seq_len={seq_len}", f"steps={steps}"]
    return [*given, *([f"batch.micro_batch_size={micro}"] if micro else [])]


CASES = [
    # Looked at while the prediction was written.
    Case("gpt2-45m fp32 zero-0", [*SMALL_GPT, *shape(2, 64), "precision=fp32",
         "parallel.zero_stage=0"], round=0),
    Case("gpt2-45m fp32 zero-1", [*SMALL_GPT, *shape(2, 64), "precision=fp32"], round=0),
    Case("gpt2-45m bf16 zero-1", [*SMALL_GPT, *shape(2, 64)], round=0),
    Case("gpt2-45m bf16 zero-2, accumulating", [*SMALL_GPT, *shape(4, 64, micro=2),
         "parallel.zero_stage=2"], round=0),
    Case("gpt2-45m bf16 zero-3", [*SMALL_GPT, *shape(2, 64), "parallel.zero_stage=3"],
         round=0),
    # Not looked at until the prediction stood; then it was corrected by three of them.
    Case("gpt2-91m bf16 zero-1", [*GPT, *shape(4, 256)]),
    Case("llama-60m bf16 zero-2, 2 ranks", [*LLAMA, *shape(4, 256), "parallel.zero_stage=2"],
         ranks=2),
    Case("llama-60m bf16 zero-3, 2 ranks, recomputing blocks", [*LLAMA, *shape(4, 512),
         "parallel.zero_stage=3", "parallel.activation_checkpointing=block"], ranks=2),
    Case("llama-60m fp32 zero-0, micro-batches of 8", [*LLAMA, *shape(8, 256), "precision=fp32",
         "parallel.zero_stage=0"]),
    Case("bert-small fp32 zero-1, 2 ranks, dropout 0.1", [*BERT, "model.preset=bert-small",
         *shape(16, 256), "precision=fp32"], ranks=2, data="bert"),
    Case("bert-medium bf16 zero-3, dropout 0", [*BERT, "model.preset=bert-medium",
         "model.dropout=0.0", *shape(8, 128), "parallel.zero_stage=3"], data="bert"),
    Case("gpt2-45m bf16 zero-2 muon, 2 ranks", [*SMALL_GPT, *shape(4, 128), "optim.name=muon",
         "parallel.zero_stage=2"], ranks=2),
    Case("gpt2-45m bf16 zero-1, optimizer offloaded", [*SMALL_GPT, *shape(2, 128),
         "parallel.offload=optimizer"]),
    Case("llama-60m bf16 zero-1 compiled, saved at the end", [*LLAMA, *shape(4, 256),
         "compile=true", "checkpoint.every_steps=0"]),
    Case("gpt2-91m fp32 zero-2, recomputing attention, accumulating", [*GPT,
         *shape(8, 256, micro=4, steps=4), "precision=fp32", "parallel.zero_stage=2",
         "parallel.activation_checkpointing=attention"]),
    # Not looked at until the corrected prediction stood.
    Case("gpt2-45m bf16 zero-1, 2 ranks", [*SMALL_GPT, *shape(8, 128, steps=3)], ranks=2, round=2),
    Case("llama-60m fp32 zero-2, 2 ranks, accumulating", [*LLAMA,
         *shape(8, 256, micro=2, steps=3), "precision=fp32", "parallel.zero_stage=2"], ranks=2,
         round=2),
    Case("gpt2-45m bf16 zero-2, compiled", [*SMALL_GPT, *shape(8, 128, steps=3), "compile=true",
         "parallel.zero_stage=2"], round=2),
    Case("bert-small bf16 zero-2, 2 ranks, recomputing the MLP, dropout 0.1", [*BERT,
         "model.preset=bert-small", *shape(16, 128, steps=3), "parallel.zero_stage=2",
         "parallel.activation_checkpointing=mlp"], ranks=2, round=2, data="bert"),
    Case("gpt2-45m bf16 zero-3, everything offloaded", [*SMALL_GPT, *shape(4, 128, steps=3),
         "parallel.zero_stage=3", "parallel.offload=all"], round=2),
    Case("llama-60m fp32 zero-1 muon", [*LLAMA, *shape(4, 128, steps=3), "precision=fp32",
         "optim.name=muon"], round=2),
    # Nor until it was corrected once more, by the first of those.
    Case("gpt2-91m bf16 zero-1, 2 ranks, accumulating", [*GPT,
         *shape(8, 128, micro=2, steps=3)], ranks=2, round=3),
    Case("llama-60m bf16 zero-3 muon, 2 ranks", [*LLAMA, *shape(4, 256, steps=3),
         "parallel.zero_stage=3", "optim.name=muon"], ranks=2, round=3),
    Case("bert-medium fp32 zero-0, 2 ranks, dropout 0.1", [*BERT, "model.preset=bert-medium",
         *shape(8, 128, steps=3), "precision=fp32", "parallel.zero_stage=0"], ranks=2, round=3,
         data="bert"),
    Case("llama-60m bf16 zero-1, 2 ranks, optimizer offloaded, recomputing blocks", [*LLAMA,
         *shape(8, 512, steps=3), "parallel.offload=optimizer",
         "parallel.activation_checkpointing=block"], ranks=2, round=3),
]  # fmt: skip


def config_of(case: Case, data: Path, run_dir: Path) -> list[str]:
    """The overrides of a run, with a save in its middle unless the case says otherwise."""
    return [
        f"data.train={data / case.data}",
        f"run.dir={run_dir}",
        "schedule.warmup_steps=0",
        "log.every_steps=1",
        "checkpoint.every_steps=2",
        *case.overrides,
    ]


def predict(case: Case, overrides: list[str], device: str) -> dict[str, Any]:
    """Bytes of each part, as predicted."""
    config = load(PretrainConfig, CONFIG, overrides, lambda c: check(c, case.ranks))
    from data_prep.shards import Shards

    model = config.model_config_for(Shards(config.data.sources[0].path))
    found = memory_of(training(config, model, case.ranks), find(device))
    return {**found._asdict(), "total": found.total, "reserved": found.reserved}


def run(case: Case, overrides: list[str]) -> list[int]:
    """Train; the largest resident set of each rank in bytes. Raises where a rank failed."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    together = {"WORLD_SIZE": str(case.ranks), "LOCAL_WORLD_SIZE": str(case.ranks)}
    together |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    started = []
    for rank in range(case.ranks):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if case.ranks > 1 else {}
        environment = {**os.environ, **(together if case.ranks > 1 else {}), **own}
        command = [sys.executable, "-m", "pretrain", str(CONFIG), *overrides]
        started.append(
            subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        )
    peaks = []
    for process in started:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        peaks.append(usage.ru_maxrss * 1024)
    if any(process.returncode for process in started):
        raise SystemExit(f"{case.name}: exit status {[p.returncode for p in started]}")
    return peaks


def logged(run_dir: Path) -> int:
    """The most that metrics.jsonl says: at the ends of steps."""
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return max(json.loads(line).get("memory_bytes") or 0 for line in lines)


def prepare(data: Path) -> None:
    """The demo corpus, and once more with BERT's special tokens."""
    for name, extra in (("plain", []), ("bert", ["tokenizer.train.special_tokens=bert"])):
        if not (data / name / "manifest.json").exists():
            config = str(ROOT / "data_prep" / "configs" / "demo.yaml")
            command = [sys.executable, "-m", "data_prep", "run", config, f"output={data / name}"]
            subprocess.run([*command, *extra], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def measure(case: Case, data: Path, device: str) -> dict[str, Any]:
    """Run a case, and put the prediction beside it."""
    with tempfile.TemporaryDirectory(dir=data) as directory:
        run_dir = Path(directory) / "run"
        overrides = config_of(case, data, run_dir)
        predicted = predict(case, overrides, device)
        begin = time.perf_counter()
        peaks = run(case, overrides)
        at_logs = logged(run_dir)
        seconds = time.perf_counter() - begin
    measured = max(peaks) if device == "cpu" else at_logs
    expected = predicted["total"] if device == "cpu" else predicted["reserved"]
    return {
        "case": case.name,
        "round": case.round,
        "ranks": case.ranks,
        "overrides": case.overrides,
        "predicted_bytes": round(expected),
        "measured_bytes": measured,
        "error": round(expected / measured - 1, 4),
        "rss_at_logs_bytes": at_logs,
        "peak_of_ranks_bytes": peaks,
        "moment": predicted["moment"],
        "parts_bytes": {k: round(v) for k, v in predicted.items() if isinstance(v, float)},
        "seconds": round(seconds, 1),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a table of Markdown; of those predicted once more, also the first prediction."""
    lines = [
        "| run | round | predicted, MB | measured, MB | error | before |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        before = f"{100 * row['first_error']:+.1f} %" if "first_error" in row else ""
        lines.append(
            f"| {row['case']} | {row['round']} | {row['predicted_bytes'] / 1e6:,.0f} | "
            f"{row['measured_bytes'] / 1e6:,.0f} | {100 * row['error']:+.1f} % | {before} |"
        )
    return "\n".join(lines)


def predict_again(row: dict[str, Any], data: Path, device: str) -> dict[str, Any]:
    """A measured row with today's prediction; the first one's error is kept where it differs."""
    case = next(case for case in CASES if case.name == row["case"])
    with tempfile.TemporaryDirectory(dir=data) as directory:
        overrides = config_of(case, data, Path(directory) / "run")
        predicted = predict(case, overrides, device)
    expected = predicted["total"] if device == "cpu" else predicted["reserved"]
    again = {
        **row,
        "round": case.round,
        "predicted_bytes": round(expected),
        "error": round(expected / row["measured_bytes"] - 1, 4),
        "moment": predicted["moment"],
        "parts_bytes": {k: round(v) for k, v in predicted.items() if isinstance(v, float)},
    }
    return with_first_error(again, row)


def main() -> None:
    """Measure, print the table, and write the JSON after each case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[], help="cases by parts of their names")
    parser.add_argument("--device", default="cpu", help="cpu, or the GPU's name, such as h200")
    parser.add_argument("--data", type=Path, help="where the data is, or is to be prepared")
    parser.add_argument("--round", type=int, help="only cases of this one")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--again", type=Path, help="predict once more what this file measured")
    options = parser.parse_args()
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    with tempfile.TemporaryDirectory() as fresh:
        data = options.data or Path(fresh)
        data.mkdir(parents=True, exist_ok=True)
        prepare(data)
        if options.again:
            result = json.loads(options.again.read_text())
            result["runs"] = [predict_again(r, data, result["device"]) for r in result["runs"]]
            options.again.write_text(json.dumps(result, indent=2) + "\n")
            print(table(result["runs"]))
            return
        measure_all(_chosen(options), data, options)


def _chosen(options: argparse.Namespace) -> list[Case]:
    """The cases that are asked for."""
    return [
        case
        for case in CASES
        if (not options.only or any(word in case.name for word in options.only))
        and options.round in (None, case.round)
    ]


def measure_all(cases: list[Case], data: Path, options: argparse.Namespace) -> None:
    """Measure one after the other; what is done is written after each."""
    rows: dict[str, dict[str, Any]] = {}
    if options.json and options.json.exists():
        rows = {row["case"]: row for row in json.loads(options.json.read_text())["runs"]}
    for case in cases:
        row = measure(case, data, options.device)
        rows[case.name] = with_first_error(row, rows.get(case.name, row))
        print(table([rows[case.name]]).splitlines()[-1], flush=True)
        if options.json:
            result = {"device": options.device, "runs": list(rows.values()), "versions": versions()}
            options.json.write_text(json.dumps(result, indent=2) + "\n")


def with_first_error(row: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """A row that says how far off the first prediction was, where that is another."""
    first = before.get("first_error", before["error"])
    return {**row, **({"first_error": first} if first != row["error"] else {})}


def versions() -> dict[str, str]:
    """Of what decides the numbers."""
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "deepspeed")}


if __name__ == "__main__":
    main()
