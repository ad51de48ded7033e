"""`python -m launch plan` as a person uses it."""

import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.__main__ import main
from launch.estimate.devices import find
from launch.estimate.layout import Layout
from launch.estimate.memory import run_memory
from launch.estimate.network import default_network
from launch.estimate.step_time import step_time
from launch.plan.write import as_yaml
from model.presets import preset
from pretrain.config import PretrainConfig, check_batches
from runtime.config import load
from tests.architecture.source import ROOT
from tests.corpus import prepare_corpus
from tests.processes import environment

ASK = ["plan", "llama-3-8b", "--gpus", "64", "--gpu", "h100", "--tokens", "300B"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_corpus(tmp_path_factory.mktemp("corpus"), documents=60)


def planned(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main([*words, "--json"]) == 0
    record: dict[str, Any] = json.loads(capsys.readouterr().out)
    return record


def sum_of(memory: dict[str, Any]) -> float:
    """All parts of a memory, which come before its interval."""
    return sum(list(memory.values())[: list(memory).index("low")])


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["plan", *words]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1, "one line"
    return printed.err


def test_prints_three_best_with_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(ASK) == 0
    text = capsys.readouterr().out
    assert text.startswith(
        "llama-3-8b: 8.03B parameters, 300B tokens (37 per parameter) in 71,525 steps of 512 × "
        "8,192 = 4.19M tokens\n64 × h100, 8 per node, bf16\n"
    )
    for place in ("1. ZeRO-", "2. ZeRO-", "3. ZeRO-", "4. ZeRO-"):
        assert (f"\n{place}" in text) == (place[0] != "4")
    assert text.count("bound by ") == 3
    assert len(re.findall(r"slower:|faster if|as fast", text)) == 2
    assert "what does not fit:" in text
    # The network model is stated, with units.
    assert "450 GB/s per GPU inside a node, 50 GB/s between nodes, hops of 3.4 and 9.6 µs" in text
    assert "50% of communication hidden" in text
    assert "\n16,384 " in text
    assert "breaks at " in text


def test_numbers_are_those_of_the_model_of_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    record = planned(capsys, *ASK)
    best = record["best"][0]
    layout, device = Layout(**best["layout"]), find("h100")
    time = step_time(preset("llama-3-8b"), layout, device, default_network(device), 8)
    assert best["step_s"] == pytest.approx(time.total_s)
    assert best["seconds"] == pytest.approx(300e9 / (layout.tokens_per_step / time.total_s))
    memory = run_memory(preset("llama-3-8b"), layout, device)
    assert best["memory"]["weights"] == memory.weights
    assert record["steps"] * record["global_batch_size"] * record["seq_len"] <= 300e9
    assert [point["gpus"] for point in record["scaling"]][-1] == 16384
    at_64 = next(point for point in record["scaling"] if point["gpus"] == 64)
    assert at_64["step_s"] == pytest.approx(best["step_s"])


def test_network_options_change_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    base = planned(capsys, *ASK)
    slow = planned(capsys, *ASK, "--wire", "1.5", "--latency", "50", "--overlap", "0")
    assert slow["network"]["wire"] == 1.5e9
    assert slow["network"]["latency_s"] == pytest.approx(50e-6)
    assert slow["best"][0]["step_s"] > 1.2 * base["best"][0]["step_s"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["llama-3-8b", "--gpus", "0", "--tokens", "1B"], "--gpus: got 0, expected 1 to"),
        (["llama-3-8b", "--gpus", "-8", "--tokens", "1B"], "--gpus: got -8"),
        (["llama-3-8b", "--gpus-per-node", "0", "--tokens", "1B"], "--gpus-per-node: got 0"),
        (["llama-3-8b", "--tokens", "300X"], "--tokens: got '300X', expected a number such as"),
        (["llama-3-8b"], "--tokens is missing"),
        ([], "MODEL is missing"),
        (["llama-3-8", "--tokens", "1B"], "did you mean llama-3-8b?"),
        (["llama-3-8b", "--gpu", "h10O", "--tokens", "1B"], "did you mean h100?"),
        (["llama-3-8b", "--seq-len", "9000", "--tokens", "1B"], "expected 2 to 8192"),
        (
            ["llama-3-8b", "--gpus", "24", "--global-batch-size", "100", "--tokens", "1B"],
            "write 96 or 120",
        ),
        (["llama-3-8b", "--global-batch-size", "64", "--tokens", "10k"], "less than one step"),
        (["llama-3-8b", "--gpu", "v100-32", "--precision", "bf16", "--tokens", "1B"], "no bf16"),
        (["llama-3-8b", "--wire", "0", "--tokens", "1B"], "--wire: got 0.0, expected a number of"),
        (["llama-3-8b", "--threshold", "nan", "--tokens", "1B"], "--threshold: got nan"),
        (["llama-3-8b", "--host-memory", "-1", "--tokens", "1B"], "--host-memory: got -1"),
        (
            ["llama-3-8b", "--global-batch-size", "1T", "--tokens", "100T"],
            "--global-batch-size: got 1000000000000, expected 1 to 10,000,000",
        ),
        (["llama-3-8b", "--wire", "nan", "--tokens", "1B"], "--wire: got nan"),
        (["llama-3-8b", "--overlap", "2", "--tokens", "1B"], "--overlap: got 2.0, expected 0 to 1"),
        (
            ["llama-3-70b", "--gpus", "1", "--host-memory", "64", "--tokens", "1B"],
            "llama-3-70b does not fit on 1 × h100 of 84.9 GB",
        ),
        (["gpt2-124m", "--tokens", "1B", "--output", "/nonexistent/x.yaml"], "cannot be written"),
    ],
)
def test_bad_asks_are_a_line_with_the_mend(
    capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert told in refused(capsys, *words)


def test_the_written_config_passes_check_and_says_what_was_planned(
    capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ask = ["plan", "llama-160m", "--gpus", "16", "--tokens", "50M", "--seq-len", "1024"]
    record = planned(capsys, *ask, "--data", str(data), "--output", "run.yaml")
    config = load(PretrainConfig, Path("run.yaml"))
    best = record["best"][0]["layout"]
    assert config.tokens == 50_000_000
    assert config.data.seq_len == best["seq_len"] == 1024
    assert config.batch.global_batch_size == record["global_batch_size"]
    assert config.micro_batch_size(16) == best["micro_batch_size"]
    assert config.accumulation_steps(16) == best["accumulation_steps"]
    assert config.parallel.zero_stage == best["zero_stage"]
    assert config.parallel.activation_checkpointing == best["recompute"]
    assert config.parallel.offload == best["offload"]
    assert config.total_steps == record["steps"]
    assert 0 < config.schedule.warmup_steps < config.total_steps
    # `check` predicts the same of the file.
    target = ["--ranks", "16", "--gpus-per-node", "8", "--gpu", "h100"]
    checked = planned(capsys, "check", "run.yaml", *target)
    assert checked["good"] is True
    assert checked["layout"] == best
    assert checked["parameters"] == record["parameters"]
    assert checked["memory"]["total"] == pytest.approx(
        sum_of(record["best"][0]["memory"]), rel=1e-6
    )
    assert checked["time"]["total_s"] == pytest.approx(record["best"][0]["step_s"], rel=1e-6)
    # The comment above says what was printed.
    text = Path("run.yaml").read_text()
    assert f"{record['best'][0]['tokens_per_second']:,.0f} tokens/s" in text
    assert "python -m launch plan llama-160m --gpus 16" in text


def test_a_pretraining_config_is_planned_and_kept(
    capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {
        "run": {"name": "mine", "seed": 7},
        "model": {"preset": "llama-60m", "max_seq_len": 512},
        "data": {"train": str(data), "seq_len": 256},
        "batch": {"global_batch_size": 64},
        "steps": 1000,
        "optim": {"lr": 0.0011, "name": "muon"},
        "log": {"every_steps": 3},
    }
    Path("mine.yaml").write_text(yaml.safe_dump(settings))
    record = planned(capsys, "plan", "mine.yaml", "--gpus", "8", "--output", "run.yaml")
    assert record["tokens"] == 1000 * 64 * 256
    assert record["global_batch_size"] == 64
    # The data decides the vocabulary: characters.
    assert record["parameters"] < 35_000_000
    config = load(PretrainConfig, Path("run.yaml"))
    assert (config.run.name, config.run.seed, config.log.every_steps) == ("mine", 7, 3)
    assert (config.optim.lr, config.optim.name) == (0.0011, "muon")
    assert config.total_steps == 1000
    assert main(["check", "run.yaml", "--ranks", "8", "--gpu", "h100"]) == 0


RAMP = [{"until_step": 10, "global_batch_size": 24}, {"until_step": 30, "global_batch_size": 48}]


@pytest.fixture
def growing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A config whose batch grows, in the working directory: 1,200 sequences, then 96 a step."""
    monkeypatch.chdir(tmp_path)
    settings: dict[str, Any] = {
        "model": {"preset": "llama-60m", "max_seq_len": 512, "vocab_size": 32000},
        "data": {"train": "none", "seq_len": 256},
        "batch": {"global_batch_size": 96, "ramp": RAMP},
        "tokens": 256 * (1200 + 96 * 50),
    }
    Path("grows.yaml").write_text(yaml.safe_dump(settings))
    return settings


def test_a_batch_that_grows_is_planned_for_its_final_size(
    growing: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    ask = ["plan", "grows.yaml", "--gpus", "4"]
    record = planned(capsys, *ask, "--output", "run.yaml")
    assert (record["global_batch_size"], record["steps"]) == (96, 30 + 50)
    assert record["ramp"]["stages"] == RAMP
    assert record["ramp"]["tokens"] == 256 * 1200
    told = (
        "batch.ramp: 24 until step 10, 48 until step 30, then 96 sequences a step: planned for "
        "96; 20.0% of the tokens come in smaller steps before"
    )
    assert record["ramp"]["note"].startswith(told)
    for one in record["best"]:
        layout = one["layout"]
        assert layout["micro_batch_size"] * layout["accumulation_steps"] * 4 == 96
        assert 24 % (4 * layout["micro_batch_size"]) == 0, "serves the smallest batch too"
    # The ramp is kept, and the written config runs.
    config = load(PretrainConfig, Path("run.yaml"))
    assert config.batch.model_dump(mode="json")["ramp"] == RAMP
    assert config.total_steps == 80
    assert f"# {told}" in Path("run.yaml").read_text()
    assert not list(check_batches(config.batch, 4))
    # A person reads the same.
    assert main(ask) == 0
    text = capsys.readouterr().out
    assert "in 80 steps of up to 96 × 256" in text
    assert f"\n{told}" in text


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--gpus", "16"], "batch.ramp: 24 is not divisible by micro_batch_size × ranks = 1 × 16"),
        (["--gpus", "4", "--global-batch-size", "48"], "then 48: expected rising"),
    ],
)
def test_a_ramp_that_cannot_be_is_refused(
    growing: dict[str, Any], capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert told in refused(capsys, "grows.yaml", *words)


def test_a_model_directory_is_planned(
    capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model.hf.config import to_hf_config

    monkeypatch.chdir(tmp_path)
    Path("Some Model").mkdir()
    shape = preset("qwen3-tiny", n_layers=3)
    Path("Some Model/config.json").write_text(
        json.dumps(to_hf_config(shape, "causal_lm", "bfloat16"))
    )
    ask = ["plan", "Some Model", "--gpus", "2", "--tokens", "1M", "--data", str(data)]
    record = planned(capsys, *ask, "--output", "run.yaml")
    assert record["model"] == "Some Model"
    config = load(PretrainConfig, Path("run.yaml"))
    assert config.run.name == "Some-Model"
    assert config.model.preset is None
    assert config.model.n_layers == 3
    assert config.model.qk_norm is True
    assert main(["check", "run.yaml", "--ranks", "2", "--gpu", "h100"]) == 0


def test_a_bert_is_planned_with_its_own_objective(capsys: pytest.CaptureFixture[str]) -> None:
    record = planned(capsys, "plan", "bert-base", "--gpus", "8", "--tokens", "100B")
    assert record["seq_len"] == 512
    model, device = preset("bert-base"), find("h100")
    layout = Layout(**record["best"][0]["layout"])
    time = step_time(
        model, layout, device, default_network(device), 8, head="masked_lm", predicted_fraction=0.15
    )
    assert record["best"][0]["step_s"] == pytest.approx(time.total_s)


def test_an_old_gpu_trains_in_fp16(capsys: pytest.CaptureFixture[str]) -> None:
    record = planned(capsys, "plan", "gpt2-124m", "--gpu", "v100-32", "--tokens", "1B")
    assert record["precision"] == "fp16"


def test_fp8_is_not_planned_and_bf16_in_its_place_is(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: {preset: gpt2-124m}\nsteps: 100\nprecision: fp8\n")
    assert "fp8 is not planned, because its speed is not" in refused(capsys, str(path))
    record = planned(capsys, "plan", str(path), "--precision", "bf16", "--tokens", "1B")
    assert record["precision"] == "bf16"


def test_the_plot_is_an_svg_of_all_points(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ask = ["plan", "gpt2-124m", "--tokens", "10B", "--plot", str(tmp_path / "s.svg")]
    planned(capsys, *ask)
    text = (tmp_path / "s.svg").read_text()
    root = ET.fromstring(text)
    assert root.tag.endswith("svg")
    assert "16,384" in text
    assert "gpt2-124m on h100" in text
    assert "http://" not in re.sub(r"http://www\.w3\.org/\S+", "", text)
    planned(capsys, *ask)
    assert (tmp_path / "s.svg").read_text() == text


def test_published_runs_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--published"]) == 0
    text = capsys.readouterr().out
    assert "llm.c, GPT-2 124M, 8 × a100-80gb" in text
    assert "order of MFU: Spearman, Kendall" in text
    record = planned(capsys, "plan", "--published")
    assert len(record["runs"]) > 150
    assert record["groups"][0]["name"] == "all"


def test_needs_no_torch_and_no_gpu() -> None:
    code = (
        "import sys; from launch.__main__ import main; "
        "status = main(['plan', 'llama-2-7b', '--gpus', '16', '--tokens', '1B']); "
        "sys.exit(status or 'torch' in sys.modules or 'matplotlib' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**environment(), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "value",
    [
        "yes: no",
        "null",
        "1e5",
        "~",
        "a # b",
        "- x",
        "{a}",
        "007",
        "true",
        "path/with space",
        "é",
        "",
    ],
)
def test_written_strings_are_read_back(tmp_path: Path, value: str) -> None:
    """Whatever is in a name or a path, the file says it."""
    config = PretrainConfig.model_validate({"steps": 10, "data": {"train": value}})
    path = tmp_path / "c.yaml"
    path.write_text(as_yaml(config, "a comment"), encoding="utf-8")
    assert load(PretrainConfig, path) == config
    assert os.linesep.join(["# a comment"]) in path.read_text()
