"""Which pieces of text belong to one word, judged by their own characters alone."""

import re
import unicodedata

# Han, kana, bopomofo, Yi; Thai, Lao, Tibetan, Myanmar, Khmer: no spaces between words.
_UNSPACED = re.compile(
    "[\u2e80-\u30ff\u3100-\u312f\u31a0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua000-\ua4cf\uf900-\ufaff"
    "\uff66-\uff9f\U0001b000-\U0001b16f\U00020000-\U0003ffff\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff]"
)
_APOSTROPHES = ("'", "’")


def continues_word(piece: bytes) -> bool:
    """Whether a piece of UTF-8, by its start, can be no word of its own where letters precede it.

    So it is with letters, digits, accents and `_`, with an apostrophe alone or before a letter
    ("'s"), and with the middle of a character. Not with white space, punctuation and symbols, nor
    with letters of scripts that put no spaces between words: each of those starts a word.
    """
    if is_inside_character(piece):
        return True
    text = _started(piece)
    if text[:1] in _APOSTROPHES:
        return text[1:2] == "" or text[1:2].isalpha()
    return _is_of_word(text[:1])


def ends_in_word(piece: bytes) -> bool:
    """Whether a piece of UTF-8 that follows can belong to the same word, judged by its end."""
    text = piece.decode("utf-8", "ignore")
    if text[-1:] in _APOSTROPHES:  # after a space it is an opening quotation mark
        return text[:-1] == "" or _is_of_word(text[-2])
    return _is_of_word(text[-1:])


def is_inside_character(piece: bytes) -> bool:
    """Whether UTF-8 begins in the middle of a character."""
    return 0x80 <= (piece[0] if piece else 0) < 0xC0


def _is_of_word(character: str) -> bool:
    if not character:
        return False
    kind = unicodedata.category(character)[0]
    return character == "_" or kind == "M" or (kind in "LN" and not _UNSPACED.match(character))


def _started(piece: bytes) -> str:
    """The text that a piece begins with; where its first character is cut off, one like it."""
    first = piece[0] if piece else 0
    length = 1 + (first >= 0xC0) + (first >= 0xE0) + (first >= 0xF0)
    missing = length - len(piece)
    for filler in (b"\xa0", b"\x80"):  # the script is known from the first bytes
        text = (piece + filler * missing).decode("utf-8", "replace")
        if text and text[0] != "\ufffd":
            return text
    return ""
