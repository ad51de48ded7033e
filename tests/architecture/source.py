"""The project's own source files, parsed."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
ROOMS = ("model", "runtime", "data_prep", "pretrain", "finetune", "launch")


class Source(NamedTuple):
    """One Python file."""

    name: str  # relative to the root, with slashes
    text: str
    tree: ast.Module

    @property
    def room(self) -> str:
        return self.name.split("/")[0]

    def imports(self) -> Iterator[tuple[str, int]]:
        """Yield every imported module, wherever in the file, with its line."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield alias.name, node.lineno
            elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                yield node.module, node.lineno
                for alias in node.names:  # `from runtime import config` imports runtime.config
                    yield f"{node.module}.{alias.name}", node.lineno


@cache
def sources(*folders: str) -> list[Source]:
    found = []
    for folder in folders or ROOMS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            found.append(Source(path.relative_to(ROOT).as_posix(), text, ast.parse(text)))
    return found
