import json

import pytest
import yaml

from finetune.config import FinetuneConfig, check
from runtime.config import ConfigError, load
from tests.finetune.toys import animal_texts, checkpoint, config_file, finetune, write_jsonl
from tests.processes import ROOT, run


def complaints(path, world_size=1):
    with pytest.raises(ConfigError) as caught:
        load(FinetuneConfig, path, (), lambda c: check(c, world_size))
    assert caught.value.status == 2
    return caught.value.lines


def test_a_good_config_is_good(tmp_path, capsys):
    path = config_file(tmp_path)
    assert finetune(path, "--check") == 0
    assert capsys.readouterr().out == f"{path}: good\n"
    assert not (tmp_path / "run").exists()
    assert finetune(path, "--print-config") == 0
    assert yaml.safe_load(capsys.readouterr().out)["optim"]["betas"] == [0.9, 0.999]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"data__train": "nowhere.jsonl"}, "data.train: nowhere.jsonl: no such file"),
        ({"data__train": "x.parquet"}, "data.train: x.parquet: its name must end in .jsonl"),
        ({"data__tset": "x"}, "data.tset: unknown key; did you mean data.test?"),
        ({"task__text_key": "txt"}, "no key 'txt'; it has 'text', 'label'; did you mean 'text'?"),
        ({"task__label_key": "y"}, "train.jsonl:1: no key 'y'"),
        ({"task__max_length": 65}, "65 is more than the model's 64 positions; write 64 or less"),
        ({"model": "nowhere"}, "model: nowhere: no such directory"),
        ({"model": None}, "model: is required"),
        (
            {"batch__global_batch_size": 10, "batch__micro_batch_size": 4},
            "10 is not divisible by micro_batch_size × ranks = 4 × 1 = 4; write 8 or 12",
        ),
        ({"steps": 5}, "give the length of the run as steps or as epochs, one of them"),
        ({"schedule__warmup_steps": 12}, "12 is not less than the run's 12 steps"),
        ({"evaluate__metric": "acuracy"}, "did you mean accuracy?"),
        ({"precision": "fp8"}, "precision: expected"),
        ({"run__dir": "/dev/null/x"}, "run.dir: /dev/null is a file"),
        ({"epochs": 0}, "epochs: expected greater than or equal to 1; got 0"),
    ],
)
def test_each_mistake_is_one_line(tmp_path, changes, expected):
    path = config_file(tmp_path, **changes)
    line, *_ = [line for line in complaints(path) if expected in line] or pytest.fail(expected)
    assert line.startswith(str(path))
    assert "\n" not in line


def test_ranks_must_divide_the_batch(tmp_path):
    (line,) = complaints(config_file(tmp_path), world_size=3)
    assert "16 is not divisible by micro_batch_size × ranks = 1 × 3 = 3; write 15 or 18" in line


def test_all_mistakes_at_once(tmp_path):
    config_file(tmp_path)
    rows = [{"text": "", "label": "cat"}, {"text": "x", "label": None}, *animal_texts(20)]
    write_jsonl(tmp_path / "train.jsonl", rows)
    (tmp_path / "dev.jsonl").unlink()
    changes = {
        "model": "nowhere",
        "optim__lr": -1,
        "batch__global_batch_size": 7,
        "batch__micro_batch_size": 2,
    }
    text = "\n".join(
        complaints(config_file(tmp_path, **changes, data__dev=str(tmp_path / "dev.jsonl")))
    )
    for part in (
        "train.jsonl:1: 'text' is empty",
        "train.jsonl:2: 'label' must be",
        "no such directory",
        "dev.jsonl: no such file",
        "optim.lr: expected",
        "7 is not divisible",
    ):
        assert part in text


def test_labels_that_train_never_has_are_listed(tmp_path):
    config_file(tmp_path)
    rows = [
        *animal_texts(9),
        {"text": "x", "label": "bat"},
        {"text": "y", "label": "bat"},
        {"text": "z", "label": 4},
    ]
    write_jsonl(tmp_path / "test.jsonl", rows)
    (line,) = complaints(config_file(tmp_path))
    assert "data.test" in line
    assert "labels that" in line
    assert "'bat' (line 10), '4' (line 12); add examples" in line


def test_a_single_class_is_refused(tmp_path):
    config_file(tmp_path)
    for name in ("train", "dev", "test"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"text": f"w{i}", "label": "a"} for i in range(5)])
    (line,) = complaints(config_file(tmp_path))
    assert "every text has the label 'a'; two classes or more are needed" in line


def test_dev_needs_a_class_with_two_texts(tmp_path):
    config_file(tmp_path)
    write_jsonl(
        tmp_path / "train.jsonl", [{"text": "x", "label": y} for y in ("cat", "dog", "cow")]
    )
    lines = complaints(config_file(tmp_path, data__dev=None))
    assert any("no class of train has two different texts" in line for line in lines)


