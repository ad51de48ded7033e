import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pretrain.config import PretrainConfig, check
from runtime.config import ConfigError, load, rows
from tests.corpus import prepare_corpus
from tests.processes import ROOT, run

Write = Callable[..., Path]


def errors(path: Path, *overrides: str, ranks: int = 1) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(PretrainConfig, path, list(overrides), lambda c: check(c, ranks))
    return caught.value.lines


def good(path: Path, *overrides: str, ranks: int = 1) -> PretrainConfig:
    return load(PretrainConfig, path, list(overrides), lambda c: check(c, ranks))


def only(found: list[str], *parts: str) -> None:
    assert len(found) == 1, found
    for part in parts:
        assert part in found[0], found[0]


def test_the_example_is_good(write_config: Write) -> None:
    config = good(write_config())
    assert config.total_steps == 12
    assert config.tokens_per_step == 256
    assert config.accumulation_steps(world_size=1) == 2
    assert config.accumulation_steps(world_size=2) == 1


def test_batch_size_and_its_neighbours(write_config: Write) -> None:
    found = errors(write_config(batch__global_batch_size=100), ranks=6)
    only(found, "tiny.yaml:2: batch.global_batch_size", "4 × 6 = 24; write 96 or 120")


def test_a_batch_that_grows(write_config: Write) -> None:
    ramp = [{"until_step": 2, "global_batch_size": 4}]
    config = good(write_config(batch__ramp=ramp, steps=None, tokens=32 * (2 * 4 + 3 * 8) + 31))
    assert config.total_steps == 5
    assert config.positions(5) == 32 * (2 * 4 + 3 * 8)
    odd = [{"until_step": 2, "global_batch_size": 6}]
    only(errors(write_config(batch__ramp=odd)), "batch.ramp: 6 is not divisible", "write 4 or 8")
    steep = [{"until_step": 2, "global_batch_size": 8}]
    only(errors(write_config(batch__ramp=steep)), "batch.ramp: 8 until step 2, then 8: expected")
    short = write_config(batch__ramp=ramp, steps=None, tokens=100)
    only(errors(short), "tokens: 100 is less than one step of 128")


def test_heads_do_not_divide_the_width(write_config: Write) -> None:
    found = errors(write_config(model__d_model=18, model__n_heads=4, model__n_kv_heads=4))
    only(found, "model", "d_model", "18", "4")


def test_vocabulary_of_another_size(write_config: Write) -> None:
    only(
        errors(write_config(model__vocab_size=500)),
        "model.vocab_size: 500 differs",
        "leave the key",
    )


def test_sequences_longer_than_positions(write_config: Write) -> None:
    found = errors(write_config(data__seq_len=128))
    only(found, "data.seq_len", "model.max_seq_len = 64", "write model.max_seq_len: 128")


def test_missing_data_names_the_command(write_config: Write, tmp_path: Path) -> None:
    found = errors(write_config(data__train=str(tmp_path / "absent")))
    only(found, "data.train", "absent", "data_prep")


def test_unfinished_data_is_refused(write_config: Write, tmp_path: Path, corpus: Path) -> None:
    unfinished = Path(shutil.copytree(corpus, tmp_path / "unfinished"))
    (unfinished / "manifest.json").unlink()
    only(errors(write_config(data__train=str(unfinished))), "data.train", str(unfinished))


def test_truncated_data_is_refused(write_config: Write, tmp_path: Path, corpus: Path) -> None:
    damaged = Path(shutil.copytree(corpus, tmp_path / "damaged"))
    shard = next(damaged.glob("train*.bin"))
    shard.write_bytes(shard.read_bytes()[:-2])
    only(errors(write_config(data__train=str(damaged))), "data.train", shard.name)


def test_missing_validation_split_is_refused_before_the_run(
    write_config: Write, tmp_path: Path
) -> None:
    data = prepare_corpus(tmp_path / "all", documents=60, valid=0.0)
    found = errors(write_config(data__train=str(data)))
    only(found, "data.valid", "split.valid > 0", "evaluate.every_steps: 0")
    assert good(write_config(data__train=str(data), evaluate__every_steps=0))


def test_numbers_that_would_fail_inside_torch(write_config: Write) -> None:
    only(errors(write_config(optim__betas=[0.9, 1.5])), "optim.betas")
    only(errors(write_config(), "optim.lr=.inf"), "optim.lr", "finite")
    only(errors(write_config(schedule__decay_steps=10)), "schedule.decay_steps", "at most 9")


def test_deepspeed_extra_may_not_replace_sections(write_config: Write) -> None:
    only(errors(write_config(deepspeed__extra={"zero_optimization": 5})), "keys of its own")
    only(errors(write_config(deepspeed__extra={"bfloat16": {"enabled": True}})), "precision")


