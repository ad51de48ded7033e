"""Samples over time: what a model in training makes of prompts, and that training never notices."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import (
    HISTOGRAMS,
    EventAccumulator,
)

from data_prep.tokenizer import SpecialTokens
from runtime.records import read_metrics
from runtime.selftest import PARTITION_ALL
from tests.processes import run

Write = Callable[..., Path]
PROMPTS = ["the cat ", "老师", ""]


def train(path: Path, *overrides: str, ranks: int = 1) -> str:
    status, output = run(["-m", "pretrain", str(path), *overrides], ranks)
    assert status == 0, output
    return output


def losses(run_dir: Path) -> dict[int, float]:
    return {r["step"]: r["loss"] for r in read_metrics(run_dir / "metrics.jsonl") if "loss" in r}


def texts(run_dir: Path) -> list[tuple[int, str]]:
    return [(s["step"], s["text"]) for s in read_metrics(run_dir / "samples.jsonl")]


def test_training_is_bit_identical_with_samples_and_histograms(
    write_config: Write, tmp_path: Path
) -> None:
    plain = write_config(run__dir=str(tmp_path / "plain"))
    train(plain)
    told = write_config(
        run__dir=str(tmp_path / "told"),
        evaluate={"every_steps": 3, "prompts": PROMPTS, "sample_tokens": 12},
        log={"every_steps": 1, "histograms_every_steps": 5},
    )
    train(told)
    assert len(losses(tmp_path / "plain")) == 12
    assert losses(tmp_path / "told") == losses(tmp_path / "plain")
    assert [step for step, _ in texts(tmp_path / "told")] == sorted([3, 6, 9, 12] * 3)
    assert len({text for _, text in texts(tmp_path / "told")}) > 6
    weights = [
        (tmp_path / name / "checkpoints/step_00000012/model.safetensors").read_bytes()
        for name in ("plain", "told")
    ]
    assert weights[0] == weights[1]
    check_tensorboard(tmp_path / "told")
    records = read_metrics(tmp_path / "told" / "metrics.jsonl")
    assert all(0 < record["data_wait"] < 1 for record in records if "loss" in record)


def check_tensorboard(run_dir: Path) -> None:
    events = EventAccumulator(str(run_dir / "tensorboard"), {HISTOGRAMS: 0}).Reload()
    tags = events.Tags()
    assert "config/text_summary" in tags["tensors"]
    assert "samples/0/text_summary" in tags["tensors"]
    config = events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "global_batch_size: 8" in config
    first, second = events.Histograms("parameters/trunk.token_embedding.weight")
    assert (first.step, second.step) == (5, 10)
    shapes = SpecialTokens(
        Path(yaml.safe_load((run_dir / "config.yaml").read_text())["data"]["train"])
    )
    assert first.histogram_value.num == shapes.vocab_size * 16 == sum(first.histogram_value.bucket)


def test_ranks_and_stages_write_the_same(write_config: Write, tmp_path: Path) -> None:
    """Two ranks under ZeRO-3, each with half of every parameter, and one that has them whole."""
    settings: dict[str, Any] = {
        "model__dropout": 0.0,
        "steps": 6,
        # Greedy: sums over two ranks differ in the last bit, and so would what is drawn.
        "evaluate": {"every_steps": 6, "prompts": PROMPTS, "sample_tokens": 8, "temperature": 0.0},
        "log__histograms_every_steps": 3,
    }
    train(write_config(**settings, run__dir=str(tmp_path / "one")))
    sharded = {**settings, "parallel__zero_stage": 3, "run__dir": str(tmp_path / "two")}
    sharded["deepspeed__extra"] = PARTITION_ALL  # of so small a network it would cut nothing
    train(write_config(**sharded), ranks=2)
    two = texts(tmp_path / "two")
    assert [step for step, _ in two] == [6, 6, 6]
    assert all(text.startswith(prompt) for (_, text), prompt in zip(two, PROMPTS, strict=True))
    assert texts(tmp_path / "one") == two
    name = "parameters/trunk.token_embedding.weight"
    one_sum, two_sum = (histogram_sum(tmp_path / run_name, name) for run_name in ("one", "two"))
    assert two_sum == pytest.approx(one_sum, rel=1e-4)


def histogram_sum(run_dir: Path, name: str) -> float:
    events = EventAccumulator(str(run_dir / "tensorboard"), {HISTOGRAMS: 0}).Reload()
    return float(events.Histograms(name)[-1].histogram_value.sum_squares)


def test_a_masked_model_fills_words_in(
    write_config: Write, tmp_path: Path, bert_corpus: Path
) -> None:
    path = write_config(
        objective="masked_lm_nsp",
        model={"preset": "bert-tiny", "max_seq_len": 64, "d_model": 16, "n_heads": 2, "d_ff": 32},
        data={"train": str(bert_corpus), "seq_len": 48},
        steps=4,
        evaluate={
            "every_steps": 4,
            "prompts": ["the cat [MASK] a red door.", "my neighbour forgets seven stones."],
        },
    )
    train(path)
    first, second = read_metrics(tmp_path / "run" / "samples.jsonl")
    assert "[MASK]" in first["prompt"]
    assert "[MASK]" not in first["text"]
    (guess,) = first["guesses"]
    assert guess["hidden"] is None
    assert 0 < guess["probability"] < 1
    assert second["guesses"]
    assert all(guess["hidden"] is not None for guess in second["guesses"])
    assert second["prompt"].count("[MASK]") == len(second["guesses"])


def test_prompts_that_cannot_be_used_are_refused(write_config: Write, bert_corpus: Path) -> None:
    long = write_config(evaluate={"every_steps": 6, "prompts": ["the cat " * 20]})
    status, output = run(["-m", "pretrain", str(long), "--check"])
    assert status == 2
    assert "prompt 0 has 160 tokens, expected at most 31 (data.seq_len = 32)" in output
    for words in (["[MASK]", ""], ["the cat", "[SEP]"]):
        nothing = write_config(
            objective="masked_lm",
            model={"preset": "bert-tiny", "max_seq_len": 64},
            data={"train": str(bert_corpus), "seq_len": 48},
            evaluate={"every_steps": 6, "prompts": words},
        )
        status, output = run(["-m", "pretrain", str(nothing), "--check"])
        assert status == 2
        assert "prompt 1 holds no word that the tokenizer knows, and masked_lm fills" in output


def test_wandb_offline_takes_one_run_up_again_without_secrets(
    write_config: Write, tmp_path: Path
) -> None:
    pytest.importorskip("wandb")
    secret = "hunter2-hunter2"
    path = write_config(
        log={"every_steps": 1, "wandb": "ingot-test", "tensorboard": False},
        steps=4,
        schedule={"kind": "constant"},
    )
    override = f"deepspeed.extra.comet={{enabled: false, api_key: {secret}}}"
    for steps in (2, 4):
        status, output = run(
            ["-m", "pretrain", str(path), override, f"steps={steps}"],
            WANDB_MODE="offline",
            COMET_API_KEY=secret,
        )
        assert status == 0, output
        assert "warning" not in output
    number = json.loads((tmp_path / "run" / "wandb.json").read_text())["id"]
    stored = list((tmp_path / "run" / "wandb").glob(f"offline-run-*-{number}/run-{number}.wandb"))
    assert len(stored) == 2
    assert any(b"tokens_per_second" in path.read_bytes() for path in stored)
    check_clock(tmp_path / "run", [2, 4])
    for file in (tmp_path / "run").rglob("*"):
        assert not file.is_file() or secret.encode() not in file.read_bytes(), file


def check_clock(run_dir: Path, ends: list[int]) -> None:
    """Each start was counted, from the process's own beginning."""
    lines = read_metrics(run_dir / "clock.jsonl")
    starts = {line["start"]: line for line in lines}
    assert [line["step"] for line in starts.values()] == ends
    assert all(1 < line["time"] - line["start"] < 240 for line in starts.values())
    assert {line["ranks"] for line in lines} == {1}


def test_a_failing_wandb_is_said_once_and_stops_nothing(
    write_config: Write, tmp_path: Path
) -> None:
    pytest.importorskip("wandb")
    path = write_config(log={"every_steps": 1, "wandb": "ingot-test"}, steps=3, schedule={})
    status, output = run(
        ["-m", "pretrain", str(path)],
        WANDB_MODE="online",
        WANDB_BASE_URL="http://127.0.0.1:9",
        WANDB_API_KEY="",
        WANDB_CONFIG_DIR=str(tmp_path),
        NETRC=str(tmp_path / "none"),
    )
    assert status == 0, output
    assert output.count("warning: log.wandb:") == 1
    assert len(losses(tmp_path / "run")) == 3
