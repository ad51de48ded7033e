"""Which split a document goes to: a pure function of the document and of its own file."""

import hashlib
from collections.abc import Iterator

from data_prep.config import DataPrepConfig
from data_prep.readers import Document, extent
from data_prep.sources import Source

TRAIN, VALID = "train", "valid"


class Splitter:
    """Assigns the documents of one source."""

    def __init__(self, config: DataPrepConfig, source: Source) -> None:
        self._valid = config.split.valid
        self._by_tail = config.split.by == "tail" and self._valid > 0
        self._inside = source.format == "text" and config.input.document == "file"
        self._cut_byte = 0.0
        if self._by_tail and not self._inside:
            self._cut_byte = (1 - self._valid) * extent(source, config.input)

    def __call__(self, document: Document) -> Iterator[tuple[str, str]]:
        """Yield (split, text): one pair, or two where the tail is cut out of a document."""
        text = document.text
        if not self._valid:
            yield TRAIN, text
        elif not self._by_tail:
            yield (VALID if fraction_of(text, b"split") < self._valid else TRAIN), text
        elif self._inside:
            cut = int(len(text) * (1 - self._valid))
            for name, part in ((TRAIN, text[:cut]), (VALID, text[cut:])):
                if part:
                    yield name, part
        else:
            yield (VALID if document.offset >= self._cut_byte else TRAIN), text


def fraction_of(text: str, purpose: bytes) -> float:
    """A number in [0, 1) that depends on the text alone; independent for each purpose."""
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8, person=purpose).digest()
    return int.from_bytes(digest, "little") / 2**64
