"""Command lines as a person would type them, so that each can be read before anything runs."""

import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

ROOT = Path(__file__).resolve().parents[2]
_WIDTH = 100


class CommandLine(NamedTuple):
    """What starts a process: words, and the variables that are added to the environment."""

    words: Sequence[str]
    environment: Mapping[str, str]

    def text(self) -> str:
        """The command for bash, over several lines where it is long. It runs as it is printed."""
        variables = [f"{name}={quoted(value)}" for name, value in self.environment.items()]
        return _wrapped([*variables, *_with_values(self.words)])

    def replace(self) -> NoReturn:
        """Become that process."""
        sys.stdout.flush()
        sys.stderr.flush()
        environment = {**os.environ, **self.environment}
        os.execvpe(self.words[0], list(self.words), environment)


def quoted(word: str) -> str:
    """A word for bash. One that would not print as it is, such as an escape code, is spelled."""
    if word.isprintable():
        return shlex.quote(word)
    spelled = "".join(
        ch.replace("\\", "\\\\").replace("'", "\\'")
        if ch.isprintable()
        else "".join(f"\\x{byte:02x}" for byte in ch.encode("utf-8", "surrogateescape"))
        for ch in word
    )
    # A digit after \xHH would not be taken for a third one: bash reads two at most.
    return f"$'{spelled}'"


def python_path() -> dict[str, str]:
    """The variable with which `python -m launch` is found from every folder."""
    before = os.environ.get("PYTHONPATH")
    parts = [str(ROOT), *(p for p in (before or "").split(os.pathsep) if p and p != str(ROOT))]
    return {"PYTHONPATH": os.pathsep.join(parts)}


def _with_values(words: Sequence[str]) -> list[str]:
    """Words, each option together with the word after it: no line ends between them."""
    found: list[str] = []
    previous = ""
    for word in words:
        is_option = re.fullmatch(r"--[\w-]+", previous)
        if is_option and not word.startswith("-"):
            found[-1] += f" {quoted(word)}"
        else:
            found.append(quoted(word))
        previous = word
    return found


def _wrapped(words: Sequence[str]) -> str:
    lines = [words[0]]
    for word in words[1:]:
        if len(lines[-1]) + 1 + len(word) > _WIDTH - 2:
            lines[-1] += " \\"
            lines.append(f"    {word}")
        else:
            lines[-1] += f" {word}"
    return "\n".join(lines)
