"""`python -m data_prep leakage A B`: how many texts of B are in A, equal or nearly so.

A result on B says little where a model learnt B by heart. A and B are splits of prepared data
(DIR:train DIR:valid) or files; with one directory, its own splits train and valid.
"""

import argparse
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import orjson

from data_prep import manifest
from data_prep.dedup import DedupConfig, Duplicate, Job, SignatureWriter, duplicates, stages
from data_prep.dedup.signatures import unit_file
from data_prep.dedup.words import split_words
from data_prep.options import Parser
from data_prep.text_sets import TextSet
from runtime.errors import EXIT_FAILED, EXIT_OK, command

_UNIT_CHARACTERS = 16 << 20  # of texts that are signed into one file
_SHORT, _SHORT_NGRAM, _LONG_NGRAM = 30, 2, 5
_LOOKED_AT = 1000  # texts whose length decides how they are compared
_SHOWN_CHARACTERS = 200


class Example(NamedTuple):
    """Two texts that are alike; the places say where they are."""

    kind: str
    similarity: float
    place_a: str
    text_a: str
    place_b: str
    text_b: str


@dataclass
class SetReport:
    """One set, and what repeats within it."""

    name: str
    texts: int
    unreadable: int
    exact: int  # texts that equal an earlier one of the set
    near: int


@dataclass
class Report:
    """How much of B is in A."""

    a: SetReport
    b: SetReport
    exact: int  # texts of B that equal one of A, but for white space
    near: int  # others that are like one of A
    ngram: int
    min_similarity: float
    examples: list[Example]

    @property
    def share(self) -> float:
        """The fraction of B that is in A."""
        return (self.exact + self.near) / max(self.b.texts, 1)


class _Signed(NamedTuple):
    directory: Path
    starts: list[int]  # number of each unit's first text
    texts: int


def compare(a: TextSet, b: TextSet, config: DedupConfig, examples: int, scratch: Path) -> Report:
    """Sign both sets into files in `scratch` and match them; memory does not grow with the sets.

    config: exact and near are on. Raises UserError for files that cannot be read.
    """
    signed_a, signed_b = _sign(a, config, scratch / "a"), _sign(b, config, scratch / "b")
    bad_a, bad_b = a.bad, b.bad
    both = scratch / "both"
    both.mkdir()
    units_a, units = len(signed_a.starts), len(signed_a.starts) + len(signed_b.starts)
    for signed, first in ((signed_a, 0), (signed_b, units_a)):
        for path in signed.directory.iterdir():
            own, _, kind = path.name.partition(".")
            number = int(own.removeprefix("unit_")) + first
            unit_file(both, number, kind).symlink_to(path.resolve())
    counts: Counter[str] = Counter()
    chosen: list[tuple[Duplicate, int, int]] = []  # with the numbers in A and in B
    taken: Counter[str] = Counter()
    for unit, number, found in _found(Job(both, units, config, units_a, only_old=True)):
        counts[found.kind] += 1
        if taken[found.kind] < examples:
            taken[found.kind] += 1
            in_a = signed_a.starts[found.unit] + found.document
            chosen.append((found, in_a, signed_b.starts[unit - units_a] + number))
    return Report(
        _within(a.name, signed_a, bad_a, config),
        _within(b.name, signed_b, bad_b, config),
        counts["exact"],
        counts["near"],
        config.near.ngram,
        config.near.min_similarity,
        _examples(a, b, chosen),
    )


def _sign(texts: TextSet, config: DedupConfig, directory: Path) -> _Signed:
    starts: list[int] = []
    count = 0
    iterator = iter(texts)
    while (first := next(iterator, None)) is not None:
        with SignatureWriter(directory, len(starts), config) as writer:
            starts.append(count)
            writer.add(first[1])
            characters, count = len(first[1]), count + 1
            while characters < _UNIT_CHARACTERS and (item := next(iterator, None)) is not None:
                writer.add(item[1])
                characters, count = characters + len(item[1]), count + 1
            writer.finish()
    directory.mkdir(exist_ok=True)
    return _Signed(directory, starts, count)


def _found(job: Job) -> Iterator[tuple[int, int, Duplicate]]:
    """Yield (unit, number, what it repeats) of the new units, in order."""
    for stage in stages(job):
        for number in stage.numbers:
            stage.task(number)
    for unit in range(job.first_new, job.units):
        for number, found in sorted(duplicates(job.directory, unit).documents.items()):
            yield unit, number, found


def _within(name: str, signed: _Signed, bad: int, config: DedupConfig) -> SetReport:
    job = Job(signed.directory, len(signed.starts), config)
    counts = Counter(found.kind for _, _, found in _found(job))
    return SetReport(name, signed.texts, bad, counts["exact"], counts["near"])


