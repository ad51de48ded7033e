import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.__main__ import main
from data_prep.config import DataPrepConfig, check
from runtime.config import ConfigError, load, rows
from tests.data_prep.samples import make_texts, write_jsonl

ROOT = Path(__file__).parents[2]


def test_help_names_every_key_and_loads_nothing_heavy():
    code = (
        "import sys; from data_prep.__main__ import main; main(['--help']);"
        "heavy = {'torch', 'transformers', 'tokenizers', 'pyarrow'} & set(sys.modules);"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for row in rows(DataPrepConfig):
        assert row.key in done.stdout
        assert row.meaning


def test_preparing_and_reading_need_no_torch(tmp_path):
    write_jsonl(tmp_path / "x.jsonl", make_texts(30))
    code = (
        "import sys; from data_prep.__main__ import main;"
        f"r = main(['run', 'input.paths={tmp_path}/x.jsonl', 'output={tmp_path}/out',"
        "'tokenizer.train.vocab_size=300']);"
        "import data_prep.packing, data_prep.samples, data_prep.windows;"
        f"from data_prep import Shards; n = len(Shards('{tmp_path}/out'));"
        "heavy = {'torch', 'transformers'} & set(sys.modules);"
        "sys.exit(f'loaded {heavy}' if heavy or r or n != 30 else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_every_mistake_is_reported_at_once_with_status_2(tmp_path, capsys):
    config = tmp_path / "c.yaml"
    config.write_text(
        f"""
input: {{paths: [{tmp_path}/nothing.txt, "{tmp_path}/*.md"], formt: text}}
output: {tmp_path}/c.yaml
tokenizer: {{path: {tmp_path}/none, train: {{kind: bpee}}}}
split: {{valid: 1.5}}
work_unit_bytes: 1
"""
    )
    assert main(["run", str(config)]) == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told
    for expected in (
        "nothing.txt does not exist",
        "*.md matches no file",
        "input.formt: unknown key; did you mean input.format?",
        "is a file; name a directory",
        "has both path and train",
        "none is no tokenizer.json, .model or vocab.txt",
        "did you mean bpe?",
        "split.valid",
        "work_unit_bytes",
    ):
        assert expected in told, told


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tokenizer.train.vocab_size=256"], "expected 257 or more"),
        (["tokenizer.train.lowercase=true"], "bpe keeps text exactly"),
        (["tokenizer.eod=x"], "goes with tokenizer.path"),
        (["output={0}/deep"], "lies inside the input"),
        (["input.paths={0}/odd.xyz"], "does not tell its format"),
        (["input.paths={0}/empty"], "holds no files named"),
    ],
)
def test_single_mistakes(tmp_path, overrides, message):
    write_jsonl(tmp_path / "x.jsonl", ["text"])
    (tmp_path / "odd.xyz").write_text("text")
    (tmp_path / "empty").mkdir()
    base = [f"input.paths={tmp_path}", f"output={tmp_path}-out"]
    overrides = [o.format(tmp_path) for o in overrides]
    with pytest.raises(ConfigError, match=message):
        load(DataPrepConfig, None, base + overrides, check)


@pytest.mark.parametrize("arguments", [["runn"], ["verify"], ["inspect", "a", "b"]])
def test_wrong_commands_are_one_line_with_status_2(arguments, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("path", sorted((ROOT / "data_prep/configs").glob("*.yaml")), ids=str)
def test_shipped_configs_load(path, tmp_path):
    text = write_jsonl(tmp_path / "x.jsonl", ["text"])
    overrides = [] if path.stem == "demo" else [f"input.paths={text}"]
    if path.stem == "transfer-tasks":  # its tokenizer is another config's
        overrides.append("tokenizer={train: {kind: wordpiece}}")
    load(DataPrepConfig, path, overrides, check)


@pytest.mark.slow
def test_the_demo_runs_from_nothing_and_is_reused(tmp_path, capsys):
    from data_prep import Shards

    assert main(["demo", str(tmp_path)]) == 0
    assert len(Shards(tmp_path / "data", verify=True)) > 300
    assert Shards(tmp_path / "data", "valid").tokens > 10_000
    assert (tmp_path / "functions.test.jsonl").exists()
    assert main(["demo", str(tmp_path)]) == 0
    assert "already prepared" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "usage"),
    [
        ("tokenize", "--vocab_file"),
        ("import", "--dialect"),
        ("which", "--step"),
        ("leakage", "--max-share"),
        ("inspect", "DIR [--html FILE | --json]"),
        ("task", "DIR STAGE NUMBER..."),
    ],
)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_each_subcommand_has_help_of_its_own(name, usage, flag, capsys):
    assert main([name, flag]) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"usage: python -m data_prep {name}")
    assert usage in told
    assert "python -m data_prep demo [DIR]" not in told


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"], ["run", "--help"]])
def test_the_page_of_all_commands_and_keys(arguments, capsys):
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert "python -m data_prep demo [DIR]" in told
    assert "work_unit_bytes" in told


def test_a_config_may_lie_in_a_folder_with_an_equals_sign(tmp_path, capsys, monkeypatch):
    write_jsonl(tmp_path / "x.jsonl", make_texts(30))
    monkeypatch.chdir(tmp_path)
    for path in (Path("lr=3/config.yaml"), Path("lr=3/config")):
        path.parent.mkdir(exist_ok=True)
        path.write_text("input: {paths: [x.jsonl]}\ntokenizer: {train: {vocab_size: 300}}\n")
        assert main(["run", str(path), f"output={path.name}-out"]) == 0
    assert main(["run", "lr=4/config.yaml"]) == 2
    assert "lr=4/config.yaml" in capsys.readouterr().err
    assert main(["run", "input.paths=" + "x" * 5000]) == 2  # no path
    assert "output: is required" in capsys.readouterr().err