def test_models_that_do_not_fit_are_refused(tmp_path):
    path = config_file(tmp_path)
    file = tmp_path / "base" / "config.json"
    good = json.loads(file.read_text())
    file.write_text(json.dumps({**good, "vocab_size": 20}))
    assert "its tokenizer has 38 tokens but the model only 20" in complaints(path)[0]
    file.write_text(json.dumps({**good, "model_type": "t5"}))
    assert "model_type: got 't5', supported: gpt2, llama" in complaints(path)[0]
    file.write_text("{")
    assert "not readable as JSON" in complaints(path)[0]
    file.write_text(json.dumps(good))
    (tmp_path / "base" / "model.safetensors").unlink()
    assert "no weights" in complaints(path)[0]
    file.unlink()
    assert (
        "neither a model directory (config.json) nor a run with checkpoints" in complaints(path)[0]
    )


def test_a_read_only_run_directory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("runtime.checks.os.access", lambda path, mode: False)  # root may write
    (line,) = complaints(config_file(tmp_path))
    assert f"run.dir: {tmp_path} is not writable" in line


def test_a_run_stands_for_its_newest_checkpoint(tmp_path, capsys):
    path = config_file(tmp_path, epochs=1)
    assert finetune(path) == 0
    capsys.readouterr()
    (tmp_path / "run" / "best").rename(
        tmp_path / "elsewhere"
    )  # as a pretraining run, which has none
    for model in (tmp_path / "run", tmp_path / "run" / "checkpoints"):
        name = f"from-{model.name}"
        changes = {"model": str(model), "run__dir": str(tmp_path / name), "epochs": 1}
        assert finetune(config_file(tmp_path, **changes)) == 0
        assert (
            f"model {tmp_path / 'run' / 'checkpoints' / 'step_00000006'};"
            in capsys.readouterr().out
        )
    weights = tmp_path / "run" / "checkpoints" / "step_00000006" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"oops")
    for model in (tmp_path / "run", weights.parent):
        assert (
            finetune(
                config_file(
                    tmp_path, **{**changes, "model": str(model), "run__dir": str(tmp_path / "n")}
                )
            )
            == 1
        )
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_bad_input_ends_a_command_with_two_and_no_trace(tmp_path):
    path = config_file(tmp_path, model="nowhere")
    status, output = run(["-m", "finetune", str(path), "--local_rank=0"])
    assert status == 2
    assert output.startswith("error: ")
    assert len(output.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments", [[], ["a.yaml", "b.yaml"], ["--frobnicate"], ["nowhere.yaml"]]
)
def test_a_wrong_command_is_refused(arguments, capsys):
    from finetune.__main__ import main

    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_help_and_checks_do_without_torch(tmp_path):
    script = (
        "import sys; from finetune.__main__ import main; status = main(sys.argv[1:]);"
        "heavy = {'torch', 'accelerate', 'sklearn', 'deepspeed'} & set(sys.modules);"
        "sys.exit(status or bool(heavy))"
    )
    status, output = run(["-c", script, "--help"])
    assert status == 0, output
    for name in ("task.max_length", "data.dev_fraction", "evaluate.metric", "patience", "optim.lr"):
        assert name in output
    status, output = run(["-c", script, str(config_file(tmp_path)), "--check"])
    assert status == 0, output


def rows_of(kind, count):
    """Rows as tasks of this kind read them."""
    rows = animal_texts(count)
    if kind == "span":
        return [
            {"question": "w1", "context": row["text"], "answers": row["text"].split()[0]}
            for row in rows
        ]
    if kind == "regression":
        return [{**row, "pair": "w1 w2", "label": i % 6} for i, row in enumerate(rows)]
    if kind == "instruct":
        return [{"question": row["text"], "answer": row["label"]} for row in rows]
    if kind == "token":
        return [
            {"tokens": ["so", row["text"].split()[0]], "tags": ["O", f"B-{row['label']}"]}
            for row in rows
        ]
    return rows


@pytest.mark.parametrize(
    "path", sorted((ROOT / "finetune" / "configs").glob("*.yaml")), ids=lambda p: p.stem
)
def test_shipped_configs_load_and_run(path, tmp_path):
    """As they are, except for the data, the model and the length."""
    kind = load(FinetuneConfig, path).task.kind
    rows = rows_of(kind, 40)
    write_jsonl(tmp_path / "rows.jsonl", rows)
    checkpoint(tmp_path / "base", max_seq_len=512)
    data = [f"data.{name}={tmp_path / 'rows.jsonl'}" for name in ("train", "dev", "test")]
    length = ["steps=2", "epochs=null", "schedule.warmup_steps=1", "run.device=cpu"]
    assert (
        finetune(path, *data, *length, f"model={tmp_path / 'base'}", f"run.dir={tmp_path / 'run'}")
        == 0
    )
