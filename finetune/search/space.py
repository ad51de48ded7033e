"""What a search chooses from: config keys with ranges or lists. Torch-free."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from runtime.config import Config, ConfigError, nearest_key, read_tree, rows

_WORDS = {"low", "high", "log", "step"}


class Dimension(NamedTuple):
    """One key and its values: a range, or `choices`, each as JSON."""

    key: str
    low: float = 0
    high: float = 0
    log: bool = False
    step: float | None = None
    choices: tuple[str, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether only whole numbers are chosen: those in the file are."""
        return all(isinstance(v, int) for v in (self.low, self.high, self.step or 0))

    def ends(self) -> list[Any]:
        """The values that are most likely to be refused by a check."""
        return [json.loads(c) for c in self.choices] if self.choices else [self.low, self.high]

    def value(self, chosen: Any) -> Any:
        """A setting from what a study has stored."""
        return json.loads(chosen) if self.choices else chosen


def read_space(path: Path, schema: type[Config]) -> list[Dimension]:
    """Read a file of `key: {low: …, high: …, log: true}` and `key: [choice, …]` lines.

    Raises ConfigError with every mistake.
    """
    tree = read_tree(path)
    known = [row.key for row in rows(schema)]
    problems: list[str] = []
    found = []
    for key, values in tree.items():
        mistakes = list(_mistakes(key, values, known, schema))
        problems += [f"{path}: {key}: {mistake}" for mistake in mistakes]
        if not mistakes and isinstance(values, list):
            choices = dict.fromkeys(json.dumps(value) for value in values)
            found.append(Dimension(key, choices=tuple(choices)))
        elif not mistakes:
            found.append(Dimension(key, **values))
    if not tree:
        problems.append(f"{path}: holds no key to search over")
    if problems:
        raise ConfigError(problems)
    return found


def _mistakes(key: str, values: Any, known: list[str], schema: type[Config]) -> Iterator[str]:
    if key.startswith(("run.", "data.")) and key != "run.seed":
        yield "is not searched over: it names files, not settings of the training; remove it"
    elif key not in known:
        near = nearest_key(schema, key.split("."))
        yield f"unknown key{f'; did you mean {near}?' if near else ''}"
    elif isinstance(values, list):
        if len(values) < 2:
            yield f"expected at least two choices, got {len(values)}"
    elif not isinstance(values, dict) or not {"low", "high"} <= values.keys() <= _WORDS:
        yield "expected {low: …, high: …} with log: true or step: … if wanted, or [choice, …]"
    else:
        yield from _of_range(values)


def _of_range(values: dict[str, Any]) -> Iterator[str]:
    numbers = {name: values[name] for name in ("low", "high", "step") if name in values}
    wrong = [n for n, v in numbers.items() if isinstance(v, bool) or not isinstance(v, int | float)]
    if wrong:
        yield f"{wrong[0]}: expected a number, got {numbers[wrong[0]]!r}"
        return
    log = values.get("log", False)
    if not isinstance(log, bool):
        yield f"log: expected true or false, got {log!r}"
    if not numbers["low"] < numbers["high"]:
        yield f"low {numbers['low']} is not less than high {numbers['high']}"
    elif log and numbers["low"] <= 0:
        yield f"log: true needs a low above 0, got {numbers['low']}"
    elif log and "step" in numbers:
        yield "log: true and step don't go together; remove one"
    elif numbers.get("step", 1) <= 0:
        yield f"step: expected more than 0, got {numbers['step']}"
