"""Paragraphs of a document: what they are, their hashes, and a text without some of them."""

import re
from collections.abc import Collection, Iterator
from typing import NamedTuple

import xxhash

from data_prep.dedup_config import ParagraphDuplicates

_SLICE = 1 << 20  # characters normalised at once
_BLANK_LINES = re.compile(r"\n[^\S\n]*(?:\n[^\S\n]*)+")
_LINE_END = re.compile(r"\n")


class Span(NamedTuple):
    """A paragraph's place in its text, in characters, with the blank lines that follow it."""

    start: int
    end: int


def spans(text: str, config: ParagraphDuplicates) -> Iterator[Span]:
    """Yield the paragraphs in order; together they are the whole text."""
    pattern = _BLANK_LINES if config.unit == "paragraph" else _LINE_END
    start = 0
    for match in pattern.finditer(text):
        yield Span(start, match.end())
        start = match.end()
    if start < len(text):
        yield Span(start, len(text))


def paragraph_hashes(text: str, config: ParagraphDuplicates) -> Iterator[tuple[int, int]]:
    """Yield (number, 128-bit hash) of each paragraph that is long enough to be cut out."""
    for number, (start, end) in enumerate(spans(text, config)):
        if end - start >= config.min_characters:
            digest, characters = text_hash(text[start:end])
            if characters >= config.min_characters:
                yield number, digest


def remove_paragraphs(text: str, numbers: Collection[int], config: ParagraphDuplicates) -> str:
    """The text without the paragraphs of these numbers; empty where no word character remains."""
    gone = frozenset(numbers)
    left = "".join(
        text[start:end]
        for number, (start, end) in enumerate(spans(text, config))
        if number not in gone
    )
    return left if left.strip() else ""


def text_hash(text: str) -> tuple[int, int]:
    """xxh3-128 of a text whose runs of white space are one space, and its length so.

    White space at both ends is left out. Case, punctuation and Unicode forms count: to make equal
    what only differs there is the task of cleaning.
    """
    digest = xxhash.xxh3_128()
    characters = 0
    pending = False  # white space since the last word
    for start in range(0, len(text), _SLICE):
        part = text[start : start + _SLICE]
        words = " ".join(part.split())
        if words:
            if characters and (pending or part[0].isspace()):
                words = f" {words}"
            digest.update(words.encode("utf-8", "surrogatepass"))
            characters += len(words)
            pending = part[-1].isspace()
        else:
            pending = True
    return digest.intdigest(), characters
