"""Megatron's indexed token files: NAME.bin (token ids) and NAME.idx (where sequences end).

A sequence is a document, or a sentence where the index says which sequences make a document.
Layout and traps: docs/formats.md. Read by Megatron-LM, Megatron-DeepSpeed, GPT-NeoX and NeMo.
"""

import contextlib
import hashlib
import struct
from array import array
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from data_prep.atomic import aside, publish, publish_bytes
from data_prep.manifest import FileEntry, ShardEntry
from runtime.errors import UserError

Tokens = npt.NDArray[Any]
DTypeName = Literal["uint16", "int32"]

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
_HEADER = struct.Struct("<9sQBQQ")  # magic, version, dtype code, sequences, length of documents
_INTEGERS = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8"}
# The same codes stand for other types in files of others; nothing in a file says whose it is.
DIALECTS: dict[str, dict[int, str]] = {
    "megatron": _INTEGERS | {6: "<f8", 7: "<f4", 8: "<u2"},
    "neox": _INTEGERS | {6: "<f4", 7: "<f8", 8: "<u2"},
    "deepspeed": _INTEGERS | {6: "<u2", 7: "<u4", 8: "<u8"},
}
_CODES: dict[str, int] = {"uint16": 8, "int32": 4}
_UINT16_BELOW = 65500  # Megatron's own bound; files must agree with its readers
_LONGEST = 2**31 - 1  # sequence lengths are int32


def dtype_for(vocab_size: int) -> DTypeName:
    """The element type that Megatron's writer would choose."""
    return "uint16" if vocab_size < _UINT16_BELOW else "int32"


def dtype_code(name: DTypeName) -> int:
    """The code that Megatron's index has for an element type of ours."""
    return _CODES[name]


class ShardWriter:
    """Writes one .bin/.idx pair document by document; both appear complete or not at all.

    Memory is twelve bytes per document and four per sentence. Leaving the `with` block by an
    error leaves no file.
    """

    def __init__(self, directory: Path, name: str, split: str, vocab_size: int) -> None:
        self._bin, self._idx = directory / f"{name}.bin", directory / f"{name}.idx"
        self._split, self._vocab_size = split, vocab_size
        self.dtype = dtype_for(vocab_size)
        self._element = np.dtype(self.dtype).newbyteorder("<")
        self._lengths = array("i")  # of each sequence
        self._documents = array("q", [0])  # sequences before each document, and in all
        self._hash = hashlib.sha256()
        self._aside = aside(self._bin)
        self._stream = self._aside.open("wb", buffering=1 << 20)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self._stream.close()
        self._aside.unlink(missing_ok=True)  # already renamed if `finish` was reached

    def add(self, tokens: Tokens, sentence_ends: Tokens | None = None) -> None:
        """Append one document, its end-of-document token included. (n,) integers.

        `sentence_ends` (m,): where its sentences end, exclusive and rising, the last n. Then each
        sentence is a sequence, else the document is one.
        """
        if len(tokens) > _LONGEST:
            raise _too_long(len(tokens))
        if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < self._vocab_size:
            raise ValueError(f"token ids outside [0, {self._vocab_size}) in {self._bin.name}")
        ends = np.array([len(tokens)]) if sentence_ends is None else sentence_ends
        lengths = np.diff(ends, prepend=0).astype(np.int32)
        if sentence_ends is not None and (
            lengths.min(initial=1) < 1 or lengths.sum() != len(tokens)
        ):
            raise ValueError(f"sentence ends that do not rise to {len(tokens)}: {ends}")
        data = tokens.astype(self._element).tobytes()
        self._stream.write(data)
        self._hash.update(data)
        self._lengths.frombytes(lengths.tobytes())
        self._documents.append(len(self._lengths))

    def add_many(
        self,
        tokens: Tokens,
        lengths: npt.NDArray[np.int64],
        sentences: npt.NDArray[np.int64] | None = None,
        sentence_counts: npt.NDArray[np.int64] | None = None,
    ) -> None:
        """Append documents that lie one after the other in `tokens`; those of length 0 are none.

        lengths (documents,): tokens of each. sentences (m,), sentence_counts (documents,): tokens
        of each sentence, and how many sentences each document has; without, a document is one.
        """
        if len(lengths) and int(lengths.max()) > _LONGEST:
            raise _too_long(int(lengths.max()))
        parts = lengths if sentences is None else sentences
        if int(lengths.sum()) != len(tokens) or int(parts.sum()) != len(tokens):
            raise ValueError(f"lengths that do not add up to {len(tokens)} tokens")
        if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < self._vocab_size:
            raise ValueError(f"token ids outside [0, {self._vocab_size}) in {self._bin.name}")
        filled = lengths > 0
        counts = filled.astype(np.int64) if sentence_counts is None else sentence_counts
        data = tokens.astype(self._element).data
        self._stream.write(data)
        self._hash.update(data)
        before = len(self._lengths)
        self._lengths.frombytes(parts[parts > 0].astype(np.int32).tobytes())
        self._documents.frombytes((before + np.cumsum(counts))[filled].astype(np.int64).tobytes())
        if self._documents[-1] != len(self._lengths):
            raise ValueError("sentence counts that do not add up to the sentences")

    def finish(self) -> ShardEntry:
        """Make both files durable and visible, and describe them."""
        parts = _index(self._lengths, self._documents, _CODES[self.dtype], self._element.itemsize)
        index = b"".join(parts)
        publish_bytes(aside(self._idx), self._idx, index)
        publish(self._stream, self._aside, self._bin)
        tokens = sum(self._lengths)
        return ShardEntry(
            file=self._bin.name,
            bytes=tokens * self._element.itemsize,
            sha256=self._hash.hexdigest(),
            split=self._split,
            documents=len(self._documents) - 1,
            tokens=tokens,
            index=FileEntry(
                file=self._idx.name, bytes=len(index), sha256=hashlib.sha256(index).hexdigest()
            ),
        )


