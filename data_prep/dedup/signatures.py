"""What a unit's documents contribute to deduplication, on disk.

unit_00000.exact       where each different document first occurs in the unit, by hash
unit_00000.bands       the bands of each different signature
unit_00000.signatures  one row of bytes for each document
unit_00000.copies      (document, first): equal signatures within the unit
unit_00000.equals      (document, first): equal texts within the unit
unit_00000.paragraphs  where each paragraph occurs, by hash
unit_00000.signed.json what was signed and the files' sizes; published last
"""

import contextlib
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import orjson

from data_prep.atomic import aside, publish, write_atomic
from data_prep.dedup.minhash import U32, MinHasher, compact
from data_prep.dedup.paragraphs import paragraph_hashes, text_hash
from data_prep.dedup.records import BAND, COPY, OCCURRENCE, Records, Spool, begins_group
from data_prep.dedup_config import DedupConfig

_BATCH_CHARACTERS = 1 << 19
_LOW = (1 << 64) - 1
_FORMAT = 1  # of the files and of the hashes in them


def unit_file(directory: Path, unit: int, kind: str) -> Path:
    """Where a file of a unit lies."""
    return directory / f"unit_{unit:05d}.{kind}"


def identity(config: DedupConfig) -> dict[str, Any]:
    """What decides the bytes of signature files; thresholds of matching are not among it."""
    near = {name: getattr(config.near, name) for name in ("ngram", "bands", "rows")}
    paragraphs = {name: getattr(config.paragraphs, name) for name in ("min_characters", "unit")}
    return {
        "format": _FORMAT,
        "exact": config.exact,
        "near": near if config.near.enabled else None,
        "paragraphs": paragraphs if config.paragraphs.enabled else None,
    }


def is_signed(directory: Path, unit: int, config: DedupConfig) -> bool:
    """Whether a unit's files are there, complete, and of this config."""
    try:
        noted = orjson.loads(unit_file(directory, unit, "signed.json").read_bytes())
        return bool(noted["config"] == identity(config)) and all(
            unit_file(directory, unit, kind).stat().st_size == size
            for kind, size in noted["files"].items()
        )
    except (FileNotFoundError, orjson.JSONDecodeError, KeyError, TypeError):
        return False


