"""Tags of words and the entities that they mark: BIO, IOB1, BIOES with its dialects. Torch-free.

The schemes: Ramshaw and Marcus 1995 (IOB1), Tjong Kim Sang and Veenstra 1999 (IOB2 = BIO, and
BIOES under other names). BMES and BILOU are BIOES with other letters.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

OUTSIDE = "O"
_MARKED = re.compile(r"([BIESMLU])(?:-(.+))?")  # a position, and a type where there are several
_MEANING = {"M": "I", "L": "E", "U": "S"}  # of BMES and BILOU in BIOES
_OF_BIOES = frozenset("ESMLU")


class Entity(NamedTuple):
    """A run of words and what it is."""

    start: int  # index of the first word
    end: int  # after the last one
    type: str  # empty where the tags tell no types


class Broken(NamedTuple):
    """A tag that its neighbours contradict."""

    word: int
    reason: str


def parts(tag: str) -> tuple[str, str] | None:
    """Split a tag into its position (O, B, I, E or S) and its type; None: it has no position."""
    if tag == OUTSIDE:
        return OUTSIDE, ""
    match = _MARKED.fullmatch(tag)
    if match is None:
        return None
    return _MEANING.get(match[1], match[1]), match[2] or ""


@dataclass
class Census:
    """What the tags of a file look like, to tell their scheme."""

    has_plain: bool = False  # tags without a position
    has_marked: bool = False
    has_ends: bool = False
    has_i_first: bool = False  # an I- that begins an entity
    has_b_first: bool = False  # a B- where no entity of its type ends

    def add(self, tags: Iterable[str]) -> None:
        """Count the tags of one sentence."""
        before = (OUTSIDE, "")
        for tag in tags:
            found = parts(tag)
            if found is None:
                self.has_plain = True
                before = (OUTSIDE, "")
                continue
            if tag != OUTSIDE:
                self.has_marked = True
                self.has_ends |= tag[0] in _OF_BIOES
                is_after_its_own = before[0] != OUTSIDE and before[1] == found[1]
                self.has_i_first |= found[0] == "I" and not is_after_its_own
                self.has_b_first |= found[0] == "B" and not is_after_its_own
            before = found

    @property
    def scheme(self) -> str:
        """The scheme in which all these tags make sense, as far as there is one."""
        if self.has_plain and not self.has_marked:
            return "tags"
        if self.has_ends:
            return "bioes"
        return "iob1" if self.has_i_first and not self.has_b_first else "bio"


def entities(tags: Sequence[str], scheme: str) -> tuple[list[Entity], list[Broken]]:
    """Read the entities that tags of a scheme mark, and where these contradict each other.

    Where they do, the entities are those of a lenient reading: what no tag begins begins where it
    is first seen, and what no tag ends ends with its last word. Of `tags` each word is one.
    """
    if scheme == "tags":
        return [Entity(i, i + 1, tag) for i, tag in enumerate(tags)], []
    found: list[Entity] = []
    broken: list[Broken] = []
    start, kind = -1, ""  # of the entity that is open; start -1: none

    def close(end: int, *, by: str | None) -> None:
        nonlocal start
        if start >= 0:
            found.append(Entity(start, end, kind))
            if by is not None and scheme == "bioes":
                broken.append(Broken(end - 1, f"{tags[end - 1]!r} is followed by {by}, not ended"))
        start = -1

    for i, tag in enumerate(tags):
        position, name = parts(tag) or (OUTSIDE, "")
        goes_on = position in ("I", "E") and start >= 0 and name == kind
        if not goes_on:
            close(i, by=repr(tag))
            if position != OUTSIDE:
                start, kind = i, name
            if position == "E" or (position == "I" and scheme != "iob1"):
                before = repr(tags[i - 1]) if i else "the start of the sentence"
                broken.append(Broken(i, f"{tag!r} comes after {before}, so nothing begins it"))
        if position in ("E", "S"):
            close(i + 1, by=None)
    close(len(tags), by="the end of the sentence")
    return found, sorted(broken)


def strict_bio(tags: Sequence[str]) -> list[Entity]:
    """Entities of BIO tags, where an I- that no B- of its type began is none (seqeval's strict)."""
    found: list[Entity] = []
    is_open = False
    for i, tag in enumerate(tags):
        position, name = parts(tag) or (OUTSIDE, "")
        if position == "B":
            found.append(Entity(i, i + 1, name))
        elif position == "I" and is_open and found[-1].type == name:
            found[-1] = found[-1]._replace(end=i + 1)
        else:
            is_open = False
            continue
        is_open = True
    return found


def bio(found: Iterable[Entity], count: int) -> list[str]:
    """Write the BIO tags of so many words."""
    tags = [OUTSIDE] * count
    for start, end, name in found:
        for i in range(start, end):
            tags[i] = tag_name("B" if i == start else "I", name)
    return tags


def tag_name(position: str, name: str) -> str:
    """Put a position and a type together; there may be no type."""
    return f"{position}-{name}" if name else position
