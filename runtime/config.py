"""Typed configuration: YAML file + dotted overrides → frozen pydantic models, all errors at once.

Only `yaml` with a safe loader is used; nothing in a file names code to import.
"""

import difflib
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pydantic
import yaml

from runtime import config_unions
from runtime.errors import EXIT_BAD_INPUT, UserError

MAX_CONFIG_BYTES = 1 << 20
MAX_DEPTH = 32  # of sections in sections; reading takes time quadratic in it
MAX_TOLD = 50  # mistakes that are told one by one


class Config(pydantic.BaseModel):
    """Base of every config section: frozen, unknown keys refused."""

    model_config = pydantic.ConfigDict(
        frozen=True,
        extra="forbid",
        protected_namespaces=(),
        validate_default=True,
        allow_inf_nan=False,
    )


ConfigT = TypeVar("ConfigT", bound=Config)


def key(default: Any = ..., meaning: str = "", *, unit: str = "", **constraints: Any) -> Any:
    """Declare a config key: default, one line of meaning, unit, and pydantic's constraints."""
    extra: Any = {"unit": unit} if unit else None
    return pydantic.Field(default, description=meaning, json_schema_extra=extra, **constraints)


def section(factory: type[Config], meaning: str) -> Any:
    """Declare a nested section whose keys all have defaults."""
    return pydantic.Field(default_factory=factory, description=meaning)


class Problem(NamedTuple):
    """One mistake in a config."""

    key: str
    message: str  # expected, got, and the mend


class ConfigError(UserError):
    """Every mistake of one config, a line each."""

    def __init__(self, lines: Sequence[str]) -> None:
        self.lines = list(lines[:MAX_TOLD])
        if len(lines) > MAX_TOLD:
            self.lines.append(f"… and {len(lines) - MAX_TOLD} more mistakes")
        super().__init__("\n       ".join(self.lines), status=EXIT_BAD_INPUT)


# --- YAML ------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core schema: `1e-4` is a number, `no` is a word, `012` is twelve."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own declaration


def _add_core_schema() -> None:
    import re

    for tag, pattern, first in (
        ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
        ("null", r"~|null|Null|NULL|", "~nN\0"),
        ("int", r"[-+]?[0-9][0-9_]*", "-+0123456789"),
        (
            "float",
            r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf)|\.(nan|NaN)",
            "-+.0123456789",
        ),
    ):
        _Loader.add_implicit_resolver(
            f"tag:yaml.org,2002:{tag}", re.compile(rf"^(?:{pattern})$"), [*first, ""]
        )
    _Loader.add_constructor(
        "tag:yaml.org,2002:int", lambda loader, node: int(node.value.replace("_", ""))
    )


_add_core_schema()


@dataclass
class _Source:
    """Where each dotted key was written, for error messages."""

    data: dict[str, Any] = field(default_factory=dict)
    where: dict[str, str] = field(default_factory=dict)

    def place(self, dotted: str) -> str:
        """The file and line (or the command line) of the key or of its nearest parent."""
        parts = dotted.split(".")
        for end in range(len(parts), 0, -1):
            found = self.where.get(".".join(parts[:end]))
            if found:
                return found
        return self.where.get("", "config")


def _parse_yaml(text: str, name: str) -> _Source:
    source = _Source(where={"": name})
    loader = None
    try:
        loader = _Loader(text)
        _refuse_bombs(text, name)
        root = loader.get_single_node()
        if root is None:
            return source
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(
                [f"{name}: expected `key: value` lines, found {root.tag.rpartition(':')[2]}"]
            )
        problems = list(_walk(root, "", name, source.where))
        if problems:
            raise ConfigError(problems)
        source.data = loader.construct_document(root)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{name}:{mark.line + 1}" if mark else name
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError([f"{place}: not valid YAML: {reason}"]) from error
    finally:
        if loader is not None:
            loader.dispose()
    return source


