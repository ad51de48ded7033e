"""Long texts in pieces: what an encoder is given at once is bounded, whatever a document's size."""

from collections.abc import Iterator

PIECE_CHARACTERS = 1 << 20  # one call's memory grows with the longest text in it


def cut(text: str, limit: int = PIECE_CHARACTERS) -> Iterator[str]:
    """Cut a long text into pieces of at most `limit` characters, between lines where possible.

    The best place is a single line break between two lines that have words: there the usual
    pre-tokenizers split anyway, so that the tokens stay those of the uncut text.
    """
    start = 0
    while len(text) - start > limit:
        end = _line_break(text, start, start + limit)
        yield text[start:end]
        start = end
    yield text[start:]


def _line_break(text: str, start: int, end: int) -> int:
    at = end
    while (at := text.rfind("\n", start + 1, at)) > 0:
        if not text[at - 1].isspace() and not text[at + 1].isspace():
            return at + 1
    at = text.rfind("\n", start, end)
    return at + 1 if at >= start else end
