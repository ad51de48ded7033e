"""A sentencepiece `.model`: the pieces and settings of its protocol buffer.

Field numbers: sentencepiece_model.proto of the sentencepiece repository.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import UserError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
UNIGRAM, BPE = 1, 2
_Value = int | bytes


@dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary; its id is its place in the list."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class Model:
    """What decides how a model encodes."""

    pieces: tuple[Piece, ...]
    kind: int  # UNIGRAM or BPE
    byte_fallback: bool
    charsmap: bytes  # compiled rules of normalisation; empty where there are none
    adds_prefix: bool  # a space before the text
    removes_spaces: bool  # around the text, and all but one of a run
    bos_id: int  # -1: none
    eos_id: int
    pad_id: int

    @property
    def unknown_id(self) -> int:
        """The id of what the vocabulary cannot say."""
        return next(n for n, piece in enumerate(self.pieces) if piece.kind == UNKNOWN)

    def of_kind(self, *kinds: int) -> list[int]:
        """The ids of all pieces of some kinds, rising."""
        return [n for n, piece in enumerate(self.pieces) if piece.kind in kinds]


def parse(data: bytes, path: Path) -> Model:
    """Read a model's bytes. Raises UserError naming what is no model, or not supported."""
    try:
        pieces, trainer, normalizer = _messages(data)
    except (IndexError, ValueError, struct.error) as error:
        raise UserError(f"{path}: not a sentencepiece model: {error}") from error
    if sum(piece.kind == UNKNOWN for piece in pieces) != 1:
        raise UserError(f"{path}: not a sentencepiece model: it has no unknown piece")
    kind = _number(trainer, 3, UNIGRAM)
    if kind not in (UNIGRAM, BPE):
        raise UserError(f"{path}: is a word or character model; Unigram and BPE can be used")
    if _number(trainer, 24, 0) or not _number(normalizer, 5, 1):
        raise UserError(
            f"{path}: marks spaces after words or not at all; those with ▁ before words can be used"
        )
    charsmap = normalizer.get(2, b"")
    return Model(
        pieces=tuple(pieces),
        kind=kind,
        byte_fallback=bool(_number(trainer, 35, 0)),
        charsmap=charsmap if isinstance(charsmap, bytes) else b"",
        adds_prefix=bool(_number(normalizer, 3, 1)),
        removes_spaces=bool(_number(normalizer, 4, 1)),
        bos_id=_number(trainer, 41, 1),
        eos_id=_number(trainer, 42, 2),
        pad_id=_number(trainer, 43, -1),
    )


def _messages(data: bytes) -> tuple[list[Piece], dict[int, _Value], dict[int, _Value]]:
    """The pieces, and the fields of the trainer's and the normaliser's settings."""
    pieces: list[Piece] = []
    trainer: dict[int, _Value] = {}
    normalizer: dict[int, _Value] = {}
    for field, value in _fields(data):
        if not isinstance(value, bytes):
            continue
        if field == 1:
            entry = dict(_fields(value))
            text, score = entry.get(1, b""), entry.get(2, bytes(4))
            if not isinstance(text, bytes) or not isinstance(score, bytes):
                raise ValueError("a piece without text and score")
            number = struct.unpack("<f", score)[0]
            pieces.append(Piece(text.decode("utf-8"), number, _number(entry, 3, NORMAL)))
        elif field == 2:
            trainer = dict(_fields(value))
        elif field == 3:
            normalizer = dict(_fields(value))
    return pieces, trainer, normalizer


def _number(fields: dict[int, _Value], field: int, default: int) -> int:
    value = fields.get(field, default)
    if not isinstance(value, int):
        raise ValueError(f"field {field} is no number")
    return value - (1 << 64) if value >= 1 << 63 else value


def _fields(data: bytes) -> Iterator[tuple[int, _Value]]:
    """Yield the number and value of each field of one message."""
    at = 0
    while at < len(data):
        head, at = _varint(data, at)
        field, wire = head >> 3, head & 7
        value: _Value
        if wire == 0:
            value, at = _varint(data, at)
        else:
            if wire == 2:
                size, at = _varint(data, at)
            elif wire in (1, 5):
                size = 8 if wire == 1 else 4
            else:
                raise ValueError(f"wire type {wire} at byte {at}")
            if at + size > len(data):
                raise ValueError(f"cut off after byte {len(data)}")
            value = data[at : at + size]
            at += size
        yield field, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError(f"a number without end at byte {at}")
