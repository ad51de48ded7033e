"""Rules and the search for duplicates within whole runs: counts, decisions, additions."""

import random

import pytest

from data_prep import Shards, manifest
from data_prep.records import packed_lines
from data_prep.verify import verify_directory
from runtime.errors import UserError
from tests.data_prep.samples import contents, make_texts, sentence, write_jsonl
from tests.data_prep.test_pipeline import decoded

DEDUP = {"dedup__exact": True, "dedup__near": True}


def near(text: str) -> str:
    """One word of sixty changed."""
    words = text.split()
    words[len(words) // 2] = "changed"
    return " ".join(words)


def make(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [f"{seed}-{n} {' '.join(sentence(rng, 12) for _ in range(5))}" for n in range(count)]


def test_duplicates_are_left_out_across_units(tmp_path, run):
    texts = make(60)
    lines = [*texts, texts[3], near(texts[5]), *make(20, 1), texts[3]]
    made = run(write_jsonl(tmp_path / "x.jsonl", lines), **DEDUP)
    assert len(made.shards) > 3
    assert decoded(tmp_path / "out") == [*texts, *make(20, 1)]
    assert made.dropped == {"duplicate/exact": 2, "duplicate/near": 1}
    assert verify_directory(tmp_path / "out") == []
    units = manifest.load_units(tmp_path / "out", made)
    found = [
        (unit.segments[line["segment"]].first_line + line["line"], line["reason"])
        for unit in units
        for line in packed_lines(tmp_path / "out" / unit.dropped.file)
    ]
    assert found == [(61, "exact"), (62, "near"), (83, "exact")]
    assert not (tmp_path / "out/.work").exists()


@pytest.mark.parametrize("workers", [2, 4])
def test_the_same_bytes_with_any_number_of_workers(tmp_path, run, workers):
    texts = make(60)
    path = write_jsonl(tmp_path / "x.jsonl", [*texts, *map(near, texts[::3]), *texts[::2]])
    run(path, "one", workers=1, split__valid=0.1, **DEDUP)
    run(path, "more", workers=workers, split__valid=0.1, **DEDUP)
    assert contents(tmp_path / "one") == contents(tmp_path / "more")
    assert len(Shards(tmp_path / "one")) < 60


def test_added_inputs_are_compared_with_what_is_there(tmp_path, run):
    texts = make(60)
    first = write_jsonl(tmp_path / "x.jsonl", texts)
    before = run(first, **DEDUP)
    second = write_jsonl(tmp_path / "y.jsonl", [near(texts[50]), *make(5, 2), texts[1]])
    made = run([first, second], **DEDUP)
    assert made.shards[: len(before.shards)] == before.shards
    assert decoded(tmp_path / "out") == [*texts, *make(5, 2)]
    assert made.dropped == {"duplicate/exact": 1, "duplicate/near": 1}


def test_repeated_paragraphs_are_taken_out(tmp_path, run):
    footer = "Subscribe to our newsletter and never miss a story again, it is free of charge."
    texts = [f"{text}\n\n{footer}" for text in make(12)]
    made = run(
        write_jsonl(tmp_path / "x.jsonl", [*texts, footer]),
        dedup__paragraphs={"enabled": True, "min_characters": 50},
        tokenizer__train__vocab_size=400,
    )
    found = decoded(tmp_path / "out")
    assert found[0] == texts[0]
    assert len(found) == 12
    assert all(footer not in text for text in found[1:])
    assert made.changed == {"duplicate/paragraphs": 11}
    assert made.dropped == {"duplicate/paragraphs": 1}


def test_the_tokenizer_learns_from_what_is_kept(tmp_path, run):
    texts = make(40)
    noise = "zqxj vwkp " * 40
    path = write_jsonl(tmp_path / "x.jsonl", [*texts, noise, *[noise] * 200])
    run(path, dedup__exact=True, tokenizer__train__min_frequency=45)
    names = (tmp_path / "out/tokenizer.json").read_text()
    assert '"zq' not in names


def test_bad_records_and_lines_stay_right_beside_rules(tmp_path, run):
    texts = make_texts(40)
    path = write_jsonl(tmp_path / "x.jsonl", texts)
    with path.open("ab") as stream:
        stream.write(b'{"text": 1}\n')
    made = run(path, dedup__exact=True, max_bad_fraction=0.1)
    assert made.dropped == {"not_a_string": 1}
    assert b'"line":41' in (tmp_path / "out/quarantine.jsonl").read_bytes()


def test_test_sets_are_kept_out_and_their_content_is_part_of_the_plan(tmp_path, run):
    texts = make(20)
    exam = tmp_path / "exam.jsonl"
    write_jsonl(exam, [" ".join(texts[7].split()[4:30])])
    path = write_jsonl(tmp_path / "x.jsonl", texts)
    rules = {"decontaminate__paths": [str(exam)]}
    made = run(path, **rules)
    assert decoded(tmp_path / "out") == texts[:7] + texts[8:]
    assert made.dropped == {"decontaminate/test_text": 1}
    unit = manifest.load_units(tmp_path / "out", made)
    (line,) = [line for u in unit for line in packed_lines(tmp_path / "out" / u.dropped.file)]
    assert line["value"].startswith(f"{exam}:1: {' '.join(texts[7].split()[4:8])}")
    write_jsonl(exam, ["another text of the exam, which is long enough to be looked for here"])
    with pytest.raises(UserError, match="decontaminate"):
        run(path, **rules)


def test_rules_of_the_config_decide_and_say_what_they_measured(tmp_path, run):
    texts = make(10)
    path = write_jsonl(tmp_path / "x.jsonl", [*texts, "short", f"mail me@example.com {texts[0]}"])
    rules = [{"rule": "gopher_quality", "min_words": 20, "min_stop_words": 0}, "pii"]
    made = run(path, clean=rules, workers=2)
    assert made.documents == 11
    assert made.dropped == {"gopher_quality/few_words": 1}
    assert made.changed == {"pii": 1}
    assert "me@example.com" not in " ".join(decoded(tmp_path / "out"))
    with pytest.raises(UserError, match=r"clean.* was .*now"):
        run(path, clean=rules[:1])
