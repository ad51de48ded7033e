"""Words of a text and their hashes, many at a time.

A word is a run of letters, digits, marks and `_`, in lower case; each letter of a script that puts
no spaces between words (Han, kana, Thai, …) is a word of its own. All else separates. So English
and Chinese need no settings, and a Chinese shingle of 5 words is 5 characters.
"""

import functools
import unicodedata
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from data_prep.words import continues_word

U64 = npt.NDArray[np.uint64]
CHUNK_CHARACTERS = 1 << 17  # what is hashed at once: the temporary arrays take about 60 × as much
_SEPARATOR, _OF_WORD, _SINGLE = 0, 1, 2
_TABLE = 0x20000  # code points that are looked up: the planes with alphabets
_HAN = 0x40000  # up to here, only Han characters
_LONGEST = 1024  # characters; beyond, the multipliers repeat


class Words(NamedTuple):
    """The words of a text: their hashes, and where they lie in it (in characters)."""

    hashes: U64  # (n,)
    starts: npt.NDArray[np.int64]  # (n,)
    ends: npt.NDArray[np.int64]  # (n,)


def split_words(text: str) -> Words:
    """Find and hash the words of a text of at most some 100,000 characters.

    The hash is multilinear over the characters (Lemire & Kaser 2014, Strongly universal string
    hashing is fast), then mixed.
    """
    kinds, lower = _tables()
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    kind = np.take(kinds, codes, mode="clip")
    inside = kind == _OF_WORD
    single = kind == _SINGLE
    before, after = np.zeros_like(inside), np.zeros_like(inside)
    before[1:], after[:-1] = inside[:-1], inside[1:]
    begins = single | (inside & ~before)
    starts = np.flatnonzero(begins)
    ends = np.flatnonzero(single | (inside & ~after)) + 1
    if not len(starts):
        return Words(np.zeros(0, np.uint64), starts, ends)
    places = np.arange(len(codes))
    places -= np.maximum.accumulate(np.where(begins, places, 0))  # within the word
    places &= _LONGEST - 1
    values = np.where(codes < _TABLE, np.take(lower, codes, mode="clip"), codes).astype(np.uint64)
    values *= _multipliers()[places]
    values[kind == _SEPARATOR] = 0
    return Words(mix(np.add.reduceat(values, starts)), starts, ends)


def word_chunks(text: str) -> Iterator[Words]:
    """Words of a text of any length, in memory that does not grow with it.

    Cut at white space where there is some, else between two characters.
    """
    start = 0
    while start < len(text):
        end = start + CHUNK_CHARACTERS
        if end < len(text):
            space = max(text.rfind(" ", start, end), text.rfind("\n", start, end))
            end = space if space > start else end
        found = split_words(text[start:end])
        yield Words(found.hashes, found.starts + start, found.ends + start)
        start = end


def mix(values: U64) -> U64:
    """Scramble 64-bit numbers in place, each bit touching all others: murmur3's finaliser."""
    values ^= values >> np.uint64(33)
    values *= np.uint64(0xFF51AFD7ED558CCD)
    values ^= values >> np.uint64(33)
    values *= np.uint64(0xC4CEB9FE1A85EC53)
    values ^= values >> np.uint64(33)
    return values


def constants(count: int, stream: int) -> U64:
    """Fixed odd 64-bit numbers: the stream number's part of the splitmix64 sequence."""
    counter = np.arange(1, count + 1, dtype=np.uint64) + np.uint64(stream << 32)
    return mix(counter * np.uint64(0x9E3779B97F4A7C15)) | np.uint64(1)


@functools.cache
def _multipliers() -> U64:
    return constants(_LONGEST, stream=1)


@functools.cache
def _tables() -> tuple[npt.NDArray[np.uint8], npt.NDArray[Any]]:
    """The kind of each code point, and its lower case where that is one character."""
    kinds = np.zeros(_HAN + 1, np.uint8)  # the last entry stands for all above
    kinds[_TABLE:_HAN] = _SINGLE
    lower = np.arange(_TABLE, dtype=np.uint32)
    for code in range(_TABLE):
        character = chr(code)
        if character.isalnum():
            unspaced = not continues_word(character.encode())
            kinds[code] = _SINGLE if unspaced else _OF_WORD
            small = character.lower()
            if len(small) == 1:
                lower[code] = ord(small)
        elif character == "_" or unicodedata.category(character)[0] == "M":
            kinds[code] = _OF_WORD
    return kinds, lower
