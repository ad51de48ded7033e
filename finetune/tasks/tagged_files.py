"""Files of tagged words: columns, or JSON Lines with words and tags, or with text and entities.

Columns are what CoNLL-2003, WNUT 17 and CrossNER are written in: a word a line with its tag,
separated by a tab or by spaces, and a blank line after each sentence.
"""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

from finetune.readers import opened, read_records, suffix_of, unreadable
from finetune.tasks.base import Problem
from finetune.tasks.config import TaskKeys

_NOT_COLUMNS = (".csv", ".json", ".parquet", ".xlsx")
_JSON_LINES = (".jsonl", ".ndjson")
_BLANK = " \t\r\n\ufeff\u200b"  # files joined by other tools carry byte order marks inside
_DOCUMENT = "-DOCSTART-"
_HAN_KANA = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_HAN_KANA}]|[^\W{_HAN_KANA}]+|[^\w\s]")
_UNSPACED = re.compile(f"[{_HAN_KANA}\u3000-\u303f\uff00-\uffef]")  # with their punctuation


class Marked(NamedTuple):
    """An entity as a file gives it: characters of the text, from `start` to before `end`."""

    start: int
    end: int
    label: str


@dataclass
class Tagged:
    """A sentence as its file has it: with tags of its words, or with marked characters."""

    line: int
    text: str
    offsets: list[tuple[int, int]]  # of each word in the text
    tags: list[str] | None = None
    marked: list[Marked] = field(default_factory=list)
    is_text: bool = False  # the file has the text itself, not its words
    lines: list[int] | None = None  # of each word, in a file of columns

    def line_of(self, word: int) -> int:
        """The line that a word stands in."""
        return self.lines[word] if self.lines else self.line


def read_tagged(path: Path, keys: TaskKeys, *, labelled: bool) -> Iterator[Tagged | Problem]:
    """Yield the sentences of a file in constant memory, and what is wrong with its lines.

    Raises UserError where the file as a whole can't be read.
    """
    suffix = suffix_of(path)
    if suffix in _NOT_COLUMNS:
        raise unreadable(
            path,
            "words with tags are read from columns, a word and its tag a line (any other name), or "
            f"from {' or '.join(_JSON_LINES)}",
        )
    if suffix in _JSON_LINES:
        yield from _json_lines(path, keys, labelled=labelled)
        return
    with opened(path) as stream:
        yield from _Columns(keys, labelled=labelled).sentences(stream)


def words_of(text: str) -> list[tuple[int, int]]:
    """Cut a text into words: runs of letters and digits; each sign and each Han or kana alone."""
    return [match.span() for match in _WORD.finditer(text)]


def joined(words: list[str]) -> tuple[str, list[tuple[int, int]]]:
    """Make a text of words, and say where each is; no space beside a Han or kana character."""
    text, offsets = "", []
    for word in words:
        if text and not (_UNSPACED.match(text[-1]) or _UNSPACED.match(word)):
            text += " "
        offsets.append((len(text), len(text) + len(word)))
        text += word
    return text, offsets


class _Columns:
    """Reads a file of columns."""

    def __init__(self, keys: TaskKeys, *, labelled: bool) -> None:
        self._keys = keys
        self._labelled = labelled
        self._columns = 0  # of every line, as of the first one
        self._clear()

    def _clear(self) -> None:
        self._words: list[str] = []
        self._tags: list[str] = []
        self._lines: list[int] = []
        self._is_whole = True

    def sentences(self, stream: IO[bytes]) -> Iterator[Tagged | Problem]:
        """Yield the sentences, and each wrong line; a sentence with a wrong line is left out."""
        text = io.TextIOWrapper(stream, encoding="utf-8-sig")
        for number, line in enumerate(text, start=1):
            if not line.strip(_BLANK) or line.startswith(_DOCUMENT):
                yield from self._sentence()
                continue
            if "\t" in line:
                fields = [part.strip() for part in line.split("\t")]
            else:
                fields = [part for part in line.strip().split(" ") if part]
            # "# id = 7": before a sentence some files say where it is from.
            if not self._words and line.startswith("# ") and len(fields) > 2 != self._columns:
                continue
            problem = self._add(number, fields)
            if problem is not None:
                self._is_whole = False
                yield Problem(number, problem)
        yield from self._sentence()

    def _add(self, number: int, fields: list[str]) -> str | None:
        """Take one word; says what is wrong with its line."""
        self._columns = self._columns or len(fields)
        if len(fields) != self._columns:
            return (
                f"{len(fields)} columns, but the first line has {self._columns}; "
                "separate words from their tags by one tab"
            )
        tag_column = self._keys.tag_column or len(fields)
        if self._labelled and len(fields) < 2:
            return "a word without a tag; write the tag behind a tab, O for none"
        wanted = tag_column if self._labelled else 1  # words to predict on need no tag
        if max(self._keys.token_column, wanted) > len(fields):
            return (
                f"has {len(fields)} columns; lower task.token_column = {self._keys.token_column} "
                f"or task.tag_column = {tag_column}"
            )
        word = fields[self._keys.token_column - 1]
        tag = fields[tag_column - 1] if self._labelled else ""
        if not word:
            return "no word before the tag"
        if self._labelled and not tag:
            return f"no tag behind {word!r}; write O for none"
        self._words.append(word)
        self._tags.append(tag)
        self._lines.append(number)
        return None

    def _sentence(self) -> Iterator[Tagged]:
        if self._words and self._is_whole:
            text, offsets = joined(self._words)
            tags = self._tags if self._labelled else None
            yield Tagged(self._lines[0], text, offsets, tags, lines=self._lines)
        self._clear()


