"""What an unfinished, changed or cancelled run left behind never gets into another's data."""

import shutil
from pathlib import Path

import pytest

from data_prep import Shards, manifest
from data_prep.config import DataPrepConfig, check
from data_prep.pipeline import run_tasks
from data_prep.plan import make_plan
from data_prep.sources import input_files
from data_prep.stages import stages
from data_prep.verify import verify_directory
from runtime.config import load
from runtime.errors import UserError
from tests.data_prep.samples import contents, make_texts, write_jsonl
from tests.data_prep.test_executors import write_config
from tests.data_prep.test_pipeline import decoded
from tests.data_prep.test_rules_in_runs import make

DEDUP = {"dedup__exact": True, "dedup__near": True}


class Stopped(Exception):
    pass


def stop_after(monkeypatch, count: int) -> None:
    """Stop a run when so many tasks are done, as a kill between two tasks would."""
    from data_prep import executors, pipeline

    real = executors.map_tasks
    done = [0]

    def mapped(plan, stage, numbers):
        for number in real(plan, stage, numbers):
            done[0] += 1
            yield number
            if done[0] >= count:
                raise Stopped

    monkeypatch.setattr(pipeline, "map_tasks", mapped)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_an_addition_that_grows_while_it_is_unfinished(tmp_path, run, monkeypatch, count):
    paths = [write_jsonl(tmp_path / f"{k}.jsonl", make(12, k)) for k in range(3)]
    for output in ("out", "calm"):
        run(paths[0], output, **DEDUP)
    with monkeypatch.context() as patched:
        stop_after(patched, count)
        with pytest.raises(Stopped):
            run(paths[:2], **DEDUP)
    run(paths, **DEDUP)
    run(paths, "calm", **DEDUP)
    assert contents(tmp_path / "out") == contents(tmp_path / "calm")
    assert decoded(tmp_path / "out") == [text for k in range(3) for text in make(12, k)]


@pytest.mark.parametrize("count", [1, 4, 9])
def test_a_first_run_whose_inputs_change(tmp_path, run, monkeypatch, capsys, count):
    first = write_jsonl(tmp_path / "x.jsonl", make(30))
    with monkeypatch.context() as patched:
        stop_after(patched, count)
        with pytest.raises(Stopped):
            run(first, **DEDUP)
    write_jsonl(first, make(40, 3))
    run(first, **DEDUP)
    assert "it is begun anew" in capsys.readouterr().out
    assert decoded(tmp_path / "out") == make(40, 3)
    run(first, "calm", **DEDUP)
    assert contents(tmp_path / "out") == contents(tmp_path / "calm")


def test_a_changed_setting_of_an_unfinished_run_is_refused(tmp_path, run, monkeypatch):
    path = write_jsonl(tmp_path / "x.jsonl", make(30))
    with monkeypatch.context() as patched:
        stop_after(patched, 2)
        with pytest.raises(Stopped):
            run(path)
    with pytest.raises(UserError, match=r"split\.valid was 0\.0, now 0\.5"):
        run(path, split__valid=0.5)


def test_a_failed_budget_is_mended_by_mending_the_input_or_leaving_it_out(tmp_path, run):
    first = write_jsonl(tmp_path / "x.jsonl", make(30))
    run(first, **DEDUP)
    broken = write_jsonl(tmp_path / "y.jsonl", make(3, 1))
    with broken.open("ab") as stream:
        stream.write(b"{\n" * 20)
    with pytest.raises(UserError, match="max_bad_fraction"):
        run([first, broken], **DEDUP)
    assert run(first, **DEDUP).documents == 30
    with pytest.raises(UserError, match="max_bad_fraction"):
        run([first, broken], **DEDUP)
    write_jsonl(broken, make(3, 1))
    assert run([first, broken], **DEDUP).documents == 33
    assert verify_directory(tmp_path / "out") == []
    assert not (tmp_path / "out/.work").exists()
    assert {p.name for p in (tmp_path / "out").glob("quarantine*")} == {"quarantine_2.jsonl"}


def test_a_straggler_of_a_deleted_run_writes_nowhere(tmp_path, run):
    config = load(DataPrepConfig, write_config(tmp_path, "out"), (), check)
    Path(config.output).mkdir()
    plan = make_plan(config, input_files(config, Path("unused")))
    run(write_jsonl(tmp_path / "x.jsonl", make_texts(100)))
    before = contents(tmp_path / "out")
    late = next(stage for stage in stages(plan) if stage.name == "shards")
    with pytest.raises(UserError):
        late.task(0)
    assert contents(tmp_path / "out") == before


def test_an_end_that_is_interrupted_is_made_up_for(tmp_path, run, monkeypatch):
    from data_prep import pipeline

    paths = [write_jsonl(tmp_path / f"{k}.jsonl", make(12, k)) for k in range(2)]
    run(paths[0], **DEDUP)

    def interrupted(plan, done):
        raise Stopped

    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "tidy", interrupted)
        with pytest.raises(Stopped):
            run(paths, **DEDUP)
    assert (tmp_path / "out/.work").exists()
    assert len(Shards(tmp_path / "out")) == 24
    run(paths, **DEDUP)
    assert not (tmp_path / "out/.work").exists()
    assert not (tmp_path / "out/units.json").exists()
    third = write_jsonl(tmp_path / "2.jsonl", make(12, 1))
    made = run([*paths, third], **DEDUP)
    assert made.dropped == {"duplicate/exact": 12}


def test_signatures_that_are_gone_are_told(tmp_path, run):
    paths = [write_jsonl(tmp_path / f"{k}.jsonl", make(12, k)) for k in range(2)]
    run(paths[0], **DEDUP)
    shutil.rmtree(tmp_path / "out/.dedup")
    with pytest.raises(UserError, match="the signatures of unit 0 are gone"):
        run(paths, **DEDUP)
    assert run(paths[0], **DEDUP).documents == 12


def test_tasks_that_are_not_there_are_told(tmp_path, run, monkeypatch):
    path = write_jsonl(tmp_path / "x.jsonl", make(30))
    with pytest.raises(UserError, match="no run going on"):
        run_tasks(tmp_path / "out", "shards", [0])
    with monkeypatch.context() as patched:
        stop_after(patched, 2)
        with pytest.raises(Stopped):
            run(path)
    with pytest.raises(UserError, match="stage shards has no task 999, only 0 to"):
        run_tasks(tmp_path / "out", "shards", [999])
    run_tasks(tmp_path / "out", "shards", [2])
    assert list((tmp_path / "out/.work").glob("*/unit_00002.json"))


def test_licences_are_taken_over_at_once(tmp_path, run):
    path = write_jsonl(tmp_path / "x.jsonl", make(10))
    before = run(path)
    assert run(path, licences=[{"path": str(path), "licence": "CC0"}]).licences == {
        str(path): "CC0"
    }
    assert manifest.load(tmp_path / "out").fingerprint == before.fingerprint


def test_what_turns_out_to_be_no_use_is_no_good_record(tmp_path, run):
    """A WordPiece tokenizer gives no token for marks of direction alone."""
    path = write_jsonl(tmp_path / "x.jsonl", [*make(3), "\u200e\u200e", "\u200f"])
    kind = {"tokenizer__train__kind": "wordpiece", "tokenizer__train__vocab_size": 400}
    made = run(path, max_bad_fraction=0.5, **kind)
    units = manifest.load_units(tmp_path / "out", made)
    assert sum(segment.records for unit in units for segment in unit.segments) == 3
    assert made.dropped == {"no_tokens": 2}
