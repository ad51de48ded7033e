"""How much of each source is drawn when: stages of a run, each with a mixture and limits.

A stage goes on where the one before left each source. Where a source has given as many samples as
it may, the others take its share in proportion to theirs. All of it follows from the stages alone.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from data_prep.mixture import Ints, apportion, mixture_of
from runtime.errors import UserError


class Stage(NamedTuple):
    """From a global sample on: each source's samples in a block, and how many it gives in all."""

    first: int
    counts: tuple[int, ...]  # add up to 65,536; 0: not drawn from
    limits: tuple[int | None, ...]  # samples since the run began; None: as many as are asked for

    def same_rule(self, other: "Stage") -> bool:
        """Whether the two differ in nothing but where they begin."""
        return self[1:] == other[1:]


class _Piece(NamedTuple):
    """A stretch with one table of slots."""

    first: int
    counts: tuple[int, ...]
    given: tuple[int, ...]  # samples that each source gave before


class Curriculum:
    """Assigns global sample g to (source, index within the source) in O(number of stages).

    `end` is the first sample that no source is left for; None where there is none.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        firsts = [stage.first for stage in stages]
        if firsts[0] != 0 or any(one >= other for one, other in pairwise(firsts)):
            raise ValueError(f"stages must begin at 0 and one after the other: {firsts}")
        self.stages = tuple(stages)
        self._pieces, self.end = _pieces(self.stages)
        self._firsts = np.array([piece.first for piece in self._pieces], dtype=np.int64)

    def locate(self, samples: Ints) -> tuple[Ints, Ints]:
        """Source and own index of each global sample before the end. (n,) → (n,), (n,)"""
        turns = np.searchsorted(self._firsts, samples, side="right") - 1
        sources, own = np.empty_like(samples), np.empty_like(samples)
        for turn in np.unique(turns):
            piece, chosen = self._pieces[turn], turns == turn
            found, ranks = mixture_of(piece.counts).locate(samples[chosen] - piece.first)
            sources[chosen] = found
            own[chosen] = ranks + np.asarray(piece.given, dtype=np.int64)[found]
        return sources, own

    def consumed(self, samples: int) -> list[int]:
        """How many of the first `samples` global samples each source gave."""
        if self.end is not None:
            samples = min(samples, self.end)
        # At a piece's first sample it has given nothing: the piece before answers as well.
        piece = self._pieces[max(bisect_right(self._firsts, samples - 1) - 1, 0)]
        taken = mixture_of(piece.counts).consumed(samples - piece.first)
        return [before + now for before, now in zip(piece.given, taken, strict=True)]

    def stage_at(self, sample: int) -> Stage:
        """The stage that a global sample belongs to."""
        return self.stages[bisect_right([stage.first for stage in self.stages], sample) - 1]


def _pieces(stages: Sequence[Stage]) -> tuple[list[_Piece], int | None]:
    """Cut the stages wherever a source is used up; the sample at which nothing is left."""
    pieces: list[_Piece] = []
    given = [0] * len(stages[0].counts)
    for stage, following in zip(stages, [*stages[1:], None], strict=True):
        first = stage.first
        while following is None or first < following.first:
            counts = _left(stage, given)
            if counts is None:
                return pieces, first
            pieces.append(_Piece(first, counts, tuple(given)))
            mixture = mixture_of(counts)
            ends = [
                first + mixture.place(source, limit - given[source])
                for source, limit in enumerate(stage.limits)
                if limit is not None and counts[source]
            ]
            if following is not None:
                ends.append(following.first)
            if not ends:
                return pieces, None
            taken = mixture.consumed(min(ends) - first)
            given = [before + now for before, now in zip(given, taken, strict=True)]
            first = min(ends)
    return pieces, None


def _left(stage: Stage, given: Sequence[int]) -> tuple[int, ...] | None:
    """The slots of the sources that have not given all they may; None where there is none."""
    left = [
        count if limit is None or before < limit else 0
        for count, limit, before in zip(stage.counts, stage.limits, given, strict=True)
    ]
    if not any(left):
        return None
    return stage.counts if tuple(left) == stage.counts else tuple(apportion(left))


def carry_on(begun: Sequence[Stage], planned: Sequence[Stage], now: int) -> list[Stage]:
    """The stages of a run that goes on at global sample `now` by a plan that may have changed.

    What has begun stays. Where the plan wants something else at `now` than what held until then, a
    stage begins there; the plan's later stages follow.
    """
    later = [stage for stage in planned if stage.first > now]
    wanted = Curriculum(planned).stage_at(now)
    if begun[-1].same_rule(wanted):
        return [*begun, *later]
    before = [stage for stage in begun if stage.first < now]
    return [*before, wanted._replace(first=now), *later]


def to_json(stages: Sequence[Stage]) -> list[list[Any]]:
    """Stages as a loader's state holds them: [first, counts, limits] of each."""
    return [[stage.first, list(stage.counts), list(stage.limits)] for stage in stages]


def from_json(stored: Any, sources: int) -> list[Stage]:
    """Stages of a state, for as many sources as there are now: the new ones gave nothing yet.

    Raises UserError where they are none.
    """
    try:
        stages = []
        for first, counts, limits in stored:
            numbers = [first, *counts, *(limit for limit in limits if limit is not None)]
            if not all(type(number) is int for number in numbers) or len(counts) != len(limits):
                raise TypeError
            new = sources - len(counts)
            if new < 0:
                raise ValueError
            stages.append(Stage(first, (*counts, *[0] * new), (*limits, *[None] * new)))
        Curriculum(stages)  # refuses what cannot be
    except (TypeError, ValueError, IndexError) as error:
        raise UserError(f"cannot resume: the loader's stages are {stored!r}") from error
    return stages
