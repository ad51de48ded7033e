"""`which`: from a run's files to the documents of a step."""

import json

import pytest

from data_prep import Loader
from data_prep.run_order import write_order
from data_prep.skipping import SkippedSteps
from data_prep.which import data_step_of, main
from runtime.errors import UserError

OPTIONS = {"seq_len": 16, "global_batch_size": 4, "seed": 3}


def test_training_steps_are_data_steps_that_were_not_left_out():
    skipped = SkippedSteps([(3, 5), (6, 7)])
    assert [data_step_of(skipped, step) for step in range(1, 7)] == [0, 1, 2, 5, 7, 8]


def test_the_documents_of_a_step_are_those_of_its_batch(prepared, tmp_path, capsys):
    loader = Loader([(prepared, 1.0)], **OPTIONS)
    for _ in range(6):
        next(loader)
    loader.skip(8, 11)
    write_order(tmp_path, loader.planned())
    for _ in range(2):
        next(loader)
    rows = next(loader)["input_ids"]
    assert main([str(tmp_path), "--step", "9", "--json", "--text"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["data_step"] == 11
    by_sample = {}
    for entry in found["documents"]:
        document = loader.shards[0][entry["document"]]
        assert len(document) == entry["of"]
        used = document[entry["first"] : entry["last"] + 1].tolist()
        by_sample.setdefault(entry["sample"], []).extend(used)
        assert entry["text"]
        assert entry["file"].endswith("in.jsonl")
    assert list(by_sample) == [44, 45, 46, 47]
    for row, ids in zip(rows.tolist(), by_sample.values(), strict=True):
        assert row[: len(ids)] == ids
    assert found["sources"][0]["tokens"] == 9 * 4 * 16
    assert main([str(tmp_path), "--step", "9"]) == 0
    assert f"{prepared} train[" in capsys.readouterr().out


def test_what_cannot_be_answered_is_refused(prepared, tmp_path):
    with pytest.raises(UserError, match=r"no data_order\.json and no checkpoint"):
        main([str(tmp_path), "--step", "1"])
    with pytest.raises(UserError, match="expected: python -m data_prep which"):
        main([str(tmp_path)])
    with pytest.raises(UserError, match="expected 1 or more"):
        main([str(tmp_path), "--step", "0"])
    planned = Loader([(prepared, 1.0)], **OPTIONS).planned()
    write_order(tmp_path, {**planned, "fingerprints": ["0" * 64]})
    with pytest.raises(UserError, match="has changed since"):
        main([str(tmp_path), "--step", "1"])
    (tmp_path / "data_order.json").write_text("{}")
    with pytest.raises(UserError, match="not as this version writes it"):
        main([str(tmp_path), "--step", "1"])
