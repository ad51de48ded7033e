"""Near duplicates, against Jaccard similarities of all pairs."""

import random
from pathlib import Path

import numpy as np
import pytest

from data_prep.dedup import DedupConfig, Job, duplicates, job, match_near, minhash, stages, words
from data_prep.dedup.minhash import MinHasher, compact, similarity
from data_prep.dedup.words import CHUNK_CHARACTERS, split_words, word_chunks
from data_prep.dedup_config import NearDuplicates
from tests.data_prep.dedup.made import (
    chinese,
    corpus,
    cut,
    decide,
    deduplicated,
    edited,
    english,
    flat,
    jaccard,
    sign,
)

NEAR = DedupConfig.model_validate({"near": True})


def test_recall_and_precision_against_all_pairs(tmp_path: Path) -> None:
    texts = corpus(400, seed=1)
    units = cut(texts, [90, 1, 50])
    dropped = flat(units, deduplicated(tmp_path, units, NEAR))[0]
    nearest = [
        max((jaccard(text, other) for other in texts[:number]), default=0.0)
        for number, text in enumerate(texts)
    ]
    must = {number for number, similarity in enumerate(nearest) if similarity >= 0.8}
    far = {number for number, similarity in enumerate(nearest) if similarity < 0.55}
    assert len(must) > 70
    assert len(far) > 150
    assert len(must & dropped.keys()) / len(must) >= 0.97
    assert not far & dropped.keys()
    for number, (kind, other, estimated) in dropped.items():
        assert kind == "near"
        assert other < number
        true = jaccard(texts[number], texts[other])
        assert abs(estimated - true) < 0.17, (number, other)  # 4 standard deviations of 112
    errors = [e - jaccard(texts[n], texts[o]) for n, (_, o, e) in dropped.items()]
    assert abs(np.mean(errors)) < 0.02  # no bias, by 8-bit values either


@pytest.mark.parametrize("make", [english, chinese])
def test_estimates_are_unbiased(make) -> None:
    rng = random.Random(3)
    space = " " if make is english else ""
    hasher = MinHasher(NearDuplicates())
    true, estimated = [], []
    for edits in [0, 1, 2, 3, 5, 8, 12, 20, 30, 200] * 20:
        words = make(rng, 250)
        one, other = space.join(words), space.join(edited(rng, words, edits))
        rows = compact(hasher.sign([one, other])[0])
        true.append(jaccard(one, other))
        estimated.append(float(similarity(rows[:1], rows[1:])[0]))
    errors = np.array(estimated) - np.array(true)
    assert abs(errors.mean()) < 0.01
    assert errors.std() < 0.05  # √(J(1 − J) / 112) is at most 0.047


def test_any_cut_into_units_decides_alike(tmp_path: Path, monkeypatch) -> None:
    texts = corpus(150, seed=2)
    every = DedupConfig.model_validate({"near": True, "exact": True})
    wanted = None
    for number, (sizes, partition_bytes) in enumerate(
        [([150], 1 << 30), ([9, 1], 16_000), ([40, 3], 8000), ([70], 50_000)]
    ):
        monkeypatch.setattr(job, "PARTITION_BYTES", partition_bytes)
        units = cut(texts, sizes)
        got = flat(units, deduplicated(tmp_path / str(number), units, every))
        wanted = wanted or got
        assert got == wanted
    assert len(wanted[0]) > 30


def test_added_units_change_no_decision(tmp_path: Path) -> None:
    every = DedupConfig.model_validate({"near": True, "exact": True, "paragraphs": True})
    units = cut(corpus(300, seed=5), [60])
    whole = deduplicated(tmp_path / "at once", units, every)
    grown = tmp_path / "grown"
    assert deduplicated(grown, units[:2], every) == whole[:2]
    before = {path.name: path.read_bytes() for path in grown.iterdir()}
    sign(grown, units, every, first=2)
    assert decide(grown, every, 5, first=2) == whole
    for name, content in before.items():
        assert (grown / name).read_bytes() == content


def test_compared_with_old_units_alone(tmp_path: Path) -> None:
    rng = random.Random(4)
    old, new = english(rng, 100), english(rng, 100)
    units = [
        [" ".join(old), " ".join(edited(rng, old, 1))],
        [" ".join(new), " ".join(new), " ".join(edited(rng, new, 1)), " ".join(edited(rng, old, 1))]
        + [" ".join(old)] * 3,
    ]
    every = DedupConfig.model_validate({"near": True, "exact": True})
    sign(tmp_path, units, every)
    for stage in stages(Job(tmp_path, 2, every, first_new=1, only_old=True)):
        for number in stage.numbers:
            stage.task(number)
    found = duplicates(tmp_path, 1).documents
    assert set(found) == {3, 4, 5, 6}
    assert {(d.unit, d.kind) for n, d in found.items() if n > 3} == {(0, "exact")}
    assert found[3].kind == "near"
    assert found[3].unit == 0