def _examples(a: TextSet, b: TextSet, chosen: list[tuple[Duplicate, int, int]]) -> list[Example]:
    """Look the chosen texts up, in one more pass over each set."""
    texts_a = _texts(a, {in_a for _, in_a, _ in chosen})
    texts_b = _texts(b, {in_b for _, _, in_b in chosen})
    return [
        Example(found.kind, found.similarity, *texts_a[in_a], *texts_b[in_b])
        for found, in_a, in_b in chosen
    ]


def _texts(texts: TextSet, numbers: set[int]) -> dict[int, tuple[str, str]]:
    found = {}
    if numbers:
        for number, (place, text) in enumerate(islice(iter(texts), max(numbers) + 1)):
            if number in numbers:
                found[number] = place, " ".join(text[: 4 * _SHOWN_CHARACTERS].split())
    return found


def usual_ngram(*sets: TextSet) -> int:
    """Words in a shingle: 5, or 2 where texts have fewer than 30 words at the median.

    One changed word is in 5 shingles of 5 words, which in a sentence are most of them.
    """
    counts = [
        len(split_words(text[:10_000]).starts)
        for texts in sets
        for _, text in islice(iter(texts), _LOOKED_AT)
    ]
    return _SHORT_NGRAM if counts and statistics.median(counts) < _SHORT else _LONG_NGRAM


def _print(report: Report) -> None:
    for name, one in (("A", report.a), ("B", report.b)):
        bad = f", {one.unreadable:,} unreadable" if one.unreadable else ""
        print(f"{name}: {one.name}: {one.texts:,} texts{bad}")
        print(f"   repeated within: {one.exact:,} equal, {one.near:,} near duplicates")
    both = f"{report.exact:,} equal, {report.near:,} near duplicates"
    print(f"of B in A: {both}: {report.share:.2%} of B")
    print(f"   near: similarity ≥ {report.min_similarity:g} of runs of {report.ngram} words")
    for example in report.examples:
        print(f"\n{example.kind}, similarity {example.similarity:.2f}")
        for place, text in (
            (example.place_a, example.text_a),
            (example.place_b, example.text_b),
        ):
            print(f"   {place}: {text[:_SHOWN_CHARACTERS]!r}")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m data_prep leakage", description=__doc__)
    parser.add_argument("a", help="what is trained on: DIR:SPLIT, or a file, folder, glob or URL")
    parser.add_argument("b", nargs="?", help="what is tested on; none: A is DIR, and its splits")
    parser.add_argument("--text-key", default="text", help="field or column (default: text)")
    parser.add_argument(
        "--document",
        choices=["line", "paragraph", "file"],
        default="line",
        help="what one text is in a plain text file (default: line)",
    )
    parser.add_argument(
        "--min-similarity",
        type=float,
        default=0.7,
        metavar="J",
        help="estimated Jaccard similarity of near duplicates (default: 0.7)",
    )
    parser.add_argument(
        "--ngram",
        type=int,
        metavar="WORDS",
        help="words that are compared in a row (default: 5, of short texts 2)",
    )
    parser.add_argument(
        "--examples", type=int, default=3, metavar="N", help="shown of each kind (default: 3)"
    )
    parser.add_argument(
        "--max-share",
        type=float,
        default=1.0,
        metavar="F",
        help="exit with status 1 where more than this fraction of B is in A",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _sets(options: argparse.Namespace) -> tuple[TextSet, TextSet]:
    a, b = options.a, options.b
    if b is None and (Path(a) / manifest.NAME).exists():
        a, b = f"{a}:train", f"{a}:valid"
    elif b is None:
        _parser().error("name two sets, or one directory of prepared data")
    return (
        TextSet(a, options.text_key, options.document),
        TextSet(b, options.text_key, options.document),
    )


@command
def main(arguments: Sequence[str]) -> int:
    """Print the report; returns the exit status, 1 where more leaks than `--max-share`."""
    options = _parser().parse_args(arguments)
    a, b = _sets(options)
    near = {
        "enabled": True,
        "ngram": options.ngram or usual_ngram(a, b),
        "min_similarity": options.min_similarity,
    }
    config = DedupConfig.model_validate({"exact": True, "near": near})
    with tempfile.TemporaryDirectory() as scratch:
        report = compare(a, b, config, options.examples, Path(scratch))
    if options.json:
        shown = {**asdict(report), "share": round(report.share, 6)}
        shown["examples"] = [example._asdict() for example in report.examples]
        print(orjson.dumps(shown, option=orjson.OPT_INDENT_2).decode())
    else:
        _print(report)
    return EXIT_FAILED if report.share > options.max_share else EXIT_OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
