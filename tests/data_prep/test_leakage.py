"""The report on texts of one set that are in another."""

import random
from pathlib import Path

import orjson
import pytest

from data_prep import leakage
from data_prep.leakage import main
from tests.data_prep.conftest import Prepare
from tests.data_prep.dedup.made import edited, english
from tests.data_prep.samples import write_jsonl


@pytest.fixture
def sets(tmp_path: Path) -> tuple[Path, Path]:
    """B: 100 texts, of which 12 equal one of A, 9 are near one, 5 repeat B, 2 are near one of B."""
    rng = random.Random(0)
    a = [english(rng, 100) for _ in range(300)]
    own = [english(rng, 100) for _ in range(72)]
    b = own + a[:12] + [edited(rng, words, 2) for words in a[50:59]] + own[:5]
    b += [edited(rng, own[20], 1), edited(rng, own[21], 1)]
    a += [*a[:4], edited(rng, a[200], 1)]
    return (
        write_jsonl(tmp_path / "a.jsonl", [" ".join(words) for words in a]),
        write_jsonl(tmp_path / "b.jsonl", [" ".join(words) for words in b]),
    )


def report(capsys, *arguments) -> dict:
    assert main([*map(str, arguments), "--json"]) == 0
    return orjson.loads(capsys.readouterr().out)


@pytest.mark.parametrize("unit_characters", [2000, 1 << 24])
def test_counts(sets, capsys, monkeypatch, unit_characters: int) -> None:
    monkeypatch.setattr(leakage, "_UNIT_CHARACTERS", unit_characters)
    found = report(capsys, *sets, "--examples", "2")
    assert (found["exact"], found["near"], found["share"]) == (12, 9, 0.21)
    counts = {"unreadable": 0, "texts": 305, "exact": 4, "near": 1}
    assert found["a"] == {"name": str(sets[0]), **counts}
    assert found["b"] == {"name": str(sets[1]), **counts, "texts": 100, "exact": 5, "near": 2}
    exact, near = found["examples"][0], found["examples"][2]
    assert [e["kind"] for e in found["examples"]] == ["exact", "exact", "near", "near"]
    assert (exact["place_a"], exact["place_b"]) == (f"{sets[0]}:1", f"{sets[1]}:73")
    assert exact["text_a"] == exact["text_b"]
    assert (near["place_a"], near["place_b"]) == (f"{sets[0]}:51", f"{sets[1]}:85")
    assert near["text_a"] != near["text_b"]
    assert near["similarity"] > 0.7


def test_many_repetitions_within_b_hide_no_leak(tmp_path: Path, capsys) -> None:
    rng = random.Random(1)
    text = english(rng, 100)
    b = [" ".join(edited(rng, text, 1)) for _ in range(50)]
    a = write_jsonl(tmp_path / "a.jsonl", [" ".join(text)])
    found = report(capsys, a, write_jsonl(tmp_path / "b.jsonl", b))
    assert found["near"] == 50


def test_short_texts_are_compared_by_pairs_of_words(tmp_path: Path, capsys) -> None:
    a = write_jsonl(tmp_path / "a.jsonl", ["when will my new card arrive at home", "x"])
    b = write_jsonl(tmp_path / "b.jsonl", ["When will my new card arrive at home today?", "y y"])
    found = report(capsys, a, b)
    assert (found["ngram"], found["near"]) == (2, 1)
    assert report(capsys, a, b, "--ngram", 5, "--min-similarity", 0.9)["near"] == 0


def test_prepared_splits_and_formats(run: Prepare, tmp_path: Path, capsys) -> None:
    rng = random.Random(2)
    texts = [" ".join(english(rng, 50)) for _ in range(100)]
    run(write_jsonl(tmp_path / "in.jsonl", texts), "out", split__valid=0.3)
    out = tmp_path / "out"
    capsys.readouterr()
    found = report(capsys, out)
    assert found["share"] == 0
    assert found["a"]["texts"] + found["b"]["texts"] == 100
    (tmp_path / "lines.txt").write_text("\n".join(texts[:40]) + "\n")
    found = report(capsys, f"{out}:train", tmp_path / "lines.txt")
    other = report(capsys, f"{out}:valid", tmp_path / "lines.txt")
    assert found["exact"] + other["exact"] == 40
    assert found["examples"][0]["place_a"].startswith(f"{out}:train[")
    (tmp_path / "bad.jsonl").write_bytes(b'{"text": "' + texts[0].encode() + b'"}\n{]\n{}\n')
    found = report(capsys, tmp_path / "lines.txt", tmp_path / "bad.jsonl")
    assert (found["exact"], found["b"]["texts"], found["b"]["unreadable"]) == (1, 1, 2)


def test_words_for_people_and_statuses(sets, tmp_path: Path, capsys) -> None:
    assert main([*map(str, sets), "--max-share", "0.2"]) == 1
    out = capsys.readouterr().out
    assert "of B in A: 12 equal, 9 near duplicates: 21.00% of B" in out
    assert main([*map(str, sets), "--max-share", "0.21"]) == 0
    capsys.readouterr()
    assert main(["/nowhere", str(sets[0])]) == 2
    assert "/nowhere" in capsys.readouterr().err
    empty = tmp_path / "empty.jsonl"
    empty.write_bytes(b"")
    assert main([str(empty), str(sets[1])]) == 0
    assert main([str(sets[1]), str(empty)]) == 0
