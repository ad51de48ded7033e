"""Read a directory of prepared data: documents by number, and the stream of all their tokens."""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep import manifest
from data_prep.indexed import ShardReader
from data_prep.samples import NO_SENTENCES
from data_prep.tokenizer import SpecialTokens
from data_prep.verify import problems_of, size_problems
from runtime.errors import UserError

_MOST_OPEN = 512  # each open shard holds two memory maps, of which Linux allows 65,530


class Shards:
    """One split of a prepared directory. `len()` counts documents, `[i]` gives token ids.

    Sizes are checked on open, every byte with `verify=True`. Raises UserError naming the first
    file that is missing or wrong, and where the directory has no such split.
    """

    def __init__(self, directory: str | Path, split: str = "train", verify: bool = False) -> None:
        self.directory = Path(directory)
        self.split = split
        self.manifest = manifest.load(self.directory)
        found = self.manifest.of_split(split)
        if not found:
            others = ", ".join(sorted(self.manifest.splits)) or "empty ones"
            mend = "split.valid > 0" if split == "valid" else "a smaller split.valid"
            raise UserError(
                f"{self.directory} has no split {split!r}, only {others}; prepare it with {mend}"
            )
        check = problems_of if verify else size_problems
        problem = next(check(self.directory, self.manifest), None)
        if problem:
            raise UserError(problem)
        self._names = [shard.file.removesuffix(".bin") for shard in found]
        # Exclusive ends of each shard, counted in documents and in tokens over the whole split.
        self._document_ends = list(accumulate(shard.documents for shard in found))
        self._token_ends = list(accumulate(shard.tokens for shard in found))
        self._open: OrderedDict[int, ShardReader] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """What a data worker gets: it maps the files by itself, else they would be copied."""
        return {**self.__dict__, "_open": OrderedDict()}

    @property
    def tokens(self) -> int:
        """Tokens of the split, end-of-document tokens included."""
        return self._token_ends[-1]

    @property
    def fingerprint(self) -> str:
        """Identity of the data; changes with the plan, the tokenizer or any token."""
        return self.manifest.fingerprint

    @property
    def tokenizer_dir(self) -> Path:
        """A folder with tokenizer.json and tokenizer_config.json."""
        return self.directory

    def has_tokenizer_of(self, other: "Shards") -> bool:
        """Whether every id means the same in both, and special tokens have the same roles."""
        own, theirs = self.manifest.tokenizer, other.manifest.tokenizer
        if (own.sha256, own.eod_id) != (theirs.sha256, theirs.eod_id):
            return False
        if own.config.sha256 == theirs.config.sha256:
            return True
        return SpecialTokens(self.directory).roles == SpecialTokens(other.directory).roles

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return self.manifest.tokenizer.vocab_size

    @property
    def eod_id(self) -> int:
        """The id that ends every document."""
        return self.manifest.tokenizer.eod_id

    @property
    def has_sentences(self) -> bool:
        """Whether the data knows where sentences end (prepared with input.sentences)."""
        return self.manifest.sentences

    def sentence_ends(self, document: int) -> npt.NDArray[np.int64]:
        """Where a document's sentences end, exclusive; the last is its length. () without index."""
        if not self.has_sentences:
            return NO_SENTENCES
        shard = bisect_right(self._document_ends, document)
        return self._reader(shard).sequence_ends(document - self._first(self._document_ends, shard))

    def lengths(self) -> npt.NDArray[np.int32]:
        """Tokens of every document, end-of-document tokens included. (documents,)"""
        found = np.empty(len(self), np.int32)
        for shard, end in enumerate(self._document_ends):
            first = self._first(self._document_ends, shard)
            found[first:end] = np.diff(self._reader(shard).ends, prepend=0)
        return found

    def token_range(self, document: int) -> range:
        """Where a document lies in the stream of all the split's tokens."""
        shard = bisect_right(self._document_ends, document)
        number = document - self._first(self._document_ends, shard)
        before, ends = self._first(self._token_ends, shard), self._reader(shard).ends
        return range(before + (int(ends[number - 1]) if number else 0), before + int(ends[number]))

    def place_of(self, document: int) -> tuple[int, int]:
        """The shard of a document, by its place among the split's, and its number there."""
        shard = bisect_right(self._document_ends, document)
        return shard, document - self._first(self._document_ends, shard)

    def __len__(self) -> int:
        return self._document_ends[-1]

    def __getitem__(self, document: int) -> npt.NDArray[Any]:
        """Token ids of one document, memory-mapped: (n,) uint16 or int32."""
        count = len(self)
        if not -count <= document < count:
            raise IndexError(f"document {document} of {count}")
        document %= count
        shard = bisect_right(self._document_ends, document)
        return self._reader(shard)[document - self._first(self._document_ends, shard)]

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        return (self[document] for document in range(len(self)))

    def read(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """Tokens [start, start + count) of the split, fewer at its end. (≤ count,) int64."""
        end = min(start + count, self.tokens)
        parts = []
        shard = bisect_right(self._token_ends, start)
        while start < end:
            first = self._first(self._token_ends, shard)
            stop = min(end, self._token_ends[shard])
            parts.append(self._reader(shard).tokens[start - first : stop - first])
            start, shard = stop, shard + 1
        return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, np.int64)

    def documents_between(self, start: int, end: int) -> range:
        """The documents that tokens [start, end) of the split belong to."""
        if start >= end:
            return range(0)
        return range(self._document_at(start), self._document_at(end - 1) + 1)

    def _document_at(self, token: int) -> int:
        shard = bisect_right(self._token_ends, token)
        inside = token - self._first(self._token_ends, shard)
        number = int(np.searchsorted(self._reader(shard).ends, inside, side="right"))
        return self._first(self._document_ends, shard) + number

    @staticmethod
    def _first(ends: list[int], shard: int) -> int:
        return ends[shard - 1] if shard else 0

    def _reader(self, shard: int) -> ShardReader:
        reader = self._open.get(shard)
        if reader is None:
            reader = self._open[shard] = ShardReader(self.directory / self._names[shard])
            if len(self._open) > _MOST_OPEN:
                self._open.popitem(last=False)
        else:
            self._open.move_to_end(shard)
        return reader
