"""The text's column in tables of pyarrow: where it lies, and its values."""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, NamedTuple

from data_prep.input_config import Input
from data_prep.readers.jsonl import checked
from data_prep.readers.records import (
    EXCERPT_BYTES,
    EXCERPT_CHARACTERS,
    BadRecord,
    Document,
    excerpt,
    undecodable,
)
from data_prep.sources import Source
from runtime.errors import EXIT_BAD_INPUT, UserError


class Columns(NamedTuple):
    """Where the text and the URL lie in a schema: names from the outermost to the innermost."""

    text: tuple[str, ...]
    url: tuple[str, ...] | None
    encoding: str  # of the text's bytes


def need_pyarrow(source: Source) -> None:
    """Raise UserError where tables cannot be read here."""
    if find_spec("pyarrow") is None:
        raise UserError(
            f"{source.name}: {source.format} files need pyarrow; pip install 'ingot[data]'",
            status=EXIT_BAD_INPUT,
        )


def find_columns(schema: Any, source: Source, options: Input) -> Columns:
    """Find the columns that the config names.

    Raises UserError, with the columns that there are, where the text's is missing or no text.
    """
    path, kind = _find(schema, options.text_key)
    if path is None:
        names = ", ".join(map(repr, schema.names))
        raise UserError(
            f"{source.name}: has no column {options.text_key!r}; set input.text_key to one of "
            f"{names}",
            status=EXIT_BAD_INPUT,
        )
    is_text, is_binary = _is_text(kind)
    if not is_text and not is_binary:
        raise UserError(
            f"{source.name}: column {options.text_key!r} holds {kind}, not text; set "
            "input.text_key to another one",
            status=EXIT_BAD_INPUT,
        )
    url, url_kind = _find(schema, options.url_key)
    has_url = url is not None and _is_text(url_kind)[0]
    return Columns(path, url if has_url else None, options.encoding if is_binary else "utf-8")


def rows(batch: Any, columns: Columns, limit: int) -> Iterator[tuple[str | None, str, str, str]]:
    """Yield (text or None, reason, URL, excerpt) for each row of a record batch."""
    texts = _bytes(batch, columns.text)
    urls = _bytes(batch, columns.url) if columns.url else [None] * len(texts)
    for data, url in zip(texts, urls, strict=True):
        if data is None:
            yield None, "null_text", "", ""
        elif len(data) > limit:
            yield None, "too_long", "", excerpt(data, columns.encoding)
        else:
            try:
                text = data.decode(columns.encoding)
            except UnicodeDecodeError:
                reason = undecodable(columns.encoding)
                yield None, reason, "", excerpt(data, columns.encoding)
                continue
            found = checked(text, (url or b"").decode("utf-8", "replace"))
            yield *found, text[:EXCERPT_BYTES]


def records(
    batch: Any, columns: Columns, options: Input, first: tuple[int, int, int, int]
) -> Iterator[Document | BadRecord]:
    """Yield the rows of a batch as documents and bad records.

    first: source, rows before the batch, and the bytes [start, end) that its rows share evenly.
    """
    number, before, start, end = first
    count = max(batch.num_rows, 1)
    for row, (text, reason, url, shown) in enumerate(
        rows(batch, columns, options.max_record_bytes)
    ):
        line = before + row + 1
        if text is None:
            yield BadRecord(number, line, reason, shown[:EXCERPT_CHARACTERS])
        else:
            yield Document(text, number, line, start + (end - start) * row // count, url)


def _find(schema: Any, key: str) -> tuple[tuple[str, ...] | None, Any]:
    """The path of a column and its type; a key with dots may name a field of a struct."""
    import pyarrow

    if schema.names.count(key) == 1:
        return (key,), schema.field(key).type
    first, *others = key.split(".")
    if not others or schema.names.count(first) != 1:
        return None, None
    kind = schema.field(first).type
    for name in others:
        if not pyarrow.types.is_struct(kind) or kind.get_field_index(name) < 0:
            return None, None
        kind = kind.field(name).type
    return (first, *others), kind


def _is_text(kind: Any) -> tuple[bool, bool]:
    """Whether a type holds text, and whether it holds bytes."""
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    is_text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    is_bytes = types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)
    return is_text, is_bytes


def _bytes(batch: Any, path: tuple[str, ...]) -> list[bytes | None]:
    """The values of a column as bytes: pyarrow does not promise that its strings are UTF-8."""
    import pyarrow
    from pyarrow import compute

    array = batch.column(batch.schema.get_field_index(path[0]))
    if path[1:]:
        array = compute.struct_field(array, list(path[1:]))
    values: list[bytes | None] = array.cast(pyarrow.large_binary()).to_pylist()
    return values