def _refuse_bombs(text: str, name: str) -> None:
    """Stop at what would grow or take long, before anything is built from it."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.events.CollectionStartEvent)
        depth -= isinstance(event, yaml.events.CollectionEndEvent)
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.events.AliasEvent):
            raise ConfigError([f"{name}:{line}: aliases (*name) are not read; repeat it"])
        if depth > MAX_DEPTH:
            raise ConfigError([f"{name}:{line}: more than {MAX_DEPTH} levels; is it a config?"])


def _walk(node: yaml.MappingNode, prefix: str, name: str, where: dict[str, str]) -> Iterator[str]:
    """Record each key's line, and yield a complaint for keys written twice or not as words."""
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            yield f"{name}:{line}: a key must be a plain word"
            continue
        dotted = f"{prefix}{key_node.value}"
        if dotted in where:
            yield f"{name}:{line}: {dotted} is written twice (first at {where[dotted]}); keep one"
        where[dotted] = f"{name}:{line}"
        if isinstance(value_node, yaml.MappingNode):
            yield from _walk(value_node, f"{dotted}.", name, where)
        for index, item in enumerate(value_node.value if value_node.id == "sequence" else ()):
            where[f"{dotted}.{index}"] = f"{name}:{item.start_mark.line + 1}"
            if isinstance(item, yaml.MappingNode):
                yield from _walk(item, f"{dotted}.{index}.", name, where)


def _apply_overrides(source: _Source, overrides: Sequence[str]) -> None:
    for override in overrides:
        dotted, equals, text = override.partition("=")
        dotted = dotted.lstrip("-")
        if not equals or not dotted:
            raise ConfigError([f"command line: {override!r}: expected key.subkey=value"])
        value = read_value(text, dotted)
        at = source.data
        *parents, last = dotted.split(".")
        for parent in parents:
            if not isinstance(at.get(parent), dict):
                at[parent] = {}
            at = at[parent]
        at[last] = value
        source.where[dotted] = "command line"


def read_value(text: str, name: str) -> Any:
    """A value as it is read from an override. Raises ConfigError, which tells the name."""
    return _parse_yaml(f"value: {text}", f"command line: {name}").data["value"]


# --- validation ------------------------------------------------------------------------------


def load(
    schema: type[ConfigT],
    path: Path | None,
    overrides: Sequence[str] = (),
    check: Callable[[ConfigT], list[Problem]] | None = None,
) -> ConfigT:
    """Read a config file, apply `key.subkey=value` overrides, and validate it.

    `check` returns the problems that concern several keys at once. It also runs when single keys
    are wrong (on the config with those keys at their defaults), so that one attempt shows
    every mistake. Raises ConfigError with all of them.
    """
    source = _read(path)
    _apply_overrides(source, overrides)
    problems: list[Problem] = []
    config = _validate(schema, source.data, problems)
    if config is not None and check is not None:
        broken = {problem.key for problem in problems}
        problems += [found for found in check(config) if found.key not in broken]
    if problems or config is None:
        raise ConfigError([f"{source.place(p.key)}: {p.key}: {p.message}" for p in problems])
    return config


