"""Documents with known repetitions, the whole of deduplication in one call, and an independent
reference: words by a regular expression, sets of tuples, all pairs."""

import functools
import random
import re
from collections.abc import Sequence
from pathlib import Path

from data_prep.dedup import (
    DedupConfig,
    Job,
    SignatureWriter,
    UnitDuplicates,
    duplicates,
    stages,
)

HAN = "天地玄黃宇宙洪荒日月盈昃辰宿列張寒來暑往秋收冬藏閏餘成歲律呂調陽"
_WORD = re.compile(r"[\u4e00-\u9fff]|[^\W\u4e00-\u9fff]+")


def english(rng: random.Random, words: int) -> list[str]:
    return [f"w{rng.randrange(3000)}" for _ in range(words)]


def chinese(rng: random.Random, characters: int) -> list[str]:
    return [rng.choice(HAN) + chr(0x4E00 + rng.randrange(2000)) for _ in range(characters // 2)]


def edited(rng: random.Random, words: list[str], edits: int) -> list[str]:
    """The words with so many of them replaced, deleted or doubled."""
    words = list(words)
    for _ in range(edits):
        at = rng.randrange(len(words))
        words[at : at + 1] = rng.choice(([f"new{rng.random()}"], [], [words[at]] * 2))
    return words


def corpus(count: int, seed: int = 0) -> list[str]:
    """Documents of which about half are earlier ones with 0 to 40 edits; some are Chinese."""
    rng = random.Random(seed)
    made: list[tuple[str, list[str]]] = []
    for _ in range(count):
        if made and rng.random() < 0.5:
            space, words = rng.choice(made)
            words = edited(rng, words, rng.choice([0, 1, 2, 4, 8, 15, 25, 40]))
        elif rng.random() < 0.25:
            space, words = "", chinese(rng, rng.randint(60, 400))
        else:
            space, words = " ", english(rng, rng.randint(40, 300))
        made.append((space, words or ["one"]))
    return [space.join(words) for space, words in made]


def jaccard(one: str, other: str, ngram: int = 5) -> float:
    a, b = shingles(one, ngram), shingles(other, ngram)
    return len(a & b) / len(a | b) if a | b else 0.0


@functools.cache
def shingles(text: str, ngram: int) -> set[tuple[str, ...]]:
    words = _WORD.findall(text.lower())
    if not words:
        return set()
    return {tuple(words[i : i + ngram]) for i in range(max(1, len(words) - ngram + 1))}


def sign(directory: Path, units: Sequence[Sequence[str]], config: DedupConfig, first: int = 0):
    for unit, texts in enumerate(units):
        if unit >= first:
            with SignatureWriter(directory, unit, config) as writer:
                numbers = [writer.add(text) for text in texts]
                writer.finish()
            assert numbers == list(range(len(texts)))


def decide(directory: Path, config: DedupConfig, units: int, first: int = 0):
    for stage in stages(Job(directory, units, config, first)):
        for number in stage.numbers:
            assert stage.task(number) == number
    return [duplicates(directory, unit) for unit in range(units)]


def deduplicated(
    directory: Path, units: Sequence[Sequence[str]], config: DedupConfig
) -> list[UnitDuplicates]:
    sign(directory, units, config)
    return decide(directory, config, len(units))


def cut(texts: list[str], sizes: Sequence[int]) -> list[list[str]]:
    """The texts in units of these sizes, in turns."""
    units, start = [], 0
    while start < len(texts):
        size = sizes[len(units) % len(sizes)]
        units.append(texts[start : start + size])
        start += size
    return units


def flat(units: list[list[str]], found: list[UnitDuplicates]):
    """Decisions with documents numbered through all units, to compare different cuts."""
    before = [sum(map(len, units[:unit])) for unit in range(len(units))]
    documents, paragraphs = {}, {}
    for unit, own in enumerate(found):
        for number, d in own.documents.items():
            at = (d.kind, before[d.unit] + d.document, d.similarity)
            documents[before[unit] + number] = at
        for number, removed in own.paragraphs.items():
            paragraphs[before[unit] + number] = [
                (r.paragraph, before[r.unit] + r.document) for r in removed
            ]
    return documents, paragraphs
