"""Conversations from records: chats, ShareGPT's, Alpaca's instructions, prompts with responses."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from finetune.chat import Turn
from finetune.readers import read_records
from finetune.tasks.base import Problem
from finetune.tasks.config import TaskKeys

_LISTS = {"messages": ("role", "content"), "conversations": ("from", "value")}
_ALPACA = ("instruction", "input", "output", "system")
_NAMES = {
    **{name: name for name in ("system", "user", "assistant")},
    **{"human": "user", "prompter": "user", "gpt": "assistant", "chatgpt": "assistant"},
    **{"bing": "assistant", "bard": "assistant", "model": "assistant"},
}


@dataclass(frozen=True)
class Conversation:
    """A conversation that ends with an answer, or with the question of one that is wanted."""

    line: int
    turns: tuple[Turn, ...]

    @property
    def text(self) -> str:
        """All that comes before the last answer."""
        turns = self.question
        return (
            turns[0].content if len(turns) == 1 else orjson.dumps(list(map(list, turns))).decode()
        )

    @property
    def question(self) -> tuple[Turn, ...]:
        """The turns before the last answer."""
        return self.turns[:-1] if self.turns[-1].role == "assistant" else self.turns

    @property
    def answer(self) -> str | None:
        """The last answer, if it is there."""
        return self.turns[-1].content if self.turns[-1].role == "assistant" else None

    @property
    def stratum(self) -> str:
        """None: there are no classes."""
        return ""


def stream_conversations(
    path: Path, keys: TaskKeys, *, labelled: bool
) -> Iterator[Conversation | Problem]:
    """Yield the conversations of a file, each record in any of the layouts.

    Without `labelled` the last answer may be missing, and is left out where it is there.
    Raises UserError where the file as a whole can't be read.
    """
    pair = (keys.prompt_key, keys.response_key)
    for record in read_records(path, (), also=(*_LISTS, *_ALPACA, *pair), columns=keys.columns):
        if record.problem:
            yield Problem(record.line, record.problem)
            continue
        turns = _turns(record.values, pair, labelled=labelled)
        wrong = turns if isinstance(turns, str) else _problem(turns, labelled=labelled)
        if wrong is not None or isinstance(turns, str):
            yield Problem(record.line, str(wrong))
            continue
        if keys.system is not None and turns[0].role != "system":
            turns.insert(0, Turn("system", keys.system.strip()))
        found = Conversation(record.line, tuple(turns))
        yield found if labelled else Conversation(record.line, found.question)


def _turns(values: Mapping[str, Any], pair: tuple[str, str], *, labelled: bool) -> list[Turn] | str:
    """The turns of a record, or what is wrong with it."""
    for name, fields in _LISTS.items():
        if name in values:
            turns = _of_list(values[name], name, fields)
            return turns if isinstance(turns, str) else _with_system(turns, values.get("system"))
    texts: dict[str, tuple[str, ...]]
    if pair[0] in values:  # asked for by name: before the layout that is guessed
        texts = {"user": (pair[0],), "assistant": (pair[1],)}
    elif "instruction" in values:
        texts = {"user": ("instruction", "input"), "assistant": ("output",)}
    else:
        return (
            f"no conversation: expected one of 'messages', 'conversations', 'instruction' with "
            f"'output', or {pair[0]!r} with {pair[1]!r}; for other fields set task.prompt_key and "
            "task.response_key"
        )
    return _of_fields(values, {"system": ("system",), **texts}, labelled=labelled)


def _with_system(turns: list[Turn], text: Any) -> list[Turn] | str:
    """The turns after what a field beside them says as the system's."""
    if text is None or (isinstance(text, str) and not text.strip()):
        return turns
    if not isinstance(text, str):
        return f"'system' must be text, got {type(text).__name__}"
    if turns[0].role == "system":
        return "says twice what the system says: in 'system' and in the first turn"
    return [Turn("system", text.strip()), *turns]


def _of_list(items: Any, name: str, fields: tuple[str, str]) -> list[Turn] | str:
    if not isinstance(items, list) or not items:
        return f"{name!r} must be a list of turns with {fields[0]!r} and {fields[1]!r}"
    turns = []
    for number, item in enumerate(items, start=1):
        here = f"turn {number} of {name!r}"
        if not isinstance(item, dict) or not all(isinstance(item.get(f), str) for f in fields):
            return f"{here} must be an object with the texts {fields[0]!r} and {fields[1]!r}"
        role = _NAMES.get(item[fields[0]])
        if role is None:
            return f"{here} is by {item[fields[0]]!r}; expected one of {', '.join(_NAMES)}"
        turns.append(Turn(role, item[fields[1]].strip()))
    return turns


def _of_fields(
    values: Mapping[str, Any], texts: Mapping[str, Sequence[str]], *, labelled: bool
) -> list[Turn] | str:
    turns = []
    for role, names in texts.items():
        said = []
        for name in names:
            value = values.get(name)
            if value is not None and not isinstance(value, str):
                return f"{name!r} must be text, got {type(value).__name__}"
            if value is None and role == "assistant" and labelled:
                return f"no {name!r}, which holds the answer"
            said.append((value or "").strip())
        content = "\n\n".join(filter(None, said))
        if content or (role != "system" and (role == "user" or labelled)):
            turns.append(Turn(role, content))
    return turns


def _problem(turns: Sequence[Turn], *, labelled: bool) -> str | None:
    """Say what is wrong with the order of the turns, or None."""
    empty = next((i for i, turn in enumerate(turns, start=1) if not turn.content), None)
    if empty is not None:
        return f"turn {empty}, by the {turns[empty - 1].role}, is empty; remove it or fill it in"
    rest = turns[1:] if turns[0].role == "system" else turns
    for number, turn in enumerate(rest):
        wanted = "assistant" if number % 2 else "user"
        if turn.role != wanted:
            place = number + 1 + len(turns) - len(rest)
            return f"turn {place} is by the {turn.role}, expected the {wanted}: they take turns"
    if not rest:
        return "nobody but the system says anything"
    if labelled and rest[-1].role != "assistant":
        return "ends without an answer of the assistant; add it, or remove the last turn"
    return None
