"""A report as a list of blocks, written as one self-contained HTML page and as Markdown."""

import base64
import hashlib
import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from finetune.report.style import STYLE
from runtime.errors import UserError

_LONG = 40  # characters of a cell that needs room for sentences


class Heading(NamedTuple):
    """A heading; level 1 is the page's."""

    text: str
    level: int = 2


class Paragraph(NamedTuple):
    """A few sentences."""

    text: str
    is_warning: bool = False


class Items(NamedTuple):
    """A list of sentences."""

    lines: Sequence[str]
    is_warning: bool = False


class Facts(NamedTuple):
    """Names with values, as tiles."""

    pairs: Sequence[tuple[str, str]]


class Table(NamedTuple):
    """A table; the first `texts` columns are words, the others numbers."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int = 1


class Figure(NamedTuple):
    """A picture: SVG made by `charts`, or tables beside it, already HTML. Left out of Markdown."""

    title: str
    svg: str
    legend: Sequence[tuple[str, str]] = ()  # class of the key, what it is
    is_wide: bool = False


class Figures(NamedTuple):
    """Pictures side by side."""

    figures: Sequence[Figure]


class Folded(NamedTuple):
    """What not everybody wants to read."""

    title: str
    blocks: Sequence[Any]


class Code(NamedTuple):
    """Text that keeps its lines."""

    text: str


Block = Code | Heading | Paragraph | Items | Facts | Table | Figure | Figures | Folded


def write(path: Path, text: str) -> None:
    """Write a whole file or none. Raises UserError."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", errors="replace")
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """The page as text. It asks for nothing, and its policy forbids it to."""
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_escaped(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><main>{_html(blocks)}</main></body></html>\n"
    )


def _html(blocks: Sequence[Block]) -> str:
    return "\n".join(_block(block) for block in blocks)


def _block(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{_escaped(text)}</h{level}>"
        case Paragraph(text, is_warning):
            kind = ' class="warning"' if is_warning else ""
            return f"<p{kind}>{_escaped(text)}</p>"
        case Items(lines, is_warning):
            kind = ' class="warning"' if is_warning else ""
            listed = "".join(f"<li>{_escaped(line)}</li>" for line in lines)
            return f"<ul{kind}>{listed}</ul>"
        case Facts(pairs):
            tiles = (f"<div><dt>{_escaped(k)}</dt><dd>{_escaped(v)}</dd></div>" for k, v in pairs)
            return f"<dl>{''.join(tiles)}</dl>"
        case Code(text):
            return f"<pre>{_escaped(text)}</pre>"
        case Table():
            return _table(block)
        case Figure():
            return _figure(block)
        case Figures(figures):
            return f'<div class="charts">{"".join(map(_figure, figures))}</div>'
        case Folded(title, inner):
            summary = f"<summary>{_escaped(title)}</summary>"
            return f"<details>{summary}{_html(inner)}</details>"


def _table(table: Table) -> str:
    head = "".join(_cell("th", n, text, table.texts) for n, text in enumerate(table.header))
    rows = (
        "<tr>"
        + "".join(_cell("td" if n else "th", n, text, table.texts) for n, text in enumerate(row))
        + "</tr>"
        for row in table.rows
    )
    caption = f'<p class="caption">{_escaped(table.caption)}</p>' if table.caption else ""
    return (
        f'{caption}<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(tag: str, number: int, text: str, texts: int) -> str:
    kind = ' class="text long"' if len(text) > _LONG else ' class="text"'
    kind = kind if number < texts else ""
    return f"<{tag}{kind}>{_escaped(text)}</{tag}>"


def _figure(figure: Figure) -> str:
    keys = "".join(
        f'<li><span class="key {kind}"></span>{_escaped(text)}</li>' for kind, text in figure.legend
    )
    legend = f'<ul class="legend">{keys}</ul>' if keys else ""
    wide = ' class="wide"' if figure.is_wide else ""
    return (
        f"<figure{wide}><figcaption>{_escaped(figure.title)}</figcaption>"
        f'<div class="scroll">{figure.svg}</div>{legend}</figure>'
    )


def _escaped(text: str) -> str:
    # Control characters have no place in HTML; what stands in for them shows that they are there.
    return html.escape(
        re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", "\N{REPLACEMENT CHARACTER}", text)
    )


# --- Markdown --------------------------------------------------------------------------------


def to_markdown(blocks: Sequence[Block]) -> str:
    """Everything but the pictures."""
    return "\n\n".join(text for block in blocks for text in [_markdown(block)] if text) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {_plain(text)}"
        case Paragraph(text, is_warning):
            return ("**Warning:** " if is_warning else "") + _plain(text)
        case Items(lines, _):
            return "\n".join(f"* {_plain(line)}" for line in lines)
        case Facts(pairs):
            return "\n".join(f"* {_plain(name)}: {_plain(value)}" for name, value in pairs)
        case Table(caption, header, rows, texts):
            rule = ["---" if n < texts else "--:" for n in range(len(header))]
            lines = [_row(header), "|" + "|".join(rule) + "|", *map(_row, rows)]
            return "\n".join([*([_plain(caption), ""] if caption else []), *lines])
        case Code(text):
            return f"~~~~\n{text.replace('~~~~', '~ ~ ~ ~').rstrip()}\n~~~~"
        case Figure() | Figures():
            return ""
        case Folded(title, inner):
            return f"### {_plain(title)}\n\n{to_markdown(inner)}".rstrip()


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_plain(cell).replace("|", "\\|") for cell in cells) + " |"


def _plain(text: str) -> str:
    """One line in which nothing is markup."""
    return re.sub(r"([\\`*_<>#\[\]])", r"\\\1", " ".join(text.split()))
