"""`python -m launch check`: what the run refuses is refused, and what it will take is told."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.__main__ import main
from launch.check.stage import stage_of
from model.config import ModelConfig
from model.flops import parameters
from pretrain.config import PretrainConfig, check
from runtime import hardware
from runtime.config import ConfigError, load
from tests import tiny_run
from tests.architecture.source import ROOT
from tests.corpus import prepare_corpus
from tests.finetune.toys import animal_texts, checkpoint, write_jsonl
from tests.processes import environment

CONFIGS = sorted(ROOT.glob("*/configs/*.yaml"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def write(tmp_path: Path, corpus: Path) -> Callable[..., Path]:
    def written(**changes: object) -> Path:
        return tiny_run.write_config(tmp_path / "tiny.yaml", tmp_path / "run", corpus, **changes)

    return written


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command in this process: exit status, what it printed, and its errors."""

    def ran(*words: object) -> tuple[int, str, str]:
        try:
            status = main(["check", *map(str, words)])
        except SystemExit as error:  # argparse's own
            status = int(error.code or 0)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return ran


@pytest.fixture
def told(run: Any) -> Callable[..., dict[str, Any]]:
    """Run it with --json."""
    return lambda *words: json.loads(run(*words, "--json")[1])


def advised(found: dict[str, Any]) -> dict[str, str]:
    return {finding["key"]: finding["message"] for finding in found["advice"]}


