"""Equal documents and equal paragraphs."""

import random
from pathlib import Path

import pytest
import xxhash

from data_prep.dedup import DedupConfig, job, remove_paragraphs
from data_prep.dedup.paragraphs import paragraph_hashes, spans, text_hash
from data_prep.dedup_config import ParagraphDuplicates
from tests.data_prep.dedup.made import cut, deduplicated, english, flat

EXACT = DedupConfig(exact=True)


def test_exact_names_the_first(tmp_path: Path) -> None:
    units = [["a b", "c", "a  b"], [" a\nb ", "C", "d"], ["d", "c", "e", "d\t"]]
    found = deduplicated(tmp_path, units, EXACT)
    where = [{n: (d.kind, d.unit, d.document) for n, d in u.documents.items()} for u in found]
    exact = "exact"
    assert where == [
        {2: (exact, 0, 0)},
        {0: (exact, 0, 0)},
        {0: (exact, 1, 2), 1: (exact, 0, 1), 3: (exact, 1, 2)},
    ]


def test_exact_before_near(tmp_path: Path) -> None:
    """A document that equals one and is like an earlier one is told to equal."""
    words = english(random.Random(0), 100)
    near, text = " ".join([*words, "end"]), " ".join(words)
    both = DedupConfig.model_validate({"exact": True, "near": True})
    for units in ([[near, text, text]], [[near], [text], [text]], [[near], [text, text]]):
        documents, _ = flat(units, deduplicated(tmp_path / str(len(units)), units, both))
        assert documents[1][:2] == ("near", 0)
        assert documents[2] == ("exact", 1, 1.0)


def test_exact_against_a_dict(tmp_path: Path, monkeypatch) -> None:
    rng = random.Random(1)
    texts = [f"text {rng.randrange(300)}" for _ in range(1000)]
    first: dict[str, int] = {}
    wanted = {}
    for number, text in enumerate(texts):
        if first.setdefault(text, number) != number:
            wanted[number] = ("exact", first[text], 1.0)
    for number, sizes in enumerate([[1000], [13, 70]]):
        units = cut(texts, sizes)
        assert flat(units, deduplicated(tmp_path / str(number), units, EXACT))[0] == wanted
        monkeypatch.setattr(job, "PARTITION_BYTES", 1000)


@pytest.mark.parametrize("slice_characters", [1, 2, 3, 7, 1 << 20])
def test_text_hash_is_of_normalised_text(monkeypatch, slice_characters: int) -> None:
    monkeypatch.setattr("data_prep.dedup.paragraphs._SLICE", slice_characters)
    for text in ["", "  ", " a  b\n\u3000c ", "a", "ab\t", "天地 玄", "\n\n x"]:
        plain = " ".join(text.split())
        assert text_hash(text) == (xxhash.xxh3_128_intdigest(plain.encode()), len(plain))


PARAGRAPHS = DedupConfig.model_validate({"paragraphs": {"enabled": True, "min_characters": 8}})


def test_paragraphs_against_a_set(tmp_path: Path, monkeypatch) -> None:
    rng = random.Random(2)
    texts = []
    for _ in range(300):
        some = [f"paragraph {rng.randrange(400)}\nline two" for _ in range(rng.randint(1, 9))]
        texts.append(rng.choice(["\n\n", "\n \n\n"]).join([*some, "short"]))
    seen: dict[str, int] = {}
    wanted: dict[int, list[tuple[int, int]]] = {}
    for number, text in enumerate(texts):
        for place, paragraph in enumerate(p for p in text.split("\n") if p.startswith("para")):
            if paragraph in seen:
                wanted.setdefault(number, []).append((place, seen[paragraph]))
            else:
                seen[paragraph] = number
    for number, sizes in enumerate([[300], [11, 40]]):
        units = cut(texts, sizes)
        assert flat(units, deduplicated(tmp_path / str(number), units, PARAGRAPHS))[1] == wanted
        monkeypatch.setattr(job, "PARTITION_BYTES", 10_000)


def test_a_dropped_document_takes_no_paragraph_of_a_later_one(tmp_path: Path) -> None:
    """Its only copy would be lost."""
    rng = random.Random(3)
    words = english(rng, 120)
    extra = "an extra paragraph that nothing else has"
    like = " ".join(words) + "\n\n" + extra
    every = DedupConfig.model_validate({**PARAGRAPHS.model_dump(), "near": True})
    units = [[" ".join(words)], [like, extra + "\n\nand more of it"], [extra]]
    found = deduplicated(tmp_path, units, every)
    assert set(found[1].documents) == {0}
    assert not found[1].paragraphs
    assert [(p.paragraph, p.unit, p.document) for p in found[2].paragraphs[0]] == [(0, 1, 1)]
    assert remove_paragraphs(extra, [0], every.paragraphs) == ""


def test_paragraphs_make_up_the_text() -> None:
    rng = random.Random(4)
    for unit in ("paragraph", "line"):
        config = ParagraphDuplicates(unit=unit, min_characters=1)
        for _ in range(300):
            text = "".join(rng.choice("ab \n\n\r\t") for _ in range(rng.randint(0, 40)))
            parts = [text[a:b] for a, b in spans(text, config)]
            assert "".join(parts) == text
            assert remove_paragraphs(text, [], config) == (text if text.strip() else "")
            if unit == "paragraph":
                plain = "\n".join(line.strip() for line in text.split("\n"))
                assert sum(bool(p.strip()) for p in parts) == sum(
                    bool(p.strip()) for p in plain.split("\n\n")
                )
    text = "one one\n\ntwo two\n \nthree\n"
    config = ParagraphDuplicates(min_characters=6)
    assert [number for number, _ in paragraph_hashes(text, config)] == [0, 1]
    assert remove_paragraphs(text, [1], config) == "one one\n\nthree\n"
    assert remove_paragraphs(text, [2, 0], config) == "two two\n \n"
