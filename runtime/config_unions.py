"""Mistakes in keys that may be of several kinds, and in lists of sections that say their kind.

Pydantic calls such a key a union, and puts the names of its branches into its locations.
"""

import difflib
import re
import types
import typing
from collections.abc import Sequence
from typing import Any

import pydantic

TAG_ERRORS = ("union_tag_invalid", "union_tag_not_found")


def explain_tag(error: Any) -> str:
    """What is wrong with the key that says the kind, with the nearest kind."""
    context = error["ctx"]
    name = context["discriminator"].strip("'")
    if error["type"] == "union_tag_not_found":
        return f"{name} is missing; write {name}: and which one it is"
    kinds = re.findall(r"'([^']*)'", context["expected_tags"])
    close = difflib.get_close_matches(context["tag"], kinds, n=1)
    mend = f"did you mean {close[0]}?" if close else f"there are {', '.join(kinds)}"
    return f"unknown {name} {context['tag']!r}; {mend}"


def plain_location(error: Any, data: Any) -> tuple[int | str, ...]:
    """Where in the data an error is: pydantic's location without the names of union branches."""
    plain: list[int | str] = []
    for place, part in enumerate(error["loc"], start=1):
        is_absent = error["type"] == "missing" and place == len(error["loc"])
        if isinstance(data, dict) and (part in data or is_absent):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            continue
        plain.append(part)
    return tuple(plain)


def nearest_in_branch(schema: type[pydantic.BaseModel], loc: Sequence[int | str]) -> str | None:
    """The known key most like an unknown one in a section of a list; else None.

    `loc` is pydantic's location: keys, places in lists, and names of kinds.
    """
    if not any(isinstance(part, int) for part in loc):
        return None
    at: Any = schema
    for part in loc[:-1]:
        at = _below(at, part)
    if not _is_model(at):
        return None
    close = difflib.get_close_matches(str(loc[-1]), list(at.model_fields), n=1)
    return close[0] if close else None


def _below(annotation: Any, part: int | str) -> Any:
    """What the type of a key says of one part of its value; None where it is not told."""
    while typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    if _is_model(annotation):
        field = annotation.model_fields.get(part)
        return field.annotation if field else None
    members = typing.get_args(annotation)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        kinds = (m for m in members if _is_model(m) and _is_kind(m, part))
        return next(kinds, None)
    return members[0] if members and isinstance(part, int) else None


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel)


def _is_kind(model: type[pydantic.BaseModel], name: int | str) -> bool:
    return any(
        typing.get_origin(field.annotation) is typing.Literal
        and typing.get_args(field.annotation) == (name,)
        for field in model.model_fields.values()
    )