def read_tree(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The keys of a file, with overrides and not validated. Raises ConfigError."""
    source = _read(path)
    _apply_overrides(source, overrides)
    return source.data


def _read(path: Path | None) -> _Source:
    if path is None:
        return _Source(where={"": "built-in config"})
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ConfigError([f"{path}: larger than {MAX_CONFIG_BYTES} bytes; is it a config?"])
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: not UTF-8 text (byte {error.start})"]) from error
    return _parse_yaml(text, str(path))


def _validate(schema: type[ConfigT], data: dict[str, Any], out: list[Problem]) -> ConfigT | None:
    """Validate, dropping the offending keys and trying again so that nothing hides behind them."""
    while True:
        try:
            return schema.model_validate(data)
        except pydantic.ValidationError as error:
            found = list(error.errors(include_url=False))
        dropped = 0
        locations = [config_unions.plain_location(item, data) for item in found]
        for item, location in zip(found, locations, strict=True):
            # Looking for what was meant takes a millisecond each.
            told = _explain(schema, location, item) if len(out) < MAX_TOLD else item["msg"]
            out.append(Problem(".".join(map(str, location)), told))
            dropped += _drop(data, location)
        if not dropped:  # a required key is missing: no lenient config can be built
            return None


def _drop(data: Any, location: tuple[int | str, ...]) -> int:
    """Remove a wrong key; of a wrong item in a list, the whole list, which would be too short."""
    first_index = next((i for i, part in enumerate(location) if isinstance(part, int)), None)
    path = [str(part) for part in location[:first_index]]
    for part in path[:-1]:
        data = data.get(part) if isinstance(data, dict) else None
    if not path or not isinstance(data, dict) or path[-1] not in data:
        return 0
    del data[path[-1]]
    return 1


def _explain(schema: type[Config], location: tuple[int | str, ...], error: Any) -> str:
    kind, got = error["type"], error["input"]
    if kind == "extra_forbidden":
        near = config_unions.nearest_in_branch(schema, error["loc"])
        near = near or nearest_key(schema, [str(part) for part in location])
        return f"unknown key{f'; did you mean {near}?' if near else ''}"
    if kind == "missing":
        return "is required and has no default"
    if kind in config_unions.TAG_ERRORS:
        return config_unions.explain_tag(error)
    if kind == "value_error":
        return f"{error['ctx']['error']}"
    message = error["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    text = f"expected {message}; got {_short(got)}"
    if kind == "literal_error" and isinstance(got, str):
        choices = [word.strip("' ") for word in message.replace(" or ", ",").split(",")]
        close = difflib.get_close_matches(got, choices, n=1)
        text += f"; did you mean {close[0]}?" if close else ""
    return text


def _short(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def nearest_key(schema: type[Config], location: Sequence[str]) -> str | None:
    """The known key most like an unknown one: a sibling first, then any key of that last name."""
    known = [row.key for row in rows(schema)]
    sections = {k.rsplit(".", depth)[0] for k in known for depth in range(1, k.count(".") + 1)}
    dotted, last = ".".join(location), location[-1]
    parent = dotted.rpartition(".")[0]
    siblings = [k for k in {*known, *sections} if k.rpartition(".")[0] == parent]
    close = difflib.get_close_matches(dotted, siblings, n=1, cutoff=0.75)
    if close:
        return close[0]
    same_name = [k for k in known if k.rpartition(".")[2] == last]
    if same_name:
        return same_name[0]
    names = {k.rpartition(".")[2]: k for k in known}
    by_name = difflib.get_close_matches(last, names, n=1, cutoff=0.8)
    return names[by_name[0]] if by_name else None


# --- help ------------------------------------------------------------------------------------


class Row(NamedTuple):
    """One key, as `--help` prints it."""

    key: str
    type: str
    default: str
    unit: str
    meaning: str


def rows(schema: type[pydantic.BaseModel], prefix: str = "") -> list[Row]:
    """Every key of a config, depth first, in the order of declaration."""
    found: list[Row] = []
    for name, info in schema.model_fields.items():
        annotation = info.annotation
        if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
            found += rows(annotation, f"{prefix}{name}.")
            continue
        extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
        default = "required" if info.is_required() else _default_text(info)
        unit = str(extra.get("unit", ""))
        found.append(
            Row(f"{prefix}{name}", _type_text(annotation), default, unit, info.description or "")
        )
    return found


def _default_text(info: pydantic.fields.FieldInfo) -> str:
    value = info.get_default(call_default_factory=True, validated_data={})
    return "none" if value is None else str(value)


def _type_text(annotation: Any) -> str:
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return "|".join(map(str, args))
    if origin in (typing.Union, types.UnionType):
        return "|".join(_type_text(a) for a in args if a is not type(None))
    if origin is typing.Annotated:
        return _type_text(args[0])
    if origin is not None and args:
        inner = ",".join(_type_text(a) for a in args if a is not Ellipsis)
        return f"{getattr(origin, '__name__', origin)}[{inner}]"
    return getattr(annotation, "__name__", str(annotation))


def print_help(usage: str, schema: type[Config]) -> None:
    """Print a command's usage and every key with its type, default, unit and meaning."""
    print(usage.strip() + "\n\nKeys (in YAML, or as key.subkey=value on the command line):\n")
    table = rows(schema)
    width = max(len(row.key) for row in table)
    for row in table:
        unit = f" {row.unit}" if row.unit else ""
        print(f"  {row.key:<{width}}  {row.meaning}")
        print(f"  {'':<{width}}    {row.type}, default {row.default}{unit}")


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys and their values."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def to_yaml(config: pydantic.BaseModel) -> str:
    """The resolved config as YAML, every key written out."""
    text: str = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return text
