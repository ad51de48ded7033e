"""The data card as one self-contained HTML page. No scripts, nothing is fetched."""

import html
from collections.abc import Iterable, Sequence
from typing import Any

import orjson

from data_prep.card import Card, Example, SplitCard

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --mark: #3a78c2; }
body { font: 16px/1.5 system-ui, "Noto Sans", "Noto Sans CJK SC", sans-serif; max-width: 62rem;
       margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.key { display: flex; flex-wrap: wrap; gap: .5rem 2rem; padding: 0; list-style: none; }
.key b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line);
         vertical-align: top; }
.n { text-align: right; white-space: nowrap; width: 1%; }
.bar { background: var(--mark); height: .8rem; border-radius: 2px; min-width: 1px; }
.text { white-space: pre-wrap; background: var(--soft); border-radius: 4px; padding: .4rem .6rem;
        margin: .3rem 0; }
small, .where { opacity: .75; } code, pre { font-size: .85rem; overflow-x: auto; }
"""


def card_page(card: Card) -> str:
    """The whole page."""
    title = html.escape(card.directory)
    parts = [_head(card), *(_split(name, split) for name, split in card.splits.items())]
    parts += [_sources(card), _rules(card), _quarantine(card), _settings(card)]
    return (
        f'<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style>'
        f"<body>{''.join(parts)}</body></html>\n"
    )


def _head(card: Card) -> str:
    facts = {"documents": f"{card.documents:,}", "tokens": f"{card.tokens:,}"}
    size = sum(split.text_bytes for split in card.splits.values())
    facts["text"] = f"{size / 1e6:,.1f} MB"
    facts["bytes a token"] = f"{size / max(card.tokens, 1):.2f}"
    facts["vocabulary"] = f"{card.tokenizer['vocab_size']:,}"
    facts["left out"] = f"{sum(card.dropped.values()):,}"
    rate = card.statistics.get("megabytes_per_second")
    if rate:
        facts["prepared at"] = f"{rate:,.1f} MB/s"
    items = "".join(f"<li>{name}<b>{html.escape(fact)}</b></li>" for name, fact in facts.items())
    return (
        f"<h1>{html.escape(card.directory)}</h1><ul class=key>{items}</ul>"
        f"<p><small>fingerprint <code>{card.fingerprint}</code>, tokens are {card.dtype}, "
        f"documents end with <code>{html.escape(card.tokenizer['eod'])}</code></small></p>"
    )


def _split(name: str, split: SplitCard) -> str:
    most = max((count for _, count in split.histogram), default=1)
    rows = [
        [f"up to {top:,}", f"{count:,}", f'<div class=bar style="width:{100 * count / most:.1f}%">']
        for top, count in split.histogram
    ]
    told = ", ".join(f"{p} {n:,}" for p, n in split.lengths.items())
    languages = ", ".join(f"{html.escape(c)} {s:.0%}" for c, s in split.languages.items())
    samples = "".join(
        f"<p class=where>document {number:,}</p><div class=text>{html.escape(text)}</div>"
        for number, text in split.samples
    )
    return (
        f"<h2>Split “{html.escape(name)}”</h2>"
        f"<p>{split.documents:,} documents, {split.tokens:,} tokens, "
        f"{split.unknown_tokens:,} of them unknown.</p>"
        + (f"<p>Languages of some documents: {languages}</p>" if languages else "")
        + f"<p>Tokens a document: {told}</p>"
        + _table(["tokens", "documents", ""], rows, numbers=(0, 1))
        + samples
    )


def _sources(card: Card) -> str:
    rows = [
        [
            html.escape(source["path"]),
            html.escape(source["licence"] or "not stated"),
            f"{source['bytes']:,}",
            f"{source['documents']:,}",
            f"{source['tokens']:,}",
            f"{sum(source['dropped'].values()):,}",
        ]
        for source in card.sources
    ]
    head = ["file", "licence", "bytes", "documents", "tokens", "left out"]
    return f"<h2>Sources</h2>{_table(head, rows, numbers=(2, 3, 4, 5))}"


def _rules(card: Card) -> str:
    names = {**card.dropped, **card.changed}
    if not names:
        return "<h2>Left out</h2><p>Nothing.</p>"
    parts = []
    for name in sorted(names):
        what = "left out" if name in card.dropped else "changed"
        count = card.dropped.get(name, 0) or card.changed[name]
        examples = "".join(map(_example, card.examples.get(name, ())))
        parts.append(f"<h3><code>{html.escape(name)}</code>: {count:,} {what}</h3>{examples}")
    return f"<h2>Left out, and changed</h2>{''.join(parts)}"


def _example(example: Example) -> str:
    of = f", repeats {html.escape(example.duplicate_of)}" if example.duplicate_of else ""
    return (
        f"<p class=where>{html.escape(example.file)}:{example.line}: "
        f"{html.escape(example.value)}{of}</p><div class=text>{html.escape(example.excerpt)}</div>"
    )


def _quarantine(card: Card) -> str:
    if not card.quarantined:
        return ""
    rows = [
        [
            html.escape(f"{bad['file']}:{bad['line']}"),
            html.escape(bad["reason"]),
            f"<code>{html.escape(bad['excerpt'])}</code>",
        ]
        for bad in card.quarantined
    ]
    return f"<h2>Records that could not be used</h2>{_table(['where', 'why', 'beginning'], rows)}"


def _settings(card: Card) -> str:
    text = orjson.dumps(card.plan, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS).decode()
    return f"<h2>Settings</h2><pre>{html.escape(text)}</pre>"


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]], numbers: Sequence[int] = ()) -> str:
    """Cells are HTML already; `numbers` are the columns to align right."""

    def cells(row: Sequence[Any], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=n' if k in numbers else ''}>{cell}</{tag}>"
            for k, cell in enumerate(row)
        )

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f"<table><tr>{cells(head, 'th')}</tr>{body}</table>"
