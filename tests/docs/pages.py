"""The project's pages for people, taken apart: headings, fenced blocks, commands, links."""

import re
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from tests.processes import ROOT

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_FILE_NAME = re.compile(r"#\s*(\S+\.yaml)\b")
GENERATED = ("docs/configuration/",)
CHINESE = "README.zh-CN.md"


class Block(NamedTuple):
    """One fenced block."""

    page: str  # relative to the root, with slashes
    line: int
    language: str
    text: str

    @property
    def file_name(self) -> str | None:
        """The file that a YAML block stands for: its first line says so as a comment."""
        found = _FILE_NAME.match(self.text)
        return found.group(1) if found else None


class Command(NamedTuple):
    """One command of a bash block, its continued lines joined, without comments."""

    page: str
    line: int
    text: str


class Page(NamedTuple):
    """One page."""

    name: str
    text: str

    @property
    def blocks(self) -> list[Block]:
        return [
            Block(self.name, self.text.count("\n", 0, m.start()) + 1, m.group(1), m.group(2))
            for m in _FENCE.finditer(self.text)
        ]

    @property
    def prose(self) -> str:
        """The page without its fenced blocks; line numbers are kept."""
        return _FENCE.sub(lambda m: "\n" * m.group(0).count("\n"), self.text)

    @property
    def headings(self) -> list[tuple[int, str]]:
        """Level and words of each heading."""
        found = re.findall(r"^(#+) (.+)$", self.prose, re.MULTILINE)
        return [(len(marks), words) for marks, words in found]

    @property
    def links(self) -> list[str]:
        return _LINK.findall(self.prose)

    @property
    def anchors(self) -> set[str]:
        """The fragments that lead to this page's headings, as GitHub makes them."""
        return {
            re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-") for _, words in self.headings
        }

    def commands(self) -> Iterator[Command]:
        for block in self.blocks:
            if block.language == "bash":
                yield from commands_of(block)


@cache
def page(name: str) -> Page:
    return Page(name, (ROOT / name).read_text(encoding="utf-8"))


@cache
def pages() -> tuple[Page, ...]:
    """README and docs: what a user reads. Generated pages and decisions hold no commands."""
    names = [p.relative_to(ROOT).as_posix() for p in sorted((ROOT / "docs").rglob("*.md"))]
    return tuple(page(name) for name in ("README.md", CHINESE, *names))


def commands_of(block: Block) -> Iterator[Command]:
    """The commands of a bash block: a line each, but for those that a backslash continues."""
    parts: list[str] = []
    start = block.line
    for number, raw in enumerate(block.text.splitlines(), start=block.line + 1):
        line = re.sub(r"(^|\s+)#\s.*$", "", raw).strip()
        if not line:
            continue
        start = number if not parts else start
        parts.append(line.removesuffix("\\").strip())
        if not line.endswith("\\"):
            yield Command(block.page, start, " ".join(parts))
            parts = []
    assert not parts, f"{block.page}:{start}: a command that goes on nowhere"