def test_two_sources_with_different_tokenizers(
    write_config: Write, tmp_path: Path, corpus: Path
) -> None:
    other = prepare_corpus(tmp_path / "other", documents=60)
    tokenizer = other / "tokenizer.json"
    sources = [{"path": str(corpus)}, {"path": str(other), "weight": 2}]
    if tokenizer.read_bytes() == (corpus / "tokenizer.json").read_bytes():
        assert good(write_config(data__train=sources))
    manifest = other / "manifest.json"
    text = manifest.read_text()
    import json

    parsed = json.loads(text)
    parsed["tokenizer"]["sha256"] = "0" * 64
    manifest.write_text(json.dumps(parsed))
    only(errors(write_config(data__train=sources)), "data.train", "another tokenizer")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_run_directory(write_config: Write, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    only(errors(write_config(run__dir=str(tmp_path / "locked" / "run"))), "run.dir", "not writable")


def test_run_directory_under_a_file(write_config: Write, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    only(errors(write_config(run__dir=str(tmp_path / "file" / "run"))), "run.dir", "is a file")


def test_fp16_needs_a_gpu(write_config: Write) -> None:
    only(
        errors(write_config(precision="fp16", run__device="cpu")), "precision: fp16", "bf16 or fp32"
    )


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_stage_0_is_for_fp32(write_config: Write, precision: str) -> None:
    path = write_config(precision=precision, parallel__zero_stage=0, run__device="cuda")
    only(errors(path), "parallel.zero_stage", "write 1")
    assert good(write_config(precision="fp32", parallel__zero_stage=0))


def test_offload_needs_a_stage(write_config: Write) -> None:
    path = write_config(parallel__zero_stage=0, parallel__offload="optimizer")
    only(errors(path), "parallel.offload")


def test_length_of_the_run(write_config: Write) -> None:
    assert "steps or as tokens" in errors(write_config(tokens=5000))[0]
    assert "steps or as tokens" in errors(write_config(steps=None))[0]
    short = write_config(steps=None, tokens=1300)
    assert good(short).total_steps == 5  # never more than asked
    only(errors(write_config(steps=None, tokens=100)), "tokens: 100 is less than one step of 256")
    only(errors(write_config(schedule__warmup_steps=12)), "schedule.warmup_steps", "12 steps")


def test_deepspeed_extra_may_not_set_what_we_own(write_config: Write) -> None:
    extra = {"gradient_clipping": 2.0, "zero_optimization": {"reduce_bucket_size": 1000}}
    only(errors(write_config(deepspeed__extra=extra)), "gradient_clipping", "optim.max_grad_norm")


def test_unknown_keys_and_presets(write_config: Write) -> None:
    only(errors(write_config(), "optim.learning_rate=1"), "optim.learning_rate: unknown key")
    assert "did you mean model.n_layers" in errors(write_config(), "model.n_layer=1")[0]
    only(errors(write_config(model__preset="lama-tiny")), "model.preset", "llama-tiny")


def test_many_mistakes_one_report(write_config: Write) -> None:
    path = write_config(batch__global_batch_size=7, optim__lr=-1, data__train="nowhere", stepz=3)
    text = "\n".join(errors(path))
    for key in ("batch.global_batch_size", "optim.lr", "data.train", "stepz"):
        assert f" {key}: " in text


def test_the_command_exits_2_with_lines_and_no_trace(write_config: Write) -> None:
    status, output = run(["-m", "pretrain", str(write_config(optim__lr=-1)), "steps=many"])
    assert status == 2
    assert "Traceback" not in output
    assert "optim.lr: expected greater than 0; got -1" in output
    assert "command line: steps: " in output


def test_two_ranks_report_a_mistake_once(write_config: Write) -> None:
    status, output = run(["-m", "pretrain", str(write_config(optim__lr=-1))], ranks=2)
    assert status == 2
    assert output.count("optim.lr") == 1


def test_help_lists_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    from pretrain.__main__ import main

    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    listed = rows(PretrainConfig)
    assert len(listed) > 40
    for row in listed:
        assert row.key in text
        assert row.meaning, f"{row.key} has no meaning"


@pytest.mark.parametrize("name", [p.name for p in (ROOT / "pretrain" / "configs").glob("*.yaml")])
def test_every_shipped_config_is_good(name: str, corpus: Path, bert_corpus: Path) -> None:
    path = ROOT / "pretrain" / "configs" / name
    text = path.read_text(encoding="utf-8")
    if "segmenter: jieba" in text:
        pytest.importorskip("jieba")
    data = bert_corpus if "objective: masked" in text else corpus
    assert good(path, f"data.train={data}", "data.seq_len=32")
