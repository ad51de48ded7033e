"""Every key of a config as a page of Markdown: what docs/configuration holds."""

import typing
from collections.abc import Iterator
from typing import Any

import pydantic

from runtime.config import Config, Row, rows

_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def markdown(stage: str, schema: type[Config]) -> str:
    """The reference of one stage's config; ends in a newline."""
    lines = [
        f"# Configuration: {stage}",
        "",
        f"Made by `python -m launch schema {stage} --markdown` from the code; do not edit it.",
        "",
        "A key is written in YAML, or behind a command as `section.key=value`. Where the default",
        "is *none*, the key is not set: leave it out, or write `null`.",
        *_section(schema, "", ""),
    ]
    return "\n".join(lines) + "\n"


def _section(model: type[pydantic.BaseModel], prefix: str, meaning: str) -> Iterator[str]:
    """The keys of a section, then its sections, then what the entries of its lists hold."""
    own = [row for row in rows(model) if "." not in row.key]
    if prefix:
        yield from ("", f"## `{prefix.removesuffix('.')}`", "")
        if meaning:
            yield from (meaning if meaning.endswith(".") else f"{meaning}.", "")
    elif own:
        yield from ("", "## Keys of no section", "")
    if own:
        yield from ("| key | values | default | meaning |", "|---|---|---|---|")
        yield from (_line(prefix, row, model.model_fields[row.key]) for row in own)
    for name, info in model.model_fields.items():
        if _is_model(info.annotation):
            meaning = info.description or _first_line(info.annotation)
            yield from _section(typing.cast(Any, info.annotation), f"{prefix}{name}.", meaning)
            continue
        for entry in _entries(info.annotation):
            place = f"[{_kind(entry)}]" if "tuple" in str(info.annotation) else ""
            yield from _section(entry, f"{prefix}{name}{place}.", _first_line(entry))


def _line(prefix: str, row: Row, info: pydantic.fields.FieldInfo) -> str:
    values = row.type
    entries = [entry.__name__ for entry in _entries(info.annotation)]
    if entries:
        values = values.replace("|".join(entries), "{…}")
    values = values.replace("tuple[", "list[").replace("|", r" \| ")
    bounds = [
        f"{sign} {getattr(found, name)}"
        for found in info.metadata
        for name, sign in _BOUNDS.items()
        if getattr(found, name, None) is not None
    ]
    of = ", ".join([values, *bounds, *([row.unit] if row.unit else [])])
    meaning = row.meaning.replace("|", r"\|")
    return f"| `{prefix}{row.key}` | {of} | {_default(row, info)} | {meaning} |"


def _default(row: Row, info: pydantic.fields.FieldInfo) -> str:
    """The default as YAML has it."""
    if info.is_required():
        return "**required**"
    value = info.get_default(call_default_factory=True, validated_data={})
    if value is None:
        return "*none*"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    text = row.default.replace("|", r"\|")
    return f"`{text}`" if text else "empty"


def _entries(annotation: Any) -> Iterator[type[pydantic.BaseModel]]:
    """The sections that a key's value may be, or hold as a list."""
    for inner in typing.get_args(annotation):
        if _is_model(inner):
            yield inner
        else:
            yield from _entries(inner)


def _kind(entry: type[pydantic.BaseModel]) -> str:
    """Which of several kinds of entry it is, where its first key says so: the name of a rule."""
    name, info = next(iter(entry.model_fields.items()))
    is_named = typing.get_origin(info.annotation) is typing.Literal and not info.is_required()
    return f"{name}={info.default}" if is_named else ""


def _first_line(model: Any) -> str:
    return (model.__doc__ or "").strip().splitlines()[0]


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel)
