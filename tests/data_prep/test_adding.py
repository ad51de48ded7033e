"""Inputs that are added to a prepared directory: only they are prepared, and the rest holds."""

import signal
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from data_prep import Shards, manifest
from data_prep.origins import origin_of
from data_prep.verify import verify_directory
from runtime.errors import UserError
from tests.data_prep.samples import contents, make_texts, settings, write_jsonl
from tests.data_prep.test_pipeline import ROOT, decoded


def stamps(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in directory.glob("*_0*.*")}


def test_only_new_inputs_are_prepared(tmp_path, run, capsys):
    texts = make_texts(300)
    first = write_jsonl(tmp_path / "m.jsonl", texts[:200])
    old = run(first, split__valid=0.1)
    before, kept = stamps(tmp_path / "out"), Shards(tmp_path / "out")
    added = write_jsonl(tmp_path / "a.jsonl", texts[200:])  # sorts before the first
    with added.open("ab") as stream:
        stream.write(b"{\n")
    made = run([added, first], split__valid=0.1)
    assert "adding " in capsys.readouterr().out
    assert before.items() <= stamps(tmp_path / "out").items()
    assert made.shards[: len(old.shards)] == old.shards
    assert [Path(source.path).name for source in made.sources] == ["m.jsonl", "a.jsonl"]
    assert made.documents == 300
    assert made.dropped == {"invalid_json": 1}
    assert made.tokenizer == old.tokenizer
    assert made.fingerprint != old.fingerprint
    assert verify_directory(tmp_path / "out") == []
    found = decoded(tmp_path / "out")
    assert found[: len(kept)] == [t for t in texts[:200] if t in set(found)]
    valid = decoded(tmp_path / "out", "valid")
    assert sorted(found + valid) == sorted(texts)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"quarantine_2.jsonl", "units_2.json"} <= names
    assert not {"quarantine.jsonl", "units.json"} & names
    run([first, added], split__valid=0.1)  # the order of the config does not matter now
    assert "already prepared" in capsys.readouterr().out


def test_inputs_are_added_again_and_again_and_none_is_forgotten(tmp_path, run):
    paths = [write_jsonl(tmp_path / f"{k}.jsonl", make_texts(30, seed=k)) for k in range(3)]
    for k in range(3):
        made = run(paths[: k + 1])
    assert [source.get("batch", 0) for source in made.plan["sources"]] == [0, 1, 2]
    assert decoded(tmp_path / "out") == [t for k in range(3) for t in make_texts(30, seed=k)]
    with pytest.raises(UserError, match=r"1\.jsonl was removed"):
        run([paths[0], paths[2]])


DYING = """
import sys
from data_prep.__main__ import main
from tests.data_prep.dying import die_at
die_at(5, ".idx")
sys.exit(main(sys.argv[1:]))
"""


def test_the_old_data_holds_until_the_new_manifest_is_there(tmp_path, run):
    first = write_jsonl(tmp_path / "x.jsonl", make_texts(100))
    run(first)
    old = contents(tmp_path / "out")
    second = write_jsonl(tmp_path / "y.jsonl", make_texts(3000, seed=1))
    chosen = settings()
    chosen["input"]["paths"] = [str(first), str(second)]
    chosen["output"] = str(tmp_path / "out")
    (tmp_path / "c.yaml").write_bytes(orjson.dumps(chosen))
    command = [sys.executable, "-c", DYING, "run", str(tmp_path / "c.yaml"), "workers=1"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    assert done.returncode == -signal.SIGKILL
    assert len(list((tmp_path / "out").rglob("*.idx"))) > len([n for n in old if ".idx" in n])
    assert manifest.load(tmp_path / "out").documents == 100
    assert verify_directory(tmp_path / "out") == []
    assert decoded(tmp_path / "out") == make_texts(100)
    assert old.items() <= contents(tmp_path / "out").items()
    run([first, second])
    run(first, "calm")
    run([first, second], "calm")
    assert contents(tmp_path / "out") == contents(tmp_path / "calm")


def test_a_changed_setting_is_refused_with_inputs_added_too(tmp_path, run):
    first = write_jsonl(tmp_path / "x.jsonl", make_texts(50))
    run(first)
    second = write_jsonl(tmp_path / "y.jsonl", make_texts(50, seed=1))
    with pytest.raises(UserError, match=r"split\.valid was 0\.0, now 0\.5"):
        run([first, second], split__valid=0.5)


def test_a_directory_of_an_earlier_version_can_be_read_but_not_added_to(tmp_path, run):
    first = write_jsonl(tmp_path / "x.jsonl", make_texts(50))
    run(first)
    path = tmp_path / "out/manifest.json"
    listed = orjson.loads(path.read_bytes())
    del listed["units"], listed["changed"]
    for shard in listed["shards"]:
        del shard["unit"], shard["origins"]
    path.write_bytes(orjson.dumps(listed))
    assert verify_directory(tmp_path / "out") == []
    assert run(first).documents == 50
    second = write_jsonl(tmp_path / "y.jsonl", make_texts(50, seed=1))
    with pytest.raises(UserError, match="nothing can be added"):
        run([first, second])
    assert origin_of(Shards(tmp_path / "out"), 0) is None


def test_every_document_knows_its_line(tmp_path, run):
    texts = make_texts(120)
    lines = [orjson.dumps({"text": text}) for text in texts]
    lines.insert(40, b"{")
    lines.insert(41, b"")
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\n".join(lines))
    made = run(path, split__valid=0.2, max_bad_fraction=0.1)
    assert len(made.shards) > 4
    for split in ("train", "valid"):
        shards = Shards(tmp_path / "out", split)
        for number, text in enumerate(decoded(tmp_path / "out", split)):
            where = origin_of(shards, number)
            assert where.path == str(path)
            assert orjson.loads(lines[where.line - 1])["text"] == text