def _too_long(tokens: int) -> UserError:
    return UserError(
        f"a document of {tokens} tokens is longer than the format allows "
        f"({_LONGEST}); split it, for example with input.document=paragraph"
    )


def _index(
    lengths: "array[int]", documents: "array[int]", code: int, itemsize: int
) -> Iterator[bytes]:
    count = len(lengths)
    sizes = np.frombuffer(lengths, dtype=np.int32) if count else np.zeros(0, np.int32)
    pointers = np.zeros(count, dtype="<i8")
    if count:
        np.cumsum(sizes[:-1], dtype=np.int64, out=pointers[1:])
    pointers *= itemsize
    yield _HEADER.pack(MAGIC, VERSION, code, count, len(documents))
    yield sizes.astype("<i4").tobytes()
    yield pointers.tobytes()
    yield np.frombuffer(documents, dtype=np.int64).astype("<i8").tobytes()


class ShardReader:
    """Memory-maps one .bin/.idx pair after checking that the two agree in every respect.

    `ends` are the documents' ends in tokens, exclusive; `sequences` counts what the index lists.
    dialect: whose codes of element types the index has, a key of DIALECTS. `code` is the code, and
    `is_plain` tells that the index has nothing after the layout's last field. Raises UserError
    naming the file.
    """

    def __init__(self, prefix: Path, dialect: str = "megatron") -> None:
        self.bin_path = prefix.with_name(prefix.name + ".bin")
        self.idx_path = prefix.with_name(prefix.name + ".idx")
        raw = _map(self.idx_path)
        if len(raw) < _HEADER.size:
            raise self._broken("is too short for a header")
        magic, version, code, sequences, boundaries = _HEADER.unpack(raw[: _HEADER.size].tobytes())
        if magic != MAGIC:
            raise self._broken("is not a Megatron index (wrong magic)")
        if version != VERSION:
            raise self._broken(f"has version {version}, expected {VERSION}")
        self.dtype, self.code = self._element_type(code, dialect), code
        base = _HEADER.size + 12 * sequences + 8 * boundaries
        if len(raw) not in (base, base + sequences):  # the longer form carries modality bytes
            raise self._broken(f"has {len(raw)} bytes, its header says {base}")
        self.is_plain = len(raw) == base
        at = _HEADER.size
        lengths = raw[at : at + 4 * sequences].view("<i4").astype(np.int64)
        pointers = raw[at + 4 * sequences : at + 12 * sequences].view("<i8")
        documents = raw[at + 12 * sequences : base].view("<i8")
        sequence_ends = np.cumsum(lengths)
        self._check(lengths, pointers, documents, sequence_ends)
        starts = np.concatenate([np.zeros(1, np.int64), sequence_ends])
        self.ends = starts[documents[1:]]
        self.sequences = int(sequences)
        self._sequence_ends, self._first_sequences = sequence_ends, documents
        self.tokens = _map(self.bin_path).view(self.dtype)

    def _element_type(self, code: int, dialect: str) -> np.dtype[Any]:
        name = DIALECTS[dialect].get(code)
        if name is None:
            raise self._broken(f"has the unknown dtype code {code}")
        if name.startswith("<f"):
            kind = np.dtype(name).name
            raise UserError(
                f"{self.idx_path}: has the dtype code {code}, which is {kind} in {dialect}'s files "
                "and holds no token ids; where DeepSpeed itself wrote it, say --dialect deepspeed"
            )
        return np.dtype(name)

    def _check(
        self, lengths: Tokens, pointers: Tokens, documents: Tokens, sequence_ends: Tokens
    ) -> None:
        count = len(lengths)
        total = int(sequence_ends[-1]) if count else 0
        if count and lengths.min() < 0:
            raise self._broken("has a negative length")
        if not np.array_equal(pointers, (sequence_ends - lengths) * self.dtype.itemsize):
            raise self._broken("has offsets that are not the sums of the lengths")
        if not len(documents) or documents[0] != 0 or documents[-1] != count:
            raise self._broken(f"has document boundaries that do not span 0 to {count}")
        if np.any(np.diff(documents) < 0):
            raise self._broken("has document boundaries out of order")
        try:
            size = self.bin_path.stat().st_size
        except OSError as error:
            raise UserError(f"{self.bin_path}: cannot be read: {error.strerror}") from error
        if size != total * self.dtype.itemsize:
            raise UserError(
                f"{self.bin_path}: has {size} bytes, its index says {total * self.dtype.itemsize}"
            )

    def _broken(self, what: str) -> UserError:
        return UserError(f"{self.idx_path}: {what}; prepare the data again")

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, document: int) -> Tokens:
        """Token ids of one document, memory-mapped. (n,)"""
        start = int(self.ends[document - 1]) if document else 0
        found: Tokens = self.tokens[start : int(self.ends[document])]
        return found

    def sequence_ends(self, document: int) -> npt.NDArray[np.int64]:
        """Where a document's sequences end, counted from its start; the last is its length."""
        first, last = self._first_sequences[document : document + 2]
        start = int(self.ends[document - 1]) if document else 0
        found: npt.NDArray[np.int64] = self._sequence_ends[first:last] - start
        return found


def _map(path: Path) -> Tokens:
    try:
        with contextlib.suppress(ValueError):  # an empty file cannot be mapped
            return np.memmap(path, dtype=np.uint8, mode="r").view(np.ndarray)
        return np.zeros(0, np.uint8)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
