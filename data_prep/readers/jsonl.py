"""JSON lines: a document is a field of the object in each line."""

import json
from collections.abc import Iterator
from typing import Any

import orjson

from data_prep.input_config import Input
from data_prep.readers.lines import split_lines
from data_prep.readers.records import BadRecord, Document, excerpt, is_utf8, undecodable
from data_prep.readers.streams import end_of, opened, without_mark
from data_prep.sources import Segment, Source


class JsonlReader:
    """Reads a segment of a JSON lines file. Of a key that an object has twice, the last counts."""

    def __init__(self, source: Source, segment: Segment, options: Input) -> None:
        self._source, self._segment, self._options = source, segment, options
        self.lines = 0

    def __iter__(self) -> Iterator[Document | BadRecord]:
        source, segment, options = self._source, self._segment, self._options
        number, line = segment.source, 0
        find, encoding = TextFinder(options), options.encoding
        end = end_of(source, segment)
        with opened(source, options) as stream:
            lines = split_lines(stream, segment.start, end, options.max_record_bytes)
            for data, offset, too_long in lines:
                line += 1
                self.lines = line
                if not too_long and (not data or data.isspace()):
                    continue  # a blank line separates records; it is none
                if not offset:
                    data = without_mark(data, offset, source, encoding)
                text, reason, url = (None, "too_long", "") if too_long else find.in_json(data)
                if text is None:
                    shown = data.removesuffix(b"\r")
                    yield BadRecord(number, line, reason, excerpt(shown, encoding))
                else:
                    yield Document(text, number, line, offset, url)


Found = tuple[str | None, str, str]  # text or None, the reason where it is None, URL


class TextFinder:
    """Finds the document of a record, and where it was published.

    A key is first looked for as it is, then, where it has dots, as a path: `a.b` is b inside a.
    """

    def __init__(self, options: Input) -> None:
        self._key, self._url_key = options.text_key, options.url_key
        self._path = options.text_key.split(".") if "." in options.text_key else []
        self._encoding = "" if is_utf8(options.encoding) else options.encoding

    def in_json(self, data: bytes) -> Found:
        """The document of one JSON object."""
        source: bytes | str = data
        if self._encoding:
            try:
                source = data.decode(self._encoding)
            except UnicodeDecodeError:
                return None, undecodable(self._encoding), ""
        try:
            record = orjson.loads(source)
        except orjson.JSONDecodeError:
            return self._in_pythons_json(source)
        return self.in_record(record)

    def _in_pythons_json(self, data: bytes | str) -> Found:
        """Python's own writer emits NaN and Infinity, which orjson rightly refuses."""
        try:
            record = json.loads(data.decode("utf-8") if isinstance(data, bytes) else data)
        except UnicodeDecodeError:
            return None, "invalid_utf8", ""
        except (ValueError, RecursionError):
            return None, "invalid_json", ""
        text, reason, url = self.in_record(record)
        try:
            f"{text}{url}".encode()
        except UnicodeEncodeError:  # "\ud800" is JSON but no character
            return None, "invalid_utf8", ""
        return text, reason, url

    def in_record(self, record: Any) -> Found:
        """The document of an object, or the reason why it has none."""
        if not isinstance(record, dict):
            return None, "not_an_object", ""
        try:
            text = record[self._key]
        except KeyError:
            text = record
            for name in self._path:
                text = text.get(name, self) if isinstance(text, dict) else self
            if not self._path or text is self:  # no JSON value is this object
                return None, "missing_field", ""
        url = record.get(self._url_key)
        return checked(text, url if isinstance(url, str) else "")


def checked(text: Any, url: str) -> Found:
    """A value as a document, if it is one."""
    if not isinstance(text, str):
        return None, "null_text" if text is None else "not_a_string", ""
    if not text or text.isspace():
        return None, "empty_text", ""
    return text, "", url
