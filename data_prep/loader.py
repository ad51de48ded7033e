"""Shards → batches. The order is a pure function of (seed, epoch, global sample index).

No index is built and nothing is shuffled in memory; how many ranks share the work does not
change which samples a step sees. This is the only file of data_prep that needs torch.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from data_prep.mixture import Mixture
from data_prep.permutation import make_key, permute
from data_prep.shards import Shards
from runtime.errors import EXIT_BAD_INPUT, UserError

IGNORED = -100  # a target that no loss counts
_STATE_SCHEMA = 1
Batch = dict[str, torch.Tensor]
Source = str | Path | Shards


class Seen(NamedTuple):
    """What one sample of a step was made of."""

    source: int  # position in the loader's list of sources
    documents: range  # of that source's split
    tokens: range  # of that source's split


class Loader:
    """Iterates for ever over this rank's share of every global batch.

    Each item holds `input_ids` and `targets`, both (global_batch_size / world_size, seq_len)
    int64: `targets` are the tokens that follow, −100 where there is none. A sample is a window
    of the split's documents joined end to end; an epoch holds every token exactly once. With
    `document_boundaries` there are also `position_ids` (same shape, restarting with every
    document) and `cu_seqlens` (int32, the documents' bounds in the flattened share).

    Raises UserError for a batch that the ranks cannot share, and for sources that do not fit
    together.
    """

    def __init__(
        self,
        sources: Sequence[tuple[Source, float]],
        *,
        seq_len: int = 512,
        global_batch_size: int = 32,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        split: str = "train",
        document_boundaries: bool = False,
    ) -> None:
        if seq_len < 1 or global_batch_size < 1 or global_batch_size % world_size:
            raise UserError(
                f"global_batch_size={global_batch_size} (of seq_len={seq_len}) cannot be shared "
                f"by {world_size} ranks; use a multiple of {world_size}",
                status=EXIT_BAD_INPUT,
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size}")
        self.seq_len, self.global_batch_size, self.seed = seq_len, global_batch_size, seed
        self.split, self._boundaries = split, document_boundaries
        self.weights = [float(weight) for _, weight in sources]
        self._mixture = Mixture(self.weights)
        self.shards = [_open(source, split) for source, _ in sources]
        _require_one_tokenizer(self.shards)
        self._windows = [_windows(shards, seq_len) for shards in self.shards]
        share = global_batch_size // world_size
        self._mine = range(rank * share, (rank + 1) * share)
        self.step = 0

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> Batch:
        batch = self.batch(self.step)
        self.step += 1
        return batch

    def batch(self, step: int) -> Batch:
        """This rank's share of the batch of any step, counted from 0."""
        first = step * self.global_batch_size
        samples = np.arange(first + self._mine.start, first + self._mine.stop)
        rows = [
            _window(self.shards[source], window, self.seq_len)
            for source, window in self._locate(samples)
        ]
        return _collate(rows, self.shards[0].eod_id, self.seq_len, self._boundaries)

    def documents(self, step: int) -> list[Seen]:
        """What every sample of a step's global batch was made of, whichever rank read it."""
        first = step * self.global_batch_size
        found = []
        for source, window in self._locate(np.arange(first, first + self.global_batch_size)):
            shards = self.shards[source]
            start = window * self.seq_len
            end = min(start + self.seq_len, shards.tokens)
            found.append(Seen(source, shards.documents_between(start, end), range(start, end)))
        return found

    def _locate(self, samples: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
        """(source, window) of each global sample."""
        sources, own = self._mixture.locate(samples)
        windows = np.zeros_like(own)
        for source in np.unique(sources):
            size = self._windows[source]
            epochs, places = np.divmod(own, size)
            for epoch in np.unique(epochs[sources == source]):
                chosen = (sources == source) & (epochs == epoch)
                key = make_key(self.seed, int(source), int(epoch))
                windows[chosen] = permute(places[chosen], size, key)
        return [(int(s), int(w)) for s, w in zip(sources, windows, strict=True)]

    @property
    def epochs(self) -> list[float]:
        """How many times each source has been passed through, up to the current step."""
        taken = self._mixture.consumed(self.step * self.global_batch_size)
        return [count / size for count, size in zip(taken, self._windows, strict=True)]

    @property
    def epoch(self) -> int:
        """Complete passes through the source that has been repeated most."""
        return int(max(self.epochs))

    @property
    def samples_per_epoch(self) -> int:
        """Windows of all sources together: with one source, the samples of one epoch."""
        return sum(self._windows)

    def state_dict(self) -> dict[str, Any]:
        """All that decides which samples come next; plain JSON, the same on every rank."""
        return {
            "schema": _STATE_SCHEMA,
            "step": self.step,
            "seed": self.seed,
            "seq_len": self.seq_len,
            "global_batch_size": self.global_batch_size,
            "split": self.split,
            "weights": list(self.weights),
            "fingerprints": [shards.fingerprint for shards in self.shards],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a state was taken. Raises UserError where the order would not go on."""
        own = self.state_dict()
        for name in own:
            if name != "step" and state.get(name) != own[name]:
                what = "the data" if name == "fingerprints" else name
                raise UserError(
                    f"cannot resume: {what} was {state.get(name)!r}, now {own[name]!r}; the order "
                    "of samples would change. Restore it, or start a new run",
                    status=EXIT_BAD_INPUT,
                )
        step = state.get("step")
        if not isinstance(step, int) or step < 0:
            raise UserError(f"cannot resume: the loader's step is {step!r}")
        self.step = step


def validation_batches(
    source: Source,
    *,
    seq_len: int,
    batch_size: int,
    split: str = "valid",
    max_sequences: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    document_boundaries: bool = False,
) -> Iterator[Batch]:
    """Yield a split in order, each token once; every rank gets the same number of batches.

    `batch_size` is each rank's. Rows beyond the end, or beyond the first `max_sequences`, are
    padded with −100 targets, so that means weighted by counted targets are the same at every
    world size.
    """
    shards = _open(source, split)
    windows = _windows(shards, seq_len)
    end = windows if max_sequences is None else min(windows, max_sequences)
    for start in range(0, end, batch_size * world_size):
        first = start + rank * batch_size
        rows = [
            _window(shards, window if window < end else windows, seq_len)
            for window in range(first, first + batch_size)
        ]
        yield _collate(rows, shards.eod_id, seq_len, document_boundaries)


def _open(source: Source, split: str) -> Shards:
    if not isinstance(source, Shards):
        return Shards(source, split)
    if source.split != split:
        raise UserError(f"{source.directory} is open at split {source.split!r}, not {split!r}")
    return source


def _require_one_tokenizer(sources: Sequence[Shards]) -> None:
    for other in sources[1:]:
        if other.tokenizer_sha256 != sources[0].tokenizer_sha256:
            raise UserError(
                f"{other.directory} and {sources[0].directory} were made with different "
                "tokenizers; prepare one with the other's, by tokenizer.path",
                status=EXIT_BAD_INPUT,
            )


def _windows(shards: Shards, seq_len: int) -> int:
    return -(-shards.tokens // seq_len)


def _window(shards: Shards, window: int, seq_len: int) -> npt.NDArray[np.int64]:
    """Tokens of a window and the one after it: (≤ seq_len + 1,), empty beyond the end."""
    return shards.read(window * seq_len, seq_len + 1)


def _collate(
    rows: Sequence[npt.NDArray[np.int64]], eod_id: int, seq_len: int, boundaries: bool
) -> Batch:
    """Stack windows: inputs padded with end-of-document, targets with −100."""
    inputs = np.full((len(rows), seq_len), eod_id, dtype=np.int64)
    targets = np.full((len(rows), seq_len), IGNORED, dtype=np.int64)
    real = np.zeros(len(rows), dtype=np.int64)  # tokens of each row that are not padding
    for row, tokens in enumerate(rows):
        real[row] = min(len(tokens), seq_len)
        inputs[row, : real[row]] = tokens[:seq_len]
        targets[row, : max(len(tokens) - 1, 0)] = tokens[1:]
    batch = {"input_ids": torch.from_numpy(inputs), "targets": torch.from_numpy(targets)}
    if boundaries:
        batch |= _document_bounds(inputs, real, eod_id)
    return batch


def _document_bounds(
    inputs: npt.NDArray[np.int64], real: npt.NDArray[np.int64], eod_id: int
) -> Batch:
    """Where documents begin in (B, T) inputs; a row's padding counts as one document."""
    columns = np.arange(inputs.shape[1])
    starts = np.zeros(inputs.shape, dtype=bool)
    starts[:, 1:] = (inputs[:, :-1] == eod_id) & (columns[1:] <= real[:, None])
    starts |= columns == real[:, None]
    starts[:, 0] = True
    bounds = np.append(np.flatnonzero(starts), inputs.size).astype(np.int32)
    last_start = np.maximum.accumulate(np.where(starts, columns, 0), axis=1)
    return {
        "cu_seqlens": torch.from_numpy(bounds),
        "position_ids": torch.from_numpy(columns - last_start),
    }
