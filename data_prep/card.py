"""The data card of a prepared directory: what is in it, where it comes from, what was left out."""

import hashlib
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pydantic

from data_prep import manifest
from data_prep.clean.language import detect
from data_prep.manifest import Manifest, UnitEntry
from data_prep.records import packed_lines
from data_prep.shards import Shards
from data_prep.tokenizer import DocumentTokenizer

_SAMPLES, _SAMPLE_TOKENS = 3, 60
_EXAMPLES = 3  # of each reason
_MOST_UNITS = 32  # whose decisions are read for examples
_JUDGED, _JUDGED_TOKENS = 200, 512  # documents whose language is looked at
_PERCENTILES = (1, 10, 25, 50, 75, 90, 99, 100)
_QUARANTINED = 20


class Example(pydantic.BaseModel):
    """One document that was left out or shortened."""

    file: str
    line: int
    value: str
    excerpt: str
    duplicate_of: str = ""


class SplitCard(pydantic.BaseModel):
    """One split."""

    documents: int
    tokens: int
    text_bytes: int
    unknown_tokens: int
    lengths: dict[str, int]  # percentiles of tokens a document
    histogram: list[tuple[int, int]]  # documents of up to so many tokens, by powers of two
    languages: dict[str, float]  # shares of some documents; empty where py3langid is missing
    samples: list[tuple[int, str]]  # number, beginning


class Card(pydantic.BaseModel):
    """Everything that the card shows."""

    directory: str
    fingerprint: str
    documents: int
    tokens: int
    dtype: str
    tokenizer: dict[str, Any]
    splits: dict[str, SplitCard]
    sources: list[dict[str, Any]]
    plan: dict[str, Any]  # settings, without the list of sources
    dropped: dict[str, int]
    changed: dict[str, int]
    examples: dict[str, list[Example]]
    quarantined: list[dict[str, Any]]
    statistics: dict[str, Any]


def make_card(directory: Path) -> Card:
    """Look at a prepared directory. Raises UserError where it is damaged.

    Lengths are of all documents; languages, examples and samples of some, spread evenly.
    """
    listed = manifest.load(directory)
    own = listed.tokenizer
    tokenizer = DocumentTokenizer(directory, own.eod)
    return Card(
        directory=str(directory),
        fingerprint=listed.fingerprint,
        documents=listed.documents,
        tokens=listed.tokens,
        dtype=listed.dtype,
        tokenizer={"vocab_size": own.vocab_size, "eod": own.eod, "eod_id": own.eod_id},
        splits={name: _split(directory, name, listed, tokenizer) for name in sorted(listed.splits)},
        sources=[
            source.model_dump() | {"licence": listed.licence_of(source.path)}
            for source in listed.sources
        ],
        plan={name: value for name, value in listed.plan.items() if name != "sources"},
        dropped=listed.dropped,
        changed=listed.changed,
        examples=_examples(directory, listed),
        quarantined=_quarantined(directory / listed.quarantine.file),
        statistics=_statistics(directory),
    )


def _split(
    directory: Path, split: str, listed: Manifest, tokenizer: DocumentTokenizer
) -> SplitCard:
    if not listed.splits[split].documents:
        counts_only = listed.splits[split].model_dump()
        return SplitCard(**counts_only, lengths={}, histogram=[], languages={}, samples=[])
    shards = Shards(directory, split)
    lengths = shards.lengths()
    at = np.percentile(lengths, _PERCENTILES, method="lower").astype(int)
    bins, counts = np.unique(np.ceil(np.log2(lengths)).astype(int), return_counts=True)
    return SplitCard(
        **listed.splits[split].model_dump(),
        lengths={f"p{p}": int(value) for p, value in zip(_PERCENTILES, at, strict=True)},
        histogram=[(1 << int(b), int(n)) for b, n in zip(bins, counts, strict=True)],
        languages=_languages(shards, tokenizer),
        samples=[
            (number, tokenizer.decode(shards[number][:_SAMPLE_TOKENS]))
            for number in _spread(len(shards), _SAMPLES)
        ],
    )


def _spread(count: int, wanted: int) -> list[int]:
    return sorted({count * k // wanted for k in range(wanted)})


def _languages(shards: Shards, tokenizer: DocumentTokenizer) -> dict[str, float]:
    """Shares of the languages among some documents that a hash of their numbers chooses."""
    count = min(_JUDGED, len(shards))
    chosen = {
        int.from_bytes(hashlib.blake2b(str(k).encode(), digest_size=8).digest()) % len(shards)
        for k in range(count)
    }
    found: Counter[str] = Counter()
    try:
        for number in sorted(chosen):
            tokens = shards[number][:_JUDGED_TOKENS]
            found[detect(tokenizer.decode(tokens[tokens != shards.eod_id]))[0]] += 1
    except ModuleNotFoundError:
        return {}
    return {name: n / found.total() for name, n in found.most_common()}


def _examples(directory: Path, listed: Manifest) -> dict[str, list[Example]]:
    units = manifest.load_units(directory, listed) or []
    found: dict[str, list[Example]] = defaultdict(list)
    chosen = _spread(len(units), _MOST_UNITS) if units else []
    for unit in (units[number] for number in chosen):
        for line in packed_lines(directory / unit.dropped.file) if unit.dropped else ():
            own = found[f"{line['rule']}/{line['reason']}"]
            if len(own) < _EXAMPLES:
                own.append(_example(line, unit, listed))
    return dict(sorted(found.items()))


def _example(line: dict[str, Any], unit: UnitEntry, listed: Manifest) -> Example:
    segment = unit.segments[line["segment"]]
    of = line["duplicate_of"]
    return Example(
        file=listed.sources[segment.source].path,
        line=segment.first_line + line["line"],
        value=line["value"],
        excerpt=line["excerpt"],
        duplicate_of=f"document {of[1]} of unit {of[0]}" if of else "",
    )


def _quarantined(path: Path) -> list[dict[str, Any]]:
    found = []
    with path.open("rb") as stream:
        for raw in stream:
            found.append(orjson.loads(raw))
            if len(found) == _QUARANTINED:
                break
    return found


def _statistics(directory: Path) -> dict[str, Any]:
    from data_prep.statistics import NAME

    try:
        found: dict[str, Any] = orjson.loads((directory / NAME).read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}  # it is no part of the data
    return found
