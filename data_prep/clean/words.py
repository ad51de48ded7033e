"""What a word is, for every rule; and the words of a text, found a megabyte at a time.

- What stands between spaces is a word, without the marks at its ends. Marks inside belong to it
  (`don't`, `3.11`, `python.org`, `std::io`), but a hyphen, dash or comma between letters
  (`well-known`), and one of `: < > = /` before a letter (`and/or`), come between two words.
- In scripts that put no spaces between words (Han, kana, Thai, …) each character is a word.
- Every other mark is a word of its own; a row of periods or of hyphens is one (`...`, `-----`).

Marks are words because the tokenisers that Gopher's and FineWeb's thresholds are used with make
words of them; what means words to be read leaves them out (`is_readable`). With pieces between
spaces a Chinese page would be one word, and `end.` another word than `end`.
"""

import functools
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Flags = NDArray[np.bool_]
Integers = NDArray[np.int64]

# Blocks of Han, kana, bopomofo and Yi; Thai, Lao, Tibetan, Myanmar, Khmer.
HAN_BLOCKS = (
    *((0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3021, 0x3029), (0x3400, 0x4DBF)),
    *((0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF)),
)
_UNSPACED_BLOCKS = (
    *HAN_BLOCKS,
    *((0x3031, 0x30FF), (0x3105, 0x312F), (0x31A0, 0x31BF), (0x31F0, 0x31FF), (0xA000, 0xA4CF)),
    *((0xFF66, 0xFF9F), (0x1B000, 0x1B16F), (0x0E00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF)),
)
_TOP = 0x20000  # Han from here on, and a few tags: looked up as one
_SPACE, _LETTER, _DIGIT, _ACCENT, _UNSPACED, _WIDE_MARK, _HAN, _LINE = (
    1 << bit for bit in range(8)
)
_IN_WORD = _LETTER | _DIGIT | _ACCENT | _LINE
_DASHES = tuple(map(ord, "-‐‑–—,"))
_SEPARATORS = tuple(map(ord, ":<>=/"))
_ROWS = tuple(map(ord, ".-"))
_PIECE = 1 << 20  # characters looked at together
# A word's number is a polynomial of its characters modulo 2**64; odd, so that it can be divided by.
_BASE = np.uint64(0x9E3779B97F4A7C15)
_BASE_INVERSE = np.uint64(pow(int(_BASE), -1, 1 << 64))


class Words(NamedTuple):
    """The words of a text, in order."""

    starts: Integers  # (words,), the first character's place in the text
    lengths: Integers  # (words,), characters
    keys: NDArray[np.uint64]  # (words,), equal where words are
    is_alphabetic: Flags  # (words,), has a letter
    is_readable: Flags  # (words,), has a letter or a digit


@functools.cache
def _classes() -> NDArray[np.uint8]:
    """What each character below U+20000 is, and what those above are, (0x20001,)."""
    found = np.zeros(_TOP + 1, np.uint8)
    for code in range(_TOP):
        character = chr(code)
        category = unicodedata.category(character)
        if character.isspace():
            found[code] = _SPACE
        elif category[0] == "L":
            found[code] = _LETTER
        elif category[0] == "N":
            found[code] = _DIGIT
        elif character == "_":
            found[code] = _LINE
        elif category[0] == "M":
            found[code] = _ACCENT
        elif code >= 0x2E80 and code < 0x10000:
            found[code] = _WIDE_MARK
    found[_TOP] = _LETTER
    for first, last in _UNSPACED_BLOCKS:
        block = found[first : last + 1]
        block[(block & (_LETTER | _DIGIT)) > 0] |= _UNSPACED
    for first, last in HAN_BLOCKS:
        found[first : last + 1] |= _HAN | _UNSPACED
        found[first : last + 1] |= np.uint8(_LETTER)
    return found


def character_codes(text: str) -> NDArray[np.integer]:
    """The code points of a text, (characters,)."""
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), np.uint8)
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def character_classes(codes: NDArray[np.integer]) -> NDArray[np.uint8]:
    """What each character is, as bits, (characters,)."""
    classes = _classes()
    return classes.take(codes if codes.dtype == np.uint8 else np.minimum(codes, _TOP))


def count_han(text: str) -> int:
    """How many Han characters a text has."""
    if text.isascii():
        return 0
    return int(np.count_nonzero(character_classes(character_codes(text)) & _HAN))


def find_words(text: str) -> Words:
    """The words of a text; see above for what they are."""
    pieces = [_words_of(text[start:end], start) for start, end in _pieces(text)]
    if len(pieces) == 1:
        return pieces[0]
    if not pieces:
        return _words_of("", 0)
    return Words(*(np.concatenate(columns) for columns in zip(*pieces, strict=True)))