class SignatureWriter:
    """Writes the files of one unit from its documents, in order.

    Memory: a batch of half a million characters, 16 MiB of records of each kind, and 8 bytes for
    each document.
    """

    def __init__(self, directory: Path, unit: int, config: DedupConfig) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory, self._unit, self._config = directory, unit, config
        self._stack = contextlib.ExitStack()
        self._hasher = MinHasher(config.near) if config.near.enabled else None
        self._exact = self._spool("exact", OCCURRENCE) if config.exact else None
        self._bands = self._spool("bands", BAND) if self._hasher else None
        self._paragraphs = (
            self._spool("paragraphs", OCCURRENCE) if config.paragraphs.enabled else None
        )
        self._rows: IO[bytes] | None = None
        self._whole: list[npt.NDArray[np.uint64]] = []  # of each document's signature; 0: no words
        self._batch: list[str] = []
        self._batch_characters = 0
        self._count = 0
        self._kinds: list[str] = []

    def __enter__(self) -> "SignatureWriter":
        if self._hasher:
            temporary = aside(self._path("signatures"))
            self._stack.callback(temporary.unlink, missing_ok=True)
            self._rows = self._stack.enter_context(temporary.open("wb"))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def add(self, text: str) -> int:
        """Take the unit's next document in; returns its number, counted from 0."""
        self._batch.append(text)
        self._batch_characters += len(text)
        self._count += 1
        if self._batch_characters >= _BATCH_CHARACTERS:
            self._flush()
        return self._count - 1

    def finish(self) -> None:
        """Publish the files. Without this call there are none."""
        self._flush()
        if self._exact:
            equals: list[Records] = []
            self._publish(self._exact, "exact", lambda block: _first_of_equals(block, equals))
            self._write_copies("equals", equals)
        if self._bands:
            self._publish_signatures()
        if self._paragraphs:
            self._publish(self._paragraphs, "paragraphs", lambda block: block)
        files = {kind: self._path(kind).stat().st_size for kind in self._kinds}
        note = {"config": identity(self._config), "documents": self._count, "files": files}
        write_atomic(self._path("signed.json"), orjson.dumps(note, option=orjson.OPT_SORT_KEYS))

    def _path(self, kind: str) -> Path:
        return unit_file(self._directory, self._unit, kind)

    def _spool(self, kind: str, dtype: np.dtype[Any]) -> Spool:
        return self._stack.enter_context(Spool(self._path(kind), dtype))

    def _publish(self, spool: Spool, kind: str, keep: Any) -> None:
        spool.finish(keep)
        self._kinds.append(kind)

    def _write_copies(self, kind: str, parts: list[Records]) -> None:
        copies = np.concatenate([np.zeros(0, COPY), *parts])
        copies.sort(order="document")
        write_atomic(self._path(kind), copies.tobytes())
        self._kinds.append(kind)

    def _flush(self) -> None:
        texts, first = self._batch, self._count - len(self._batch)
        self._batch, self._batch_characters = [], 0
        if not texts:
            return
        if self._exact:
            hashes = [text_hash(text)[0] for text in texts]
            self._exact.add(_occurrences([(h, first + n, 0) for n, h in enumerate(hashes)]))
        if self._paragraphs:
            found = [
                (h, first + n, number)
                for n, text in enumerate(texts)
                for number, h in paragraph_hashes(text, self._config.paragraphs)
            ]
            self._paragraphs.add(_occurrences(found))
        if self._hasher:
            signatures, signed = self._hasher.sign(texts)
            self._add_signatures(self._hasher, signatures, signed, first)

    def _add_signatures(
        self, hasher: MinHasher, signatures: U32, signed: npt.NDArray[np.bool_], first: int
    ) -> None:
        assert self._rows is not None, "opened with the hasher"
        assert self._bands is not None, "opened with the hasher"
        self._rows.write(compact(signatures).tobytes())
        whole = np.where(signed, hasher.whole_keys(signatures) | np.uint64(1), np.uint64(0))
        self._whole.append(whole)
        keys = hasher.band_keys(signatures)[signed]
        records = np.zeros(keys.size, BAND)
        records["key"] = keys.reshape(-1)
        records["signature"] = np.repeat(whole[signed] >> np.uint64(32), hasher.bands)
        records["document"] = np.repeat(np.flatnonzero(signed) + first, hasher.bands)
        self._bands.add(records)

    def _publish_signatures(self) -> None:
        """Leave out of the bands what has the signature of an earlier document of the unit."""
        assert self._rows is not None, "opened with the hasher"
        assert self._bands is not None, "opened with the hasher"
        whole = np.concatenate([np.zeros(0, np.uint64), *self._whole])
        order = np.argsort(whole, kind="stable")
        begins = begins_group(whole[order])
        leader = order[np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))]
        first = np.empty(len(whole), np.int64)
        first[order] = leader
        is_copy = (first != np.arange(len(whole))) & (whole != 0)
        copies = np.zeros(int(is_copy.sum()), COPY)
        copies["document"], copies["first"] = np.flatnonzero(is_copy), first[is_copy]
        self._publish(self._bands, "bands", lambda block: block[~is_copy[block["document"]]])
        self._write_copies("copies", [copies])
        path = self._path("signatures")
        publish(self._rows, aside(path), path)
        self._kinds.append("signatures")


def _occurrences(found: list[tuple[int, int, int]]) -> Records:
    """Records of (128-bit hash, document, number)."""
    records = np.zeros(len(found), OCCURRENCE)
    records["key"] = np.array([digest >> 64 for digest, _, _ in found], np.uint64)
    records["check"] = np.array([digest & _LOW for digest, _, _ in found], np.uint64)
    records["document"] = [document for _, document, _ in found]
    records["number"] = [number for _, _, number in found]
    return records


def _first_of_equals(block: Records, equals: list[Records]) -> Records:
    """The first occurrence of each hash; the others are noted as its copies."""
    begins = begins_group(block["key"], block["check"])
    leader = block["document"][np.maximum.accumulate(np.where(begins, np.arange(len(block)), 0))]
    copies = np.zeros(int((~begins).sum()), COPY)
    copies["document"], copies["first"] = block["document"][~begins], leader[~begins]
    equals.append(copies)
    return block[begins]
