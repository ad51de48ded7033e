"""The data card in words, for a terminal."""

from collections.abc import Iterator

from data_prep.card import Card, SplitCard


def card_lines(card: Card) -> Iterator[str]:
    """Yield the card line by line."""
    yield f"{card.directory}: {card.documents:,} documents, {card.tokens:,} tokens, {card.dtype}"
    yield f"  fingerprint {card.fingerprint}"
    own = card.tokenizer
    yield (
        f"  tokenizer {own['vocab_size']:,} entries, documents end with {own['eod']} "
        f"({own['eod_id']})"
    )
    for name, split in card.splits.items():
        yield from _split(name, split)
    for source in card.sources:
        licence = f", {source['licence']}" if source["licence"] else ""
        left_out = sum(source["dropped"].values())
        yield (
            f"  from {source['path']}: {source['documents']:,} documents, "
            f"{source['tokens']:,} tokens, {left_out:,} left out{licence}"
        )
    for reason, count in card.changed.items():
        yield f"  changed by {reason}: {count:,}"
    for reason, count in card.dropped.items():
        yield f"  dropped, {reason}: {count:,}"
        for example in card.examples.get(reason, ()):
            of = f", repeats {example.duplicate_of}" if example.duplicate_of else ""
            yield f"    {example.file}:{example.line}: {example.value}{of}"
            yield f"      {example.excerpt!r}"


def _split(name: str, split: SplitCard) -> Iterator[str]:
    ratio = split.text_bytes / max(split.tokens, 1)
    yield (
        f"  {name}: {split.documents:,} documents, {split.tokens:,} tokens, "
        f"{ratio:.2f} bytes/token, {split.unknown_tokens:,} unknown tokens"
    )
    told = ", ".join(f"{p} {n:,}" for p, n in split.lengths.items())
    yield f"  {name}: tokens a document: {told}"
    if split.languages:
        told = ", ".join(f"{code} {share:.0%}" for code, share in split.languages.items())
        yield f"  {name}: languages of some: {told}"
    for number, text in split.samples:
        yield f"  {name}[{number}]: {text!r}"
