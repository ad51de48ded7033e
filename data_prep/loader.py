"""Shards → batches: this rank's share of an order (data_prep.order) as tensors."""

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_prep.collate import IGNORED, Batch, CausalCollate
from data_prep.order import Located, Mixing, Order, cut, upgraded
from data_prep.samples import Layout, PackingReport, Sample, Seen, Segment, check_layout
from data_prep.shards import Shards
from data_prep.skipping import SkippedSteps, Window
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

Source = str | Path | Shards
Collate = Callable[[Sequence[Sample]], Batch]
_LOCATED = 2048  # samples that are looked up together: a permutation of few costs as much


class Loader:
    """Iterates for ever over this rank's share of every global batch.

    `sources` are prepared directories with their weights, which are shares of the tokens.
    `max_repetition`: how often each may be passed through, None without a bound. `stages`: other
    weights from a data step on. `ramp`: smaller batches at first, as in `BatchSizes`.

    `layout` says what a sample is, `collate` makes a batch of some. Without them a sample is a
    window of the split's documents joined end to end, for next-token prediction: `CausalCollate`
    says which tensors come out; `document_boundaries` isolates the documents of a window. In
    every packing an epoch holds every token exactly once; with a layout that drops them, every
    token but the end-of-document tokens.

    With `workers`, so many processes make batches ahead (see `data_prep.workers`): the same
    batches in the same order. `collate` is copied to them and must give a dict of tensors. `step`,
    and so the state, counts batches that were handed out, not those made ahead.

    Raises UserError for a batch that the ranks cannot share, for sources that do not fit together,
    and at the step for which `max_repetition` leaves no data.
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
        max_repetition: Sequence[float | None] | None = None,
        stages: Sequence[tuple[int, Sequence[float]]] = (),
        layout: Layout | None = None,
        collate: Collate | None = None,
        workers: int = 0,
        ramp: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.layout = layout or _causal(seq_len, document_boundaries)
        self.global_batch_size, self.split = global_batch_size, split
        for size in (global_batch_size, *(size for _, size in ramp)):
            if size < 1 or size % world_size:
                raise UserError(
                    f"global_batch_size={size} (of seq_len={self.layout.seq_len}) cannot "
                    f"be shared by {world_size} ranks; use a multiple of {world_size}",
                    status=EXIT_BAD_INPUT,
                )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size}")
        check_layout(self.layout)
        self.shards = [_open(source, split) for source, _ in sources]
        self.order = Order(
            self.shards,
            self.layout,
            Mixing(
                tuple(float(weight) for _, weight in sources),
                tuple(max_repetition or [None] * len(sources)),
                tuple((step, tuple(map(float, weights))) for step, weights in stages),
            ),
            global_batch_size=global_batch_size,
            seed=seed,
            ramp=ramp,
        )
        self._collate = collate or CausalCollate(self.layout, self.shards[0].eod_id)
        self._rank, self._world_size = rank, world_size
        self._located: dict[int, Located] = {}  # by data step; what comes next
        self.step = 0  # the next data step; ahead of the training step by what was skipped
        self._skipped = SkippedSteps()
        self.waited_s = 0.0  # seconds that `next` took in all: for workers, or to make batches
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
        begin = time.perf_counter()
        if workers is None:
            batch = self.batch(step)
        else:
            arrays = workers.take(step, self._following)
            batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
        self.waited_s += time.perf_counter() - begin
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
        if step not in self._located:
            self._located = self._locate(step)
        return self.order.samples(self._located[step])

    def _locate(self, step: int) -> dict[int, Located]:
        """Where this rank's share of a step and of some that follow comes from."""
        self.order.require(step)
        shares = [self._share(step)]
        stop, rows_ahead = step + 1, len(shares[0])
        while rows_ahead < _LOCATED and (self.order.end is None or stop < self.order.end):
            shares.append(self._share(stop))
            stop, rows_ahead = stop + 1, rows_ahead + len(shares[-1])
        rows = iter(self.order.locate(np.concatenate([np.asarray(share) for share in shares])))
        return {
            one: list(islice(rows, len(share)))
            for one, share in zip(range(step, stop), shares, strict=True)
        }

    def _share(self, step: int) -> range:
        """The global numbers of this rank's samples in a step."""
        first = self.order.sizes.first(step)
        share = self.order.sizes.at(step) // self._world_size
        return range(first + self._rank * share, first + (self._rank + 1) * share)

    def documents(self, step: int) -> list[Seen]:
        """What every sample of a step's global batch was made of, whichever rank read it."""
        return self.order.documents(step)

    def packing_report(self, count_cut: bool = True) -> PackingReport:
        """One epoch of every source in numbers, added up."""
        return self.order.packing_report(count_cut)

    @property
    def end(self) -> int | None:
        """The first data step for which `max_repetition` leaves no data; None: there is none."""
        return self.order.end

    @property
    def epochs(self) -> list[float]:
        """How many times each source has been passed through, up to the current step."""
        return self.order.epochs(self.step)

    @property
    def tokens(self) -> list[int]:
        """Tokens of each source in the batches handed out; what was skipped does not count."""
        return self.order.tokens(self.step, self._skipped.windows)

    @property
    def epoch(self) -> int:
        """Complete passes through the source that has been repeated most."""
        return int(max(self.epochs))

    @property
    def samples_per_epoch(self) -> int:
        """Samples of all sources together: with one source, those of one epoch."""
        return sum(cutting.size for cutting in self.order.cuttings)

    def state_dict(self) -> dict[str, Any]:
        """All that decides which samples come next; plain JSON, the same on every rank."""
        return {
            **self.order.state(self.step),
            "step": self.step,
            "skipped": self._skipped.to_json(),
        }

    def planned(self) -> dict[str, Any]:
        """The state with the stages that are still to come, and the directories of the sources."""
        sources = [str(shards.directory) for shards in self.shards]
        return {**self.state_dict(), **self.order.state(), "sources": sources}

    def load_state_dict(self, state: dict[str, Any]) -> str | None:
        """Go on where a state was taken. Raises UserError where the order would not go on.

        Where weights, limits or stages are others than those of the state, or sources were added
        behind the others, a stage begins here that takes every source up where it was left;
        returns that in words, else None. Windows skipped since then are forgotten: the state says
        all. Skip them again.
        """
        step = state.get("step")
        if not isinstance(step, int) or step < 0:
            raise UserError(f"cannot resume: the loader's step is {step!r}")
        skipped = SkippedSteps.from_json(upgraded(state)["skipped"])
        before = self.order.curriculum.stages
        told = self.order.go_on(state, step)
        if self.order.curriculum.stages != before:
            self._located = {}
            self.close()  # what workers were copied has other stages
        self._skipped, self.step = skipped, step
        return told


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
    cutting = cut(shards, layout, 0)
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


def _open(source: Source, split: str) -> Shards:
    if not isinstance(source, Shards):
        return Shards(source, split)
    if source.split != split:
        raise UserError(f"{source.directory} is open at split {source.split!r}, not {split!r}")
    return source