def split_words(text: str) -> list[str]:
    """The words of a text as strings."""
    words = find_words(text)
    ends = (words.starts + words.lengths).tolist()
    return [text[start:end] for start, end in zip(words.starts.tolist(), ends, strict=True)]


def word_keys(words: tuple[str, ...]) -> NDArray[np.uint64]:
    """The keys that these words have in every text; each must be one word."""
    return np.concatenate([find_words(word).keys for word in words] or [find_words("").keys])


def _pieces(text: str) -> Iterator[tuple[int, int]]:
    """Where to cut a long text: at line ends or spaces, so that no word is cut."""
    start = 0
    while start < len(text):
        end = start + _PIECE
        if end < len(text):
            cut = max(text.rfind("\n", start, end), text.rfind(" ", start, end))
            if cut <= start:
                later = [at for mark in "\n " if (at := text.find(mark, end)) >= 0]
                cut = min(later, default=len(text))
            end = cut
        yield start, min(end, len(text))
        start = end


def _words_of(text: str, offset: int) -> Words:
    codes = character_codes(text)
    classes = character_classes(codes)
    begins = _begins(codes, classes)
    starts = np.flatnonzero(begins)
    if not len(starts):
        nothing = np.zeros(0, np.int64)
        none = np.zeros(0, np.bool_)
        return Words(nothing, nothing, np.zeros(0, np.uint64), none, none)
    visible = (classes & _SPACE) == 0
    powers, inverses = _powers(len(codes))
    weighted = (codes.astype(np.uint64) + np.uint64(1)) * powers
    weighted[~visible] = 0
    keys = np.add.reduceat(weighted, starts) * inverses[starts]
    lengths = np.add.reduceat(visible, starts, dtype=np.int64)
    kinds = np.bitwise_or.reduceat(classes, starts)
    return Words(
        starts + offset,
        lengths,
        keys,
        (kinds & _LETTER) > 0,
        (kinds & (_LETTER | _DIGIT)) > 0,
    )


def _begins(codes: NDArray[np.integer], classes: NDArray[np.uint8]) -> Flags:
    """Where words begin, (characters,)."""
    joined = (classes & _IN_WORD) > 0
    alone = (classes & _UNSPACED) > 0
    begins: Flags = (classes & _SPACE) == 0
    if alone.any():
        for at in np.flatnonzero((classes & _ACCENT) > 0).tolist():
            if at and alone[at - 1]:  # accents belong to the character, which is the word
                alone[at], begins[at] = True, False
        joined &= ~alone
    marks = np.flatnonzero((classes & (_SPACE | _IN_WORD | _WIDE_MARK)) == 0)
    if len(marks):
        breaks = np.flatnonzero(alone | ((classes & (_SPACE | _WIDE_MARK)) > 0))
        joined[_inside(codes, classes, marks, joined, breaks)] = True
        rows = marks[1:][(codes[marks[1:]] == codes[marks[:-1]]) & (np.diff(marks) == 1)]
        rows = rows[np.isin(codes[rows], _ROWS) & ~joined[rows] & ~joined[rows - 1]]
        begins[rows] = False
    begins[1:] &= ~(joined[1:] & joined[:-1])
    return begins


def _inside(
    codes: NDArray[np.integer],
    classes: NDArray[np.uint8],
    marks: Integers,
    joined: Flags,
    breaks: Integers,
) -> Integers:
    """The marks that belong to the word around them: with some of it before the next break."""
    solid = np.flatnonzero(joined)
    if not len(solid):
        return marks[:0]
    breaks = np.concatenate(([-1], breaks, [len(codes)]))
    place = np.searchsorted(solid, marks)
    bounded = (place > 0) & (place < len(solid))
    marks, place = marks[bounded], place[bounded]
    at_break = np.searchsorted(breaks, marks)
    within = (solid[place - 1] > breaks[at_break - 1]) & (solid[place] < breaks[at_break])
    marks = marks[within]
    before, after, code = classes[marks - 1], classes[marks + 1], codes[marks]
    letter = _LETTER | _ACCENT
    beside = np.isin(code, _DASHES) & ((before & letter) > 0) & ((after & letter) > 0)
    beside |= (
        np.isin(code, _SEPARATORS) & ((before & (_LETTER | _DIGIT)) > 0) & ((after & _LETTER) > 0)
    )
    return marks[~beside]


@functools.lru_cache(maxsize=1)
def _kept_powers() -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    return _make_powers(_PIECE)


def _powers(count: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The first powers of the base and of its inverse, (count,) each."""
    if count > _PIECE:
        return _make_powers(count)
    powers, inverses = _kept_powers()
    return powers[:count], inverses[:count]


def _make_powers(count: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    both = []
    for base in (_BASE, _BASE_INVERSE):
        powers = np.full(count, base, np.uint64)
        powers[:1] = 1
        both.append(np.cumprod(powers, dtype=np.uint64))
    return both[0], both[1]