def _json_lines(path: Path, keys: TaskKeys, *, labelled: bool) -> Iterator[Tagged | Problem]:
    first = next(read_records(path, [keys.tokens_key]), None)
    has_words = first is not None and first.problem is None
    wanted = [keys.tokens_key if has_words else keys.text_key]
    if labelled:
        wanted.append(keys.tags_key if has_words else keys.entities_key)
    for record in read_records(path, wanted):
        values = [record.values.get(key) for key in wanted]
        if record.problem is not None:
            mend = "" if has_words else f"; or give words and tags, {keys.tokens_key!r} first"
            yield Problem(record.line, record.problem + mend)
        elif has_words:
            yield _of_words(record.line, keys, *values)
        else:
            yield _of_text(record.line, keys, *values)


def _of_words(line: int, keys: TaskKeys, words: Any, tags: Any = None) -> Tagged | Problem:
    if not _is_words(words):
        return Problem(line, f"{keys.tokens_key!r} must be a list of words, none of them empty")
    text, offsets = joined(words)
    if tags is None:
        return Tagged(line, text, offsets)
    if not _is_words(tags):
        hint = "; write the names of the tags, not their numbers" if _has_numbers(tags) else ""
        return Problem(line, f"{keys.tags_key!r} must be a list of tags{hint}")
    if len(words) != len(tags):
        return Problem(line, f"{len(words)} words but {len(tags)} tags; give every word one")
    return Tagged(line, text, offsets, tags)


def _is_words(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(word, str) and word.strip() for word in value)
    )


def _has_numbers(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(one, int) for one in value)


def _of_text(line: int, keys: TaskKeys, text: Any, found: Any = None) -> Tagged | Problem:
    if not isinstance(text, str) or not words_of(text):
        return Problem(line, f"{keys.text_key!r} must be text, and hold at least a word")
    offsets = words_of(text)
    if found is None:
        return Tagged(line, text, offsets, is_text=True)
    marked = [_marked(one) for one in found] if isinstance(found, list) else [None]
    good = sorted(one for one in marked if one is not None)
    if len(good) < len(marked):
        return Problem(
            line,
            f"{keys.entities_key!r} must be a list of entities, each with a whole 'start' and "
            "'end' and a 'label'",
        )
    for one, after in zip(good, [*good[1:], None], strict=False):
        problem = _marked_problem(one, after, text)
        if problem is not None:
            return Problem(line, problem)
    return Tagged(line, text, offsets, marked=good, is_text=True)


def _marked(value: Any) -> Marked | None:
    """An entity as {start, end, label} or as [start, end, label]."""
    if isinstance(value, dict):
        value = [value.get(name) for name in Marked._fields]
    if not isinstance(value, list) or len(value) != 3:
        return None
    start, end, label = value
    if not (type(start) is int and type(end) is int and isinstance(label, str) and label.strip()):
        return None
    return Marked(start, end, label.strip())


def _marked_problem(one: Marked, after: Marked | None, text: str) -> str | None:
    where = f"entity {one.label!r} from {one.start} to {one.end}"
    if not 0 <= one.start < one.end <= len(text):
        return f"{where} is not in the text, which has {len(text)} characters"
    if after is not None and after.start < one.end:
        return f"{where} overlaps {after.label!r} from {after.start} to {after.end}; keep one"
    return None
