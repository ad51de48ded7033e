"""Leave out of training what is in test sets: documents that share a run of words with one.

The test of GPT-3 (Brown et al. 2020, appendix C) with words as `data_prep.dedup.words` splits them:
lower case, punctuation and white space do not count, a Han character is a word.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

from data_prep.atomic import aside, publish, write_atomic
from data_prep.decontaminate_config import MOST_WORDS, DecontaminateConfig
from data_prep.dedup.words import U64, Words, constants, mix, word_chunks
from data_prep.readers import BadRecord
from data_prep.text_files import TextFile, text_files
from runtime.config import Problem
from runtime.errors import UserError

_SHOWN_CHARACTERS = 200
_FORMAT = 1  # of the saved index and of the hashes in it
_STREAM = 7
_WITHOUT_TEXT = ("missing_field", "null_text", "empty_text")  # no damage: a field may be absent


class Contaminated(NamedTuple):
    """Why a document is dropped."""

    file: str  # the test file
    line: int  # of the text in it, from 1; of files without lines, the record
    words: str  # what both have, as the document writes it; its beginning, where it is long
    matches: int  # how many different runs of words they share


def check_decontaminate(
    config: DecontaminateConfig, prefix: str = "decontaminate"
) -> list[Problem]:
    """The mistakes that need several keys or the file system to see."""
    problems = []
    for path in config.paths:
        try:
            text_files(path, config.text_keys[0])
        except UserError as error:
            problems.append(Problem(f"{prefix}.paths", str(error)))
    return problems


class Contamination:
    """The runs of words of test sets: sorted hashes, 16 bytes each. Picklable and immutable."""

    def __init__(self, hashes: U64, origins: npt.NDArray[np.uint32], about: dict[str, Any]) -> None:
        self._hashes = hashes  # (runs,) sorted, each once
        self._origins = origins  # (runs, 2): file, line of where it is first
        self._about = about
        # Most lookups end here: one byte for each value of the hashes' uppermost bits.
        bits = min(max(10, len(hashes).bit_length() + 4), 28)
        self._shift = np.uint64(64 - bits)
        self._filter = np.zeros(1 << bits, np.bool_)
        self._filter[hashes >> self._shift] = True

    @classmethod
    def build(cls, config: DecontaminateConfig) -> "Contamination":
        """Read the test files. Raises UserError where one cannot be read or holds no text."""
        hashes: list[U64] = [np.zeros(0, np.uint64)]
        origins = [np.zeros((0, 2), np.uint32)]
        names: list[str] = []
        identities: list[dict[str, Any]] = []
        lengths: set[int] = set()
        skipped = unreadable = 0
        for path in config.paths:
            for file in _test_files(path, config.text_keys):
                for line, text in file:
                    found = list(_test_runs(text, config))
                    skipped += not found
                    for length, runs in found:
                        lengths.add(length)
                        hashes.append(runs)
                        origin = np.array([[len(names), line]], np.uint32)
                        origins.append(np.repeat(origin, len(runs), axis=0))
                names.append(file.source.name)
                identities.append(file.source.identity())
                unreadable += file.without_text
        every, first = np.unique(np.concatenate(hashes), return_index=True)
        about = {
            "format": _FORMAT,
            "files": names,
            "identity": {
                **config.model_dump(exclude={"paths"}, mode="json"),
                "format": _FORMAT,
                "files": identities,
            },
            "lengths": sorted(lengths),
            "min_matches": config.min_matches,
            "runs": len(every),
            "too_short": skipped,
            "unreadable": unreadable,
        }
        return cls(every, np.concatenate(origins)[first], about)

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the decisions: hashes of the test files, and the settings. JSON."""
        identity: dict[str, Any] = self._about["identity"]
        return identity

    @property
    def too_short(self) -> int:
        """How many texts of the test sets are shorter than `min_words`, and not looked for."""
        return int(self._about["too_short"])

    @property
    def unreadable(self) -> int:
        """How many times a record of the test sets lacked one of the fields, or it was empty."""
        return int(self._about.get("unreadable", 0))  # not in an index of before

    def __len__(self) -> int:
        return len(self._hashes)

    def save(self, path: Path) -> None:
        """Publish the index as PATH and PATH.json, for workers to load."""
        temporary = aside(path)
        try:
            with temporary.open("wb") as stream:
                stream.write(self._hashes.tobytes())
                stream.write(self._origins.tobytes())
                publish(stream, temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        write_atomic(path.with_name(f"{path.name}.json"), orjson.dumps(self._about))

    @classmethod
    def load(cls, path: Path) -> "Contamination":
        """Open a saved index; its pages are shared by the processes that have it open.

        Raises UserError where it is absent or damaged.
        """
        try:
            about = orjson.loads(path.with_name(f"{path.name}.json").read_bytes())
            runs = about["runs"]
            if about["format"] != _FORMAT or path.stat().st_size != 16 * runs:
                raise ValueError
            if not runs:
                return cls(np.zeros(0, np.uint64), np.zeros((0, 2), np.uint32), about)
            hashes = np.memmap(path, np.uint64, "r", shape=(runs,))
            origins = np.memmap(path, np.uint32, "r", offset=8 * runs, shape=(runs, 2))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: no index of test sets, or a damaged one; delete it"
            ) from error
        return cls(hashes, origins, about)

    def find(self, text: str) -> Contaminated | None:
        """What a document shares with the test sets, or None where that is too little."""
        lengths: Sequence[int] = self._about["lengths"]
        if not lengths:
            return None
        shared: set[int] = set()
        first: tuple[int, int, int] | None = None  # place in the index, characters of the text
        hashes, starts, ends = Words(np.zeros(0, np.uint64), *np.zeros((2, 0), np.int64))
        for chunk in word_chunks(text):
            hashes = np.concatenate([hashes, chunk.hashes])
            starts = np.concatenate([starts, chunk.starts])
            ends = np.concatenate([ends, chunk.ends])
            for length, runs in _runs(hashes, lengths):
                at, places = self._lookup(runs)
                shared.update(places.tolist())
                if len(at) and (first is None or starts[at[0]] < first[1]):
                    first = int(places[0]), int(starts[at[0]]), int(ends[at[0] + length - 1])
            behind = max(len(hashes) - lengths[-1] + 1, 0)  # runs that begin there are all seen
            hashes, starts, ends = hashes[behind:], starts[behind:], ends[behind:]
        if first is None or len(shared) < self._about["min_matches"]:
            return None
        file, line = self._origins[first[0]].tolist()
        words_ = " ".join(text[first[1] : first[2]].split())[:_SHOWN_CHARACTERS]
        return Contaminated(self._about["files"][file], line, words_, len(shared))

    def _lookup(self, runs: U64) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Which of some runs the index has, and where in it they are."""
        at = np.flatnonzero(self._filter[runs >> self._shift])
        runs = runs[at]
        places = np.minimum(np.searchsorted(self._hashes, runs), len(self._hashes) - 1)
        same = self._hashes[places] == runs
        return at[same], places[same]


def _test_runs(text: str, config: DecontaminateConfig) -> Iterator[tuple[int, U64]]:
    """Yield (length, hashes) of what is looked for of one test text."""
    carried = np.zeros(0, np.uint64)
    total = 0
    for chunk in word_chunks(text):
        carried = np.concatenate([carried, chunk.hashes])
        total += len(chunk.hashes)
        if len(carried) >= config.ngram:
            yield from _runs(carried, [config.ngram])
            carried = carried[len(carried) - config.ngram + 1 :]
    if config.min_words <= total < config.ngram:
        yield from _runs(carried, [total])


def _runs(words: U64, lengths: Sequence[int]) -> Iterator[tuple[int, U64]]:
    """Yield (length, hashes of all runs of so many words: (words − length + 1,)), shortest first.

    lengths: rising.
    """
    factors = constants(MOST_WORDS, _STREAM)
    total = np.zeros(len(words), np.uint64)
    for place in range(min(lengths[-1], len(words))):
        total = total[: len(words) - place]
        total += words[place:] * factors[place]
        if place + 1 in lengths:
            yield place + 1, mix(total + np.uint64(place))


class _TestFile:
    """The texts of one test file with their lines, and how many fields held none."""

    def __init__(self, readers: Sequence[TextFile], text_keys: Sequence[str]) -> None:
        self.source = readers[0].source
        # Plain text has no fields: it would be read once for each.
        self._readers = readers if self.source.format != "text" else readers[:1]
        self._text_keys = text_keys
        self.without_text = 0

    def __iter__(self) -> Iterator[tuple[int, str]]:
        """Raises UserError where records cannot be read, or none has a text."""
        lacking = ""
        damaged: dict[int, str] = {}
        found = 0
        for reader in self._readers:
            for record in reader:
                if not isinstance(record, BadRecord):
                    found += 1
                    yield record.line, record.text
                elif record.reason in _WITHOUT_TEXT:
                    self.without_text += 1
                    lacking = lacking or f"line {record.line}: {record.reason}"
                else:
                    damaged.setdefault(record.line, record.reason)
        if not found:
            first = lacking or next((f"line {n}: {why}" for n, why in damaged.items()), "")
            raise UserError(
                f"{self.source.name}: no text in any of the fields {', '.join(self._text_keys)} "
                f"({first or 'it is empty'}); name them in decontaminate.text_keys"
            )
        if damaged:
            line = min(damaged)
            raise UserError(
                f"{self.source.name}: line {line}: {damaged[line]}; {len(damaged):,} records "
                "cannot be read, and would not be looked for; mend the file"
            )


def _test_files(path: str, text_keys: Sequence[str]) -> Iterator[_TestFile]:
    by_key = [text_files(path, text_key) for text_key in text_keys]
    for readers in zip(*by_key, strict=True):
        yield _TestFile(readers, text_keys)
