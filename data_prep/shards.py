"""Read a directory of prepared data: documents by number, and the stream of all their tokens."""

import resource
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
import numpy.typing as npt

from data_prep import manifest
from data_prep.mapped import MappedShard
from data_prep.samples import NO_SENTENCES
from data_prep.tokenizer import SpecialTokens
from data_prep.verify import problems_of, size_problems
from runtime.errors import UserError

# An open shard holds two memory maps, of which Linux allows 65,530, and a file for each.
_MOST_OPEN = 8192
_ALIVE: "WeakSet[Shards]" = WeakSet()  # they share what may be open


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
        self._open: OrderedDict[int, MappedShard] = OrderedDict()
        _ALIVE.add(self)

    def __getstate__(self) -> dict[str, Any]:
        """What a data worker gets: it maps the files by itself, else they would be copied."""
        return {**self.__dict__, "_open": OrderedDict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        _ALIVE.add(self)

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
            found[first:end] = self._reader(shard).lengths()
        return found

    def token_range(self, document: int) -> range:
        """Where a document lies in the stream of all the split's tokens."""
        shard = bisect_right(self._document_ends, document)
        number = document - self._first(self._document_ends, shard)
        before, reader = self._first(self._token_ends, shard), self._reader(shard)
        return range(before + reader.start(number), before + reader.start(number + 1))

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
        return self._first(self._document_ends, shard) + self._reader(shard).document_at(inside)

    @staticmethod
    def _first(ends: list[int], shard: int) -> int:
        return ends[shard - 1] if shard else 0

    def _reader(self, shard: int) -> MappedShard:
        reader = self._open.get(shard)
        if reader is not None:
            self._open.move_to_end(shard)
            return reader
        while len(self._open) >= _most_open():
            self._open.popitem(last=False)
        reader = self._open[shard] = MappedShard(self.directory / self._names[shard])
        return reader


def _most_open() -> int:
    """Shards that one object may hold open: all together at most half the files there may be."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    most = _MOST_OPEN if files == resource.RLIM_INFINITY else min(_MOST_OPEN, files // 4)
    return max(1, most // max(1, len(_ALIVE)))
