"""Documents that share runs of words with test sets."""

import pickle
import random
from pathlib import Path

import orjson
import pytest

from data_prep.decontaminate import (
    Contaminated,
    Contamination,
    DecontaminateConfig,
    check_decontaminate,
)
from data_prep.dedup.words import CHUNK_CHARACTERS
from runtime.errors import UserError
from tests.data_prep.samples import write_jsonl


def words(rng: random.Random, count: int) -> list[str]:
    return [f"w{rng.randrange(500)}" for _ in range(count)]


def build(tmp_path: Path, texts: list[str], **changes) -> Contamination:
    path = write_jsonl(tmp_path / "test.jsonl", texts)
    return Contamination.build(DecontaminateConfig(paths=(str(path),), **changes))


@pytest.mark.parametrize("ngram", [1, 3, 13])
def test_against_sets_of_tuples(tmp_path: Path, ngram: int) -> None:
    rng = random.Random(ngram)
    tests = [words(rng, rng.randint(1, 40)) for _ in range(60)]
    least = min(8, ngram)
    index = build(
        tmp_path, ["  ".join(t).upper() + "!" for t in tests], ngram=ngram, min_words=least
    )
    wanted = {
        tuple(t[i : i + n])
        for t in tests
        for n in [min(ngram, len(t))]
        if n >= least
        for i in range(len(t) - n + 1)
    }
    lengths = {len(run) for run in wanted}
    assert len(index) == len(wanted)
    assert index.too_short == sum(len(t) < least for t in tests)
    hits = 0
    for _ in range(300):
        document = words(rng, 60)
        if rng.random() < 0.7:
            source = rng.choice(tests)
            start = rng.randrange(len(source))
            document[20:20] = source[start : start + rng.randint(1, 30)]
        runs = {
            tuple(document[i : i + n]) for n in lengths for i in range(len(document) - n + 1)
        } & wanted
        found = index.find(" ".join(document))
        assert (found is not None) == bool(runs)
        if found:
            hits += 1
            assert found.matches == len(runs)
            assert tuple(found.words.split()) in runs
            assert found.words.split()[0] in tests[found.line - 1]
    assert hits > 20 or ngram == 1


def test_says_what_is_shared_and_where(tmp_path: Path) -> None:
    text = "The quick, brown fox jumps over the lazy dog: and then it sleeps."
    index = build(tmp_path, ["short", text, "一二三四五六七八九十百千万"])
    hit = index.find("Before. THE QUICK BROWN FOX\njumps over  the lazy dog -- and then it SLEEPS!")
    wanted = "THE QUICK BROWN FOX jumps over the lazy dog -- and then it SLEEPS"
    assert hit == Contaminated(str(tmp_path / "test.jsonl"), 2, wanted, 1)
    assert index.find("the quick brown fox jumps over the lazy dog and then it") is None
    assert index.find("前文。一二三四五，六七八九十百千万。后文") == Contaminated(
        str(tmp_path / "test.jsonl"), 3, "一二三四五，六七八九十百千万", 1
    )
    assert index.find("一二三四五六七八九十百千") is None
    assert index.find("short") is None  # fewer than min_words
    assert index.find("") is None


def test_short_texts_are_matched_whole(tmp_path: Path) -> None:
    index = build(tmp_path, ["a b c d e f g h i"], min_words=8)
    assert index.find("x a b c d e f g h i y")
    assert index.find("x a b c d e f g h y") is None
    assert index.find("xa b c d e f g h i") is None  # whole words


def test_min_matches(tmp_path: Path) -> None:
    text = " ".join(f"w{n}" for n in range(20))
    index = build(tmp_path, [text], min_matches=3)
    assert index.find(" ".join(text.split()[:14])) is None
    found = index.find(" ".join(text.split()[:15]))
    assert found is not None
    assert found.matches == 3


def test_a_run_over_the_cut_of_a_long_text(tmp_path: Path) -> None:
    test = " ".join(f"q{n}" for n in range(13))
    index = build(tmp_path, [test])
    for before in range(CHUNK_CHARACTERS - 60, CHUNK_CHARACTERS + 5, 4):
        document = "y" + " x" * (before // 2) + " " + test + " z" * 1000
        found = index.find(document)
        assert found is not None
        assert (found.words, found.matches) == (test, 1)


def test_saved_and_sent(tmp_path: Path) -> None:
    rng = random.Random(0)
    index = build(tmp_path, [" ".join(words(rng, 30)) for _ in range(50)])
    document = "x " + orjson.loads((tmp_path / "test.jsonl").read_bytes().split(b"\n")[7])["text"]
    index.save(tmp_path / "index")
    loaded = Contamination.load(tmp_path / "index")
    for other in (loaded, pickle.loads(pickle.dumps(index))):
        assert other.find(document) == index.find(document) != None  # noqa: E711 - all three
        assert other.identity == index.identity
    (tmp_path / "index").write_bytes(b"x" * 16)
    with pytest.raises(UserError, match="delete it"):
        Contamination.load(tmp_path / "index")
    nothing = build(tmp_path, ["too short"])
    nothing.save(tmp_path / "empty")
    assert Contamination.load(tmp_path / "empty").find(document) is None


def test_identity_is_of_content_and_settings(tmp_path: Path) -> None:
    one = build(tmp_path, ["a b c"]).identity
    assert build(tmp_path, ["a b c"]).identity == one
    assert build(tmp_path, ["a b d"]).identity != one
    assert build(tmp_path, ["a b c"], ngram=12).identity != one
    orjson.dumps(one)


def test_several_fields_and_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "qa.jsonl"
    lines = [{"question": "a b c d e f g h", "answer": f"{n} i j k l m n o"} for n in range(2)]
    path.write_bytes(b"\n".join(map(orjson.dumps, lines)))
    config = DecontaminateConfig(paths=(str(path),), text_keys=("question", "answer"))
    index = Contamination.build(config)
    assert index.find("a b c d e f g h")
    found = index.find("1 i j k l m n o")
    assert found is not None
    assert found.line == 2
    with pytest.raises(UserError, match="text_keys"):
        Contamination.build(DecontaminateConfig(paths=(str(path),)))
    assert not check_decontaminate(config)
    absent = DecontaminateConfig(paths=(str(tmp_path / "no.jsonl"),))
    assert [problem.key for problem in check_decontaminate(absent)] == ["decontaminate.paths"]
    plain = tmp_path / "lines.txt"
    plain.write_text("one two three four five six seven eight\nnext\n")
    index = Contamination.build(DecontaminateConfig(paths=(str(plain),), text_keys=("a", "b")))
    assert len(index) == 1
    assert index.too_short == 1


def test_unreadable_lines_of_test_sets_are_told(tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl"
    good = b'{"text": "a b c d e f g h"}\n'
    path.write_bytes(good + b'{"no": 1}\n{"text": null}\n{"text": " "}\n' + good)
    config = DecontaminateConfig(paths=(str(path),), text_keys=("text",))
    index = Contamination.build(config)
    assert (index.unreadable, len(index)) == (3, 1)
    path.write_bytes(good + good + b'{"text": "cut\n' + good + b"[]\n")
    with pytest.raises(UserError, match=r"test\.jsonl: line 3: invalid_json; 2 records cannot"):
        Contamination.build(config)
    both = DecontaminateConfig(paths=(str(path),), text_keys=("text", "other"))
    with pytest.raises(UserError, match="line 3: invalid_json; 2 records cannot"):
        Contamination.build(both)
