"""A set of texts to compare with another: a split of prepared data, or files."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import orjson

from data_prep import manifest
from data_prep.readers import BadRecord
from data_prep.shards import Shards
from data_prep.text_files import TextFile, Unit, text_files
from data_prep.tokenizer import DocumentTokenizer
from runtime.errors import EXIT_BAD_INPUT, UserError


class TextSet:
    """Iterates over (place, text); after a pass, `bad` says how many records were unreadable.

    `name` is DIR:SPLIT of a prepared directory, else a path, folder, glob or URL of files.
    """

    def __init__(self, name: str, text_key: str, document: Unit) -> None:
        self.name = name
        self.bad = 0
        self._shards: Shards | None = None
        self._files: list[TextFile] = []
        folder, _, split = name.rpartition(":")
        if folder and (Path(folder) / manifest.NAME).exists():
            self._shards = Shards(folder, split)
        elif (Path(name) / manifest.NAME).exists():
            splits = " or ".join(f"{name}:{s}" for s in sorted(manifest.load(Path(name)).splits))
            raise UserError(f"{name} is prepared data; write {splits}", status=EXIT_BAD_INPUT)
        else:
            self._files = text_files(name, text_key, document)

    @property
    def fingerprint(self) -> str:
        """A hash of what is read: of prepared data its plan's, else of files and settings."""
        if self._shards is not None:
            return self._shards.manifest.fingerprint
        what = [(f.source.name, f.source.sha256, f.options.identity()) for f in self._files]
        return hashlib.sha256(orjson.dumps(what)).hexdigest()[:16]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        self.bad = 0
        if self._shards is not None:
            yield from self._decoded(self._shards)
        for file in self._files:
            for record in file:
                if isinstance(record, BadRecord):
                    self.bad += 1
                else:
                    yield f"{file.source.name}:{record.line}", record.text

    def _decoded(self, shards: Shards) -> Iterator[tuple[str, str]]:
        """Texts as the tokenizer gives them back: what it folds or does not know is lost alike."""
        tokenizer = DocumentTokenizer(shards.directory, shards.manifest.tokenizer.eod)
        for number, ids in enumerate(shards):
            yield f"{self.name}[{number}]", tokenizer.decode(ids[:-1])  # without the end token
