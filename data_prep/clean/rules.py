"""The list of rules that `clean` in a config holds."""

from typing import Annotated, Any, NamedTuple

import pydantic

from data_prep.clean.c4 import C4
from data_prep.clean.chinese import Chinese
from data_prep.clean.fineweb import FineWeb
from data_prep.clean.gopher_quality import GopherQuality
from data_prep.clean.gopher_repetition import GopherRepetition
from data_prep.clean.html import Html
from data_prep.clean.language import Language
from data_prep.clean.lines import Lines
from data_prep.clean.normalize import Normalize
from data_prep.clean.pii import Pii
from data_prep.clean.rule import Rule
from data_prep.clean.url import Url
from runtime.config import Row, rows

RULES: tuple[type[Rule], ...] = (
    *(Normalize, Html, Url, Language, C4, GopherQuality, GopherRepetition, FineWeb),
    *(Lines, Pii, Chinese),
)


def _from_name(value: Any) -> Any:
    """`gopher_quality` alone stands for that rule with its defaults."""
    return {"rule": value} if isinstance(value, str) else value


_Rules = (
    Normalize
    | Html
    | Url
    | Language
    | C4
    | GopherQuality
    | GopherRepetition
    | FineWeb
    | Lines
    | Pii
    | Chinese
)
CleanRule = Annotated[
    Annotated[_Rules, pydantic.Field(discriminator="rule")],
    pydantic.BeforeValidator(_from_name),
]


class RuleDescription(NamedTuple):
    """One rule, as `--help` prints it."""

    name: str
    meaning: str
    source: str
    keys: tuple[Row, ...]  # without `rule` itself


def describe_rules() -> list[RuleDescription]:
    """Every rule with its keys, defaults and source, in a sensible order to apply them in."""
    found = []
    for rule in RULES:
        naming, *keys = rows(rule)
        found.append(RuleDescription(naming.default, naming.meaning, rule.source, tuple(keys)))
    return found
