"""Shards → batches. The order is a pure function of (seed, epoch, global sample index).

How many ranks share the work does not change which samples a step sees. What a sample is made
of: data_prep.windows and data_prep.packing. How samples become tensors: `collate`.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from data_prep.collate import IGNORED, Batch, CausalCollate
from data_prep.mixture import Mixture
from data_prep.packing import Pieces
from data_prep.samples import (
    Cutting,
    Layout,
    PackingReport,
    Sample,
    Seen,
    Segment,
    check_layout,
    report_of,
)
from data_prep.shards import Shards
from data_prep.skipping import SkippedSteps, Window
from data_prep.windows import Windows
from data_prep.workers import Workers
from runtime.errors import EXIT_BAD_INPUT, UserError

__all__ = [
    "IGNORED",
    "Batch",
    "Layout",
    "Loader",
    "Sample",
    "Seen",
    "Segment",
    "validation_batches",
]

_STATE_SCHEMA = 1
_TOLD = {  # what a newcomer calls the parts of a state
    "fingerprints": "the data",
    "overhead": "the number of tokens that the objective adds to a text",
    "drops_eod": "whether the objective leaves out end-of-document tokens",
}
Source = str | Path | Shards
Collate = Callable[[Sequence[Sample]], Batch]


class Loader:
    """Iterates for ever over this rank's share of every global batch.

    `layout` says what a sample is, `collate` makes a batch of some. Without them a sample is a
    window of the split's documents joined end to end, for next-token prediction: `CausalCollate`
    says which tensors come out; `document_boundaries` isolates the documents of a window. In
    every packing an epoch holds every token exactly once; with a layout that drops them, every
    token but the end-of-document tokens.

    With `workers`, so many processes make batches ahead (see `data_prep.workers`): the same
    batches in the same order. `collate` is copied to them and must give a dict of tensors. `step`,
    and so the state, counts batches that were handed out, not those made ahead.

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
        layout: Layout | None = None,
        collate: Collate | None = None,
        workers: int = 0,
    ) -> None:
        self.layout = layout or _causal(seq_len, document_boundaries)
        check_layout(self.layout)
        self.seq_len, self.global_batch_size, self.seed = (
            self.layout.seq_len,
            global_batch_size,
            seed,
        )
        if global_batch_size < 1 or global_batch_size % world_size:
            raise UserError(
                f"global_batch_size={global_batch_size} (of seq_len={self.seq_len}) cannot be "
                f"shared by {world_size} ranks; use a multiple of {world_size}",
                status=EXIT_BAD_INPUT,
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size}")
        self.split = split
        self.weights = [float(weight) for _, weight in sources]
        self._mixture = Mixture(self.weights)
        self.shards = [_open(source, split) for source, _ in sources]
        _require_one_tokenizer(self.shards)
        self._collate = collate or CausalCollate(self.layout, self.shards[0].eod_id)
        self._cuttings = [
            _cut(shards, self.layout, source) for source, shards in enumerate(self.shards)
        ]
        share = global_batch_size // world_size
        self._mine = range(rank * share, (rank + 1) * share)
        self.step = 0  # the next data step; ahead of the training step by what was skipped
        self._skipped = SkippedSteps()
        self._worker_count = workers
        self._workers: Workers | None = None

    def __iter__(self) -> "Loader":
        """Start the workers, where there are to be some: they take seconds to be ready."""
        self._started()
        return self

    def _started(self) -> Workers | None:
        if self._worker_count and self._workers is None:
            self._workers = Workers(self.batch, self._worker_count)
        return self._workers

    def __next__(self) -> Batch:
        step = self._skipped.next_kept(self.step)
        workers = self._started()
        if workers is None:
            batch = self.batch(step)
        else:
            arrays = workers.take(step, self._following)
            batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
        self.step = self._following(step)
        return batch

    def _following(self, step: int) -> int:
        return self._skipped.next_kept(step + 1)

    def close(self) -> None:
        """End the workers, if there are any. Iterating again would start others."""
        if self._workers is not None:
            self._workers.close()
            self._workers = None

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the workers, where there are some."""
        return [] if self._workers is None else self._workers.pids

    def skip(self, first: int, stop: int) -> None:
        """Leave data steps [first, stop) out from now on; what was handed out stays as it was."""
        self._skipped.add(max(first, self.step), max(stop, self.step))
        self.step = self._skipped.next_kept(self.step)

    @property
    def skipped(self) -> tuple[Window, ...]:
        """The windows of data steps that are left out, as [first, stop)."""
        return self._skipped.windows

    def batch(self, step: int) -> Batch:
        """This rank's share of the batch of any step, counted from 0."""
        return self._collate(self.samples(step))

    def samples(self, step: int) -> list[Sample]:
        """This rank's share of any step, before it is collated."""
        first = step * self.global_batch_size
        indices = np.arange(first + self._mine.start, first + self._mine.stop)
        return [
            Sample(index, self._cuttings[source].segments(number))
            for index, source, number in self._locate(indices)
        ]

    def documents(self, step: int) -> list[Seen]:
        """What every sample of a step's global batch was made of, whichever rank read it."""
        first = step * self.global_batch_size
        return [
            seen._replace(sample=index)
            for index, source, number in self._locate(
                np.arange(first, first + self.global_batch_size)
            )
            for seen in self._cuttings[source].seen(number)
        ]

    def _locate(self, indices: npt.NDArray[np.int64]) -> list[tuple[int, int, int]]:
        """(global index, source, number in the source's cutting) of each global sample."""
        sources, own = self._mixture.locate(indices)
        numbers = np.zeros_like(own)
        for source in np.unique(sources):
            cutting = self._cuttings[source]
            epochs, places = np.divmod(own, cutting.size)
            for epoch in np.unique(epochs[sources == source]):
                chosen = (sources == source) & (epochs == epoch)
                numbers[chosen] = cutting.shuffled(self.seed, int(epoch), places[chosen])
        return list(zip(indices.tolist(), sources.tolist(), numbers.tolist(), strict=True))

    def packing_report(self) -> PackingReport:
        """One epoch of every source in numbers, added up."""
        reports = [cutting.report() for cutting in self._cuttings]
        total = {
            name: sum(getattr(report, name) for report in reports)
            for name in ("samples", "segments", "documents", "cut_documents", "tokens")
        }
        return report_of(self.layout, **total)

    @property
    def epochs(self) -> list[float]:
        """How many times each source has been passed through, up to the current step."""
        taken = self._mixture.consumed(self.step * self.global_batch_size)
        sizes = [cutting.size for cutting in self._cuttings]
        return [count / size for count, size in zip(taken, sizes, strict=True)]

    @property
    def epoch(self) -> int:
        """Complete passes through the source that has been repeated most."""
        return int(max(self.epochs))

    @property
    def samples_per_epoch(self) -> int:
        """Samples of all sources together: with one source, those of one epoch."""
        return sum(cutting.size for cutting in self._cuttings)

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
            # Both kinds of windows come in the same order; only attention differs.
            "packing": self.layout.packing if self.layout.by_document else "concat",
            "overhead": self.layout.overhead,
            "drops_eod": self.layout.drops_eod,
            "skipped": self._skipped.to_json(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a state was taken. Raises UserError where the order would not go on.

        Windows skipped since then are forgotten: the state says all. Skip them again.
        """
        own = self.state_dict()
        # What states did not say before there was a choice.
        state = {"packing": "concat", "overhead": 0, "drops_eod": False, "skipped": [], **state}
        for name in own:
            if name not in ("step", "skipped") and state.get(name) != own[name]:
                what = _TOLD.get(name, name)
                raise UserError(
                    f"cannot resume: {what} was {state.get(name)!r}, now {own[name]!r}; the order "
                    "of samples would change. Restore it, or start a new run",
                    status=EXIT_BAD_INPUT,
                )
        step = state.get("step")
        if not isinstance(step, int) or step < 0:
            raise UserError(f"cannot resume: the loader's step is {step!r}")
        self._skipped = SkippedSteps.from_json(state["skipped"])
        self.step = step


def validation_batches(
    source: Source,
    *,
    batch_size: int,
    seq_len: int = 512,
    split: str = "valid",
    max_sequences: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    document_boundaries: bool = False,
    layout: Layout | None = None,
    collate: Collate | None = None,
) -> Iterator[Batch]:
    """Yield a split in one fixed order, each token once; every rank gets as many batches.

    `batch_size` is each rank's; `layout` and `collate` are those of `Loader`, and a sample's index
    is its number in this order. Rows beyond the end, or beyond the first `max_sequences`, are
    samples without index and segments, padded with −100 targets, so that means weighted by
    counted targets are the same at every world size.
    """
    layout = layout or _causal(seq_len, document_boundaries)
    check_layout(layout)
    shards = _open(source, split)
    cutting = _cut(shards, layout, 0)
    collate = collate or CausalCollate(layout, shards.eod_id)
    end = cutting.size if max_sequences is None else min(cutting.size, max_sequences)
    for start in range(0, end, batch_size * world_size):
        first = start + rank * batch_size
        yield collate(
            [
                Sample(number, cutting.segments(number)) if number < end else Sample(None, ())
                for number in range(first, first + batch_size)
            ]
        )


def _causal(seq_len: int, document_boundaries: bool) -> Layout:
    return Layout("documents" if document_boundaries else "concat", seq_len, lookahead=1)


def _cut(shards: Shards, layout: Layout, source: int) -> Cutting:
    if layout.by_document:
        return Pieces(shards, layout, source)
    return Windows(shards, layout, source)


def _open(source: Source, split: str) -> Shards:
    if not isinstance(source, Shards):
        return Shards(source, split)
    if source.split != split:
        raise UserError(f"{source.directory} is open at split {source.split!r}, not {split!r}")
    return source


def _require_one_tokenizer(sources: Sequence[Shards]) -> None:
    for other in sources[1:]:
        if not other.has_tokenizer_of(sources[0]):
            raise UserError(
                f"{other.directory} and {sources[0].directory} were made with different "
                "tokenizers; prepare one with the other's, by tokenizer.path",
                status=EXIT_BAD_INPUT,
            )