def test_a_good_config(write: Any, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    status, out, err = run(write())
    assert (status, err) == (0, "")
    assert "12 steps × 256 tokens" in out
    assert out.rstrip().splitlines()[-1].startswith("good")
    assert "\033" not in out
    own = [line for line in out.splitlines() if "/tiny.yaml" not in line and "/corpus" not in line]
    assert 70 < max(map(len, own)) <= 80


def test_the_numbers(write: Any, told: Any, corpus: Path) -> None:
    found = told(write(), "--price-per-gpu-hour", "2", "--watts", "300", "--gpu", "cpu")
    config = load(PretrainConfig, write())
    from data_prep.shards import Shards

    shards = Shards(corpus)
    size = parameters(config.model_config_for(shards))
    assert found["parameters"] == size
    assert found["tokens"] == 12 * 8 * 32
    assert found["epochs"] == [pytest.approx(12 * 8 / (shards.tokens // 32), rel=0.02)]
    hours = found["cost"]["seconds"] / 3600
    assert found["cost"]["price"] == pytest.approx(2 * hours)
    assert found["cost"]["kilowatt_hours"] == pytest.approx(0.3 * hours)
    assert found["checkpoints"]["size"] == pytest.approx(16 * size)
    assert (found["checkpoints"]["number"], found["checkpoints"]["kept"]) == (3, 2)
    memory = found["memory"]
    assert memory["low"] < memory["total"] < memory["high"] < memory["device"]
    assert found["time"]["low_s"] < found["time"]["total_s"] < found["time"]["high_s"]
    assert found["time"]["mfu"] >= found["time"]["mfu_causal"] > 0


def test_the_size_of_a_checkpoint_is_that_on_disk(write: Any, told: Any, tmp_path: Path) -> None:
    """Of a model whose numbers outweigh its files' headers."""
    wide = {"model__d_model": 128, "model__n_layers": 4, "steps": 1, "evaluate__every_steps": 0}
    path = write(**wide, schedule__warmup_steps=0)
    expected = told(path)["checkpoints"]["size"]
    done = subprocess.run(
        [sys.executable, "-m", "pretrain", str(path)],
        cwd=ROOT, env=environment(), capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    (saved,) = (tmp_path / "run" / "checkpoints").glob("step_*")
    written = sum(file.stat().st_size for file in saved.rglob("*") if file.is_file())
    assert expected == pytest.approx(written, rel=0.02)


@pytest.mark.parametrize("keys", [[], ["compile=true"]])
def test_fp8_is_estimated_as_bf16_and_says_so(keys: list[str], write: Any, told: Any) -> None:
    words = [*keys, "--gpu", "h100", "--ranks", "1", "--no-data"]
    found, plain = (told(write(), *words, f"precision={p}") for p in ("fp8", "bf16"))
    assert found["memory"] == plain["memory"]
    assert found["time"] == plain["time"]
    assert found["checkpoints"] == plain["checkpoints"]
    advice = advised(found)["precision"]
    assert advice.startswith("fp8; memory and time are those of bf16: what FP8 gains is not")
    assert ("without compile: true" in advice) == (not keys)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"batch__global_batch_size": 9}, "batch.global_batch_size: 9 is not divisible"),
    ({"steps": None, "tokens": 100}, "tokens: 100 is less than one step"),
    ({"schedule__warmup_steps": 12}, "schedule.warmup_steps: 12 is not less"),
    ({"precision": "fp16"}, "precision: fp16 does not run on a CPU"),
    ({"precision": "fp8", "model__d_model": 24}, "precision: fp8 takes linear maps whose widths"),
    ({"precision": "bf16", "parallel": {"zero_stage": 0}}, "parallel.zero_stage: stage 0 with bf"),
    ({"parallel": {"zero_stage": 0, "offload": "optimizer"}}, "parallel.offload: needs"),
    ({"data__train": "/nowhere"}, "/nowhere"),
    ({"data__seq_len": 128}, "data.seq_len: 128 is more than model.max_seq_len = 64"),
    ({"data__packing": "nonsense"}, "data.packing: expected"),
    ({"model__vocab_size": 7}, "model.vocab_size: 7 differs"),
    ({"model__n_heads": 3}, "model"),
    ({"objective": "masked_lm"}, "has no mask_token"),
    ({"optim__name": "adam"}, "did you mean adamw?"),
    ({"optim__learning_rate": 1}, "unknown key"),
    ({"deepspeed": {"extra": {"gradient_clipping": 1}}}, "is set by optim.max_grad_norm"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=lambda v: str(v)[:40])
def test_what_the_run_refuses_is_refused(
    changes: dict[str, Any], message: str, write: Any, run: Any
) -> None:
    path = write(**changes)
    status, out, err = run(path)
    assert status == 2, out
    assert message in err
    with pytest.raises(ConfigError) as refused:
        load(PretrainConfig, path, (), lambda c: check(c, 1))
    assert str(refused.value) in err


def test_too_little_data_is_refused(write: Any, run: Any, corpus: Path) -> None:
    sources = [{"path": str(corpus), "max_repetition": 0.05}]
    status, out, _ = run(write(data__train=sources))
    assert status == 2
    assert "the sources last for" in " ".join(out.split())


def test_another_architecture_than_the_runs_is_refused(
    write: Any, run: Any, tmp_path: Path
) -> None:
    path = write(steps=2, checkpoint__every_steps=0, evaluate__every_steps=0)
    path = write(steps=2, schedule__warmup_steps=0, evaluate__every_steps=0)
    done = subprocess.run(
        [sys.executable, "-m", "pretrain", str(path)],
        cwd=ROOT, env=environment(), capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    status, out, _ = run(path, "steps=4")
    assert status == 0
    assert "from step 2" in out
    for change, message in (("model.n_layers=3", "n_layers: 2 → 3"), ("data.seq_len=16", "resume")):
        status, out, _ = run(path, "steps=4", change)
        assert status == 2
        assert message in " ".join(out.split())


def test_what_does_not_fit_is_refused_with_what_does(write: Any, run: Any, told: Any) -> None:
    big = ["--no-data", "--gpu", "h100", "--nodes", "1", "model.preset=llama-8b"]
    big += ["model.max_seq_len=8192", "model.n_layers=64", "model.n_heads=32", "data.seq_len=4096"]
    big += ["model.n_kv_heads=8", "model.d_model=4096", "model.family=llama", "precision=bf16"]
    status, out, _ = run(write(), *big, "batch.micro_batch_size=1")
    assert status == 2
    text = " ".join(out.split())
    assert "does not fit" in text
    mend = text.split("does not fit")[1]
    assert "parallel.zero_stage: 3" in mend
    # What it says fits, fits.
    keys = ["parallel.zero_stage=3"]
    if "together these fit" in mend:
        keys.append("parallel.activation_checkpointing=block")
        keys += ["parallel.offload=optimizer"] if "parallel.offload" in mend else []
    found = told(write(), *big, "batch.micro_batch_size=1", *keys)
    assert found["good"], found["errors"]
    assert found["memory"]["high"] <= found["memory"]["device"]


def test_a_node_must_hold_what_its_ranks_offload(write: Any, told: Any) -> None:
    keys = ["--no-data", "--gpu", "h200", "--nodes", "1", "precision=bf16", "data.seq_len=64"]
    keys += ["model.preset=llama-3-70b", "parallel.zero_stage=3", "parallel.offload=all"]
    keys += [f"model.{k}=null" for k in ("family", "n_layers", "n_heads", "n_kv_heads", "d_model")]
    keys += ["model.max_seq_len=null", "model.dropout=null"]
    path = write(batch__micro_batch_size=1)
    unknown = told(path, *keys)
    needed = 8 * unknown["memory"]["host"]
    assert needed > 1000e9
    assert unknown["good"]
    assert "--host-memory" in advised(unknown)["parallel.offload"]
    enough, little = ["--host-memory", f"{needed / 1e9 + 1}"], ["--host-memory", "1000"]
    assert told(path, *keys, *enough)["good"]
    (error,) = told(path, *keys, *little)["errors"]
    assert error["key"] == "parallel.offload"
    assert "and has 1,000 GB" in error["message"]


def test_advice(write: Any, told: Any) -> None:
    keys = ["--no-data", "--gpu", "h100", "--ranks", "8", "precision=bf16", "steps=100000"]
    keys += ["model.preset=gpt2-124m", "model.family=gpt2", "model.d_model=768"]
    keys += ["model.n_layers=12", "model.n_heads=12", "model.n_kv_heads=12", "model.max_seq_len=64"]
    found = advised(
        told(
            write(batch__micro_batch_size=1, batch__global_batch_size=512),
            *keys,
            "schedule.warmup_steps=20000",
            "checkpoint.every_steps=1",
            "checkpoint.background=false",
        )
    )
    assert "20 % of the run" in found["schedule.warmup_steps"]
    assert "50,257 rows" in found["model.vocab_multiple"]
    assert "with true a step is expected to be" in found["compile"]
    assert "fits as well" in found["batch.micro_batch_size"]
    assert "would take 5 %" in found["checkpoint.every_steps"]
    assert "positions from 32 to 64" in found["model.max_seq_len"]


def test_repeated_data_is_advised_against(write: Any, told: Any) -> None:
    few, many = (advised(told(write(steps=steps))) for steps in (12, 4000))
    assert "data.train" not in few
    assert "Muennighoff" in many["data.train"]


def test_a_damaged_file_is_found_by_its_bytes(write: Any, run: Any, tmp_path: Path) -> None:
    data = prepare_corpus(tmp_path / "own", documents=50)
    (shard, *_) = sorted(data.glob("*train*.bin")) or sorted(data.glob("*.bin"))
    content = bytearray(shard.read_bytes())
    content[10] ^= 1
    shard.write_bytes(bytes(content))
    path = write(data__train=str(data))
    assert run(path)[0] == 0  # sizes are right
    status, out, _ = run(path, "--verify")
    assert status == 2
    assert "its content changed" in " ".join(out.split())
    shard.write_bytes(bytes(content[:-2]))
    assert run(path)[0] == 2


BAD_TARGETS = [
    (["--nodes", "0"], "--nodes: got 0, expected 1"),
    (["--ranks", "-1"], "--ranks: got -1"),
    (["--nodes", "2", "--gpus-per-node", "5000"], "--gpus-per-node: got 5000"),
    (["--ranks", "4", "--nodes", "3", "--gpus-per-node", "1"], "leave one of them out"),
    (["--gpu", "h20"], "did you mean h200?"),
    (["--gpu", "H1000"], "did you mean h100?"),
    (["--gpu", "h200", "run.device=cpu"], "leave --gpu out"),
    (["--nodes", "100000", "--gpus-per-node", "1000"], "at most 1,000,000"),
    (["--price-per-gpu-hour", "0"], "--price-per-gpu-hour: got 0.0"),
    (["--disk-bandwidth", "nan"], "--disk-bandwidth: got nan"),
    (["--probe", "--gpu", "h200"], "--probe measures on this machine"),
    (["--probe", "--ranks", "2"], "--probe measures one rank"),
    (["--gpu", "v100-32", "precision=bf16"], "v100-32 has no bf16"),
    (["--gpu", "a100-80gb", "precision=fp8"], "precision: a100-80gb has no fp8; write bf16 or"),
]


@pytest.mark.parametrize(("words", "message"), BAD_TARGETS, ids=lambda v: " ".join(v)[:40])
def test_targets_that_cannot_be(words: list[str], message: str, write: Any, run: Any) -> None:
    status, out, err = run(write(), *words)
    assert status == 2
    assert message in " ".join((out + err).split())
    assert "Traceback" not in err


def test_absurd_sizes_are_answered_at_once(write: Any, run: Any) -> None:
    start = time.monotonic()
    for word in ("batch.global_batch_size=99999999996", "steps=99999999999999"):
        assert "the run would take" in " ".join(run(write(), word)[1].split())
    assert time.monotonic() - start < 30  # and not the hours of trying every size


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: "/".join(path.parts[-3::2]))
def test_every_shipped_config_passes_where_its_data_is_not(path: Path, run: Any) -> None:
    status, out, err = run(path, "--no-data")
    assert status == 0, out + err
    assert stage_of(path, ()) == path.parts[-3].replace("pretrain", "pretrain")


def test_a_config_of_fine_tuning(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "finetune.yaml"
    path.write_text(yaml.safe_dump({"model": "/nowhere", "data": {"train": "/nothing.csv"}}))
    status, _, err = run(path)
    assert status == 2
    assert "/nowhere" in err
    assert "/nothing.csv" in err


def test_a_config_of_several_tasks(run: Any, told: Any, tmp_path: Path) -> None:
    checkpoint(tmp_path / "base")
    files = {
        name: write_jsonl(tmp_path / f"{name}.jsonl", animal_texts(count))
        for name, count in (("few", 30), ("many", 120))
    }
    tasks = [
        {"name": name, "task": {"max_length": 32}, "data": {"train": str(file)}}
        for name, file in files.items()
    ]
    path = tmp_path / "several.yaml"
    values = {"model": str(tmp_path / "base"), "tasks": tasks, "epochs": 2}
    path.write_text(yaml.safe_dump({**values, "batch": {"global_batch_size": 10}}))
    found = told(path)
    assert found["examples"] == {"few": 27, "many": 108}
    assert found["steps"] == 2 * (3 + 11)
    status, out, _ = run(path)
    assert status == 0
    assert "67% of the steps" in out  # the root of four times as many
    tasks[1]["data"]["train"] = "/nothing.jsonl"
    path.write_text(yaml.safe_dump(values))
    status, _, err = run(path)
    assert status == 2
    assert "tasks.1.data.train" in err
    assert run(path, "--no-data")[0] == 0


def test_a_config_of_data(run: Any, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a text\n" * 100)
    settings = {"input": {"paths": [str(text)]}, "output": str(tmp_path / "data")}
    settings["tokenizer"] = {"train": {"kind": "char"}}
    path = tmp_path / "data.yaml"
    path.write_text(yaml.safe_dump(settings))
    status, out, _ = run(path)
    assert status == 0
    assert "1 files, 700 B" in out
    status, _, err = run(path, "input.paths=[/nowhere]")
    assert status == 2
    assert "/nowhere" in err


def test_starts_without_torch(write: Any) -> None:
    code = (
        "import sys; from launch.__main__ import main; "
        f"status = main(['check', {str(write())!r}]); "
        "sys.exit(status or 10 * ('torch' in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr.decode()


def test_the_model_without_data_is_the_configs(write: Any, told: Any) -> None:
    found = told(write(), "--no-data", "model.vocab_size=1000")
    shape = {"family": "llama", "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "d_model": 16}
    model = ModelConfig(**shape, max_seq_len=64, vocab_size=1000)
    assert found["parameters"] == parameters(model)
    assert found["epochs"] is None


@pytest.mark.slow
def test_a_probe_measures_the_step(write: Any, told: Any) -> None:
    reckoned, found = told(write()), told(write(), "--probe")
    spread = reckoned["time"]["high_s"] / reckoned["time"]["low_s"]
    assert spread == pytest.approx(2.0 / 0.7)  # until it is measured
    assert 0 < found["time"]["low_s"] < found["time"]["total_s"] < found["time"]["high_s"] < 60


def test_a_compiler_that_is_not_there(
    write: Any, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(compile=True, run__device="cpu")
    assert "compile" not in advised(told(path))
    monkeypatch.setattr(hardware, "has_cpp_compiler", lambda: False)
    assert "no C++ compiler is on PATH: the run goes on without" in advised(told(path))["compile"]