def test_short_and_empty_documents(tmp_path: Path) -> None:
    texts = ["", "...", "", "one two", "One, two!", "one two three", "天地", "天 地", "天地玄"]
    found = deduplicated(tmp_path, [texts], NEAR)[0].documents
    assert {n: d.document for n, d in found.items()} == {4: 3, 7: 6}


def test_a_text_signs_alike_in_any_company() -> None:
    """Long texts are signed in chunks, short ones together."""
    rng = random.Random(9)
    long = " ".join(english(rng, 80_000))
    assert len(long) > 3 * CHUNK_CHARACTERS
    texts = ["a b", *corpus(20), "", long, "x", "天" * CHUNK_CHARACTERS * 2, "y z"]
    hasher = MinHasher(NearDuplicates())
    together, signed = hasher.sign(texts)
    for number, text in enumerate(texts):
        alone, has_words = hasher.sign([text])
        assert (alone[0] == together[number]).all()
        assert has_words[0] == signed[number]
    assert signed.tolist() == [bool(text) for text in texts]
    whole = split_words(long)
    chunks = list(word_chunks(long))
    assert len(chunks) > 3
    assert (np.concatenate([chunk.hashes for chunk in chunks]) == whole.hashes).all()
    assert (np.concatenate([chunk.ends for chunk in chunks]) == whole.ends).all()


def test_shingles_lie_over_the_cuts_of_a_long_text(monkeypatch) -> None:
    rng = random.Random(10)
    texts = [" ".join(english(rng, 200)), " ".join(english(rng, 3)) + " " * 99, "a " * 60]
    whole, _ = MinHasher(NearDuplicates()).sign(texts)
    for characters in (17, 40, 90):
        monkeypatch.setattr(words, "CHUNK_CHARACTERS", characters)
        monkeypatch.setattr(minhash, "CHUNK_CHARACTERS", characters)
        assert (MinHasher(NearDuplicates()).sign(texts)[0] == whole).all()


def test_compared_with_the_first_and_the_last_few(tmp_path: Path) -> None:
    members = np.zeros(30, match_near._MEMBER)
    members["key"] = [1] * 5 + [2] * 25
    members["document"] = np.arange(30)
    for first_new, only_old in ((0, False), (3, False), (2, True)):
        members["unit"] = [0, 0, 1, 2, 3] + [0] * 10 + [1] * 5 + [2] * 5 + [3] * 5
        matcher = match_near.MatchNear(Job(tmp_path, 4, NEAR, first_new, only_old), 1)
        pairs = matcher._pairs(members, members["unit"] >= first_new)
        got = {(a, b) for later, earlier in pairs for a, b in zip(later, earlier, strict=True)}
        wanted = set()
        for start, stop in ((0, 5), (5, 30)):
            for later in range(start, stop):
                if members["unit"][later] >= first_new:
                    earlier = [
                        n
                        for n in range(start, later)
                        if not only_old or members["unit"][n] < first_new
                    ]
                    wanted |= {(later, n) for n in earlier[:1] + earlier[-match_near.RECENT :]}
        assert got == wanted
        assert len(got) > 30


def test_words() -> None:
    text = "Don't  STOP: naïve_x2 漢字かな, ünïÇode 한국어 เก่า\n🙂 e\u0301"
    split = split_words(text)
    found = [text[a:b].lower() for a, b in zip(split.starts, split.ends, strict=True)]
    assert found[:11] == ["don", "t", "stop", "naïve_x2", *"漢字かな", "ünïçode", "한국어", "เ"]
    assert found[-1] == "e\u0301"
    other = split_words("don T stop NAÏVE_X2 漢 字 か な ÜNÏÇODE 한국어")
    assert other.hashes.tolist() == split.hashes[:10].tolist()
    assert len(set(split.hashes.tolist())) == len(split.hashes)
    order = split_words("ab ba aab aba baa")
    assert len(set(order.hashes.tolist())) == 5


def test_who_is_compared_is_bounded(tmp_path: Path, monkeypatch) -> None:
    """Everybody shares bands with everybody: the pairs grow with documents, not their square."""
    rng = random.Random(6)
    base = english(rng, 400)
    units = [[" ".join(edited(rng, base, 3)) for _ in range(100)] for _ in range(4)]
    compared = []
    plain = match_near.similarity
    monkeypatch.setattr(
        match_near, "similarity", lambda a, b: compared.append(len(a)) or plain(a, b)
    )
    found = deduplicated(tmp_path, units, NEAR)
    assert sum(len(unit.documents) for unit in found) == 399
    assert sum(compared) <= 400 * (match_near.RECENT + 1) * 16
