"""The order of the data, a pure function of (seed, epoch, global sample index). Torch-free.

How many ranks share the work does not change which samples a step sees. Which source a sample
comes from: data_prep.curriculum. What it is made of: data_prep.windows and data_prep.packing.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from data_prep import curriculum
from data_prep.batch_sizes import BatchSizes
from data_prep.curriculum import Curriculum, Stage
from data_prep.mixture import apportion
from data_prep.packing import Pieces
from data_prep.samples import Cutting, Layout, PackingReport, Sample, Seen, check_layout, report_of
from data_prep.shards import Shards
from data_prep.skipping import Window
from data_prep.windows import Windows
from runtime.errors import EXIT_BAD_INPUT, UserError

SCHEMA = 2
_TOLD = {  # what a newcomer calls the parts of a state
    "fingerprints": "the data",
    "ramp": "batch.ramp",
    "overhead": "the number of tokens that the objective adds to a text",
    "drops_eod": "whether the objective leaves out end-of-document tokens",
}
Located = list[tuple[int, int, int]]  # global index, source, number in the source's cutting


class Mixing(NamedTuple):
    """How much of each source a run wants.

    `weights` are shares of the tokens, 0 for a source that only a later stage draws from.
    `max_repetition`: how often each source may be passed through in all; None: as often as it
    takes. `stages`: other weights from a data step on, in rising order.
    """

    weights: tuple[float, ...]
    max_repetition: tuple[float | None, ...]
    stages: tuple[tuple[int, tuple[float, ...]], ...] = ()


class Order:
    """Which samples each data step is made of, and what those are made of.

    `global_batch_size`, `ramp`: how many of them, as in `BatchSizes`.

    Raises UserError for sources that do not fit together and weights that cannot be.
    """

    def __init__(
        self,
        shards: Sequence[Shards],
        layout: Layout,
        mixing: Mixing,
        *,
        global_batch_size: int,
        seed: int,
        ramp: Sequence[tuple[int, int]] = (),
    ) -> None:
        check_layout(layout)
        _require_one_tokenizer(shards)
        self.shards, self.layout = list(shards), layout
        self.seed = seed
        self.sizes = BatchSizes(global_batch_size, tuple((until, size) for until, size in ramp))
        self.cuttings = [cut(one, layout, source) for source, one in enumerate(shards)]
        self._planned = self._plan(mixing)
        self.curriculum = Curriculum(self._planned)

    def _plan(self, mixing: Mixing) -> list[Stage]:
        """The stages in samples: a source of shorter samples takes more of them for its weight."""
        per_token = [cutting.size / cutting.tokens for cutting in self.cuttings]
        limits = [
            None if most is None else max(1, int(most * cutting.size))
            for most, cutting in zip(mixing.max_repetition, self.cuttings, strict=True)
        ]
        stages = []
        for step, weights in ((0, mixing.weights), *mixing.stages):
            if len(weights) != len(self.cuttings):
                raise UserError(
                    f"{len(weights)} weights for {len(self.cuttings)} sources: {list(weights)}",
                    status=EXIT_BAD_INPUT,
                )
            counts = tuple(apportion(weights, per_token))
            own = tuple(one if n else None for one, n in zip(limits, counts, strict=True))
            stages.append(Stage(self.sizes.first(step), counts, own))
        return stages

    @property
    def end(self) -> int | None:
        """The first data step that no source has samples left for; None: there is none."""
        last = self.curriculum.end
        return None if last is None else self.sizes.steps(last)

    def locate(self, indices: npt.NDArray[np.int64]) -> Located:
        """Where each global sample comes from."""
        sources, own = self.curriculum.locate(indices)
        numbers = np.zeros_like(own)
        for source in np.unique(sources):
            cutting = self.cuttings[source]
            epochs, places = np.divmod(own, cutting.size)
            for epoch in np.unique(epochs[sources == source]):
                chosen = (sources == source) & (epochs == epoch)
                numbers[chosen] = cutting.shuffled(self.seed, int(epoch), places[chosen])
        return list(zip(indices.tolist(), sources.tolist(), numbers.tolist(), strict=True))

    def samples(self, located: Located) -> list[Sample]:
        """The samples themselves."""
        return [
            Sample(index, self.cuttings[source].segments(number))
            for index, source, number in located
        ]

    def documents(self, step: int) -> list[Seen]:
        """What every sample of a step's global batch was made of, whichever rank read it."""
        self.require(step)
        return [
            seen._replace(sample=index)
            for index, source, number in self.locate(
                np.arange(self.sizes.first(step), self.sizes.first(step + 1))
            )
            for seen in self.cuttings[source].seen(number)
        ]

    def require(self, step: int) -> None:
        """Raise UserError where the sources have nothing left for a data step."""
        if self.end is not None and step >= self.end:
            raise UserError(
                f"the data is used up: every source has been passed through as often as its "
                f"max_repetition allows after {self.end:,} data steps, and step {step:,} was asked "
                "for; raise max_repetition, or add sources"
            )

    def epochs(self, step: int) -> list[float]:
        """How many times each source has been passed through before a data step."""
        taken = self.curriculum.consumed(self.sizes.first(step))
        return [count / cutting.size for count, cutting in zip(taken, self.cuttings, strict=True)]

    def tokens(self, step: int, skipped: Sequence[Window] = ()) -> list[int]:
        """Tokens of each source in the data steps before one, without windows left out of them."""
        total = np.array(self._tokens(step))
        for first, stop in skipped:
            if first < step:
                total -= np.array(self._tokens(min(stop, step))) - np.array(self._tokens(first))
        return [int(count) for count in total]

    def _tokens(self, step: int) -> list[int]:
        found = []
        taken = self.curriculum.consumed(self.sizes.first(step))
        for count, cutting in zip(taken, self.cuttings, strict=True):
            epoch, place = divmod(count, cutting.size)
            rest = cutting.tokens_before(self.seed, epoch, place) if place else 0
            found.append(epoch * cutting.tokens + rest)
        return found

    def shares(self, stage: Stage) -> list[float]:
        """Each source's share of the tokens that a stage asks for."""
        tokens = [
            count * cutting.tokens / cutting.size
            for count, cutting in zip(stage.counts, self.cuttings, strict=True)
        ]
        return [count / sum(tokens) for count in tokens]

    def packing_report(self, count_cut: bool = True) -> PackingReport:
        """One epoch of every source in numbers, added up."""
        reports = [cutting.report(count_cut) for cutting in self.cuttings]
        cut = [report.cut_documents for report in reports]
        return report_of(
            self.layout,
            sum(report.samples for report in reports),
            sum(report.segments for report in reports),
            documents=sum(report.documents for report in reports),
            cut=None if None in cut else sum(number or 0 for number in cut),
            tokens=sum(report.tokens for report in reports),
        )

    def state(self, step: int | None = None) -> dict[str, Any]:
        """What decides the order; plain JSON. With a data step, only the stages begun by then."""
        stages = self.curriculum.stages
        if step is not None:
            stages = tuple(s for s in stages if s.first <= self.sizes.first(step))
        return {
            "schema": SCHEMA,
            "seed": self.seed,
            "seq_len": self.layout.seq_len,
            "global_batch_size": self.sizes.final,
            "ramp": [list(stage) for stage in self.sizes.ramp],
            "split": self.shards[0].split,
            "stages": curriculum.to_json(stages),
            "fingerprints": [shards.fingerprint for shards in self.shards],
            # Both kinds of windows come in the same order; only attention differs.
            "packing": self.layout.packing if self.layout.by_document else "concat",
            "overhead": self.layout.overhead,
            "drops_eod": self.layout.drops_eod,
        }

    def go_on(self, state: dict[str, Any], step: int) -> str | None:
        """Take up a state at its data step; what has changed in the mixture since, in words.

        Raises UserError where the order of samples would not go on. Sources may have been added
        behind the others, and weights and stages may have changed: then a stage begins here.
        """
        state = upgraded(state)
        own = self.state()
        before = len(state["fingerprints"])
        own["fingerprints"] = own["fingerprints"][:before]
        for name in own:
            if name != "stages" and state.get(name) != own[name]:
                what = _TOLD.get(name, name)
                fewer = name == "fingerprints" and before > len(self.shards)
                mend = " (a source that is to give no more has weight 0)" if fewer else ""
                raise UserError(
                    f"cannot resume: {what} was {state.get(name)!r}, now {own[name]!r}; the order "
                    f"of samples would change. Restore it{mend}, or start a new run",
                    status=EXIT_BAD_INPUT,
                )
        now = self.sizes.first(step)
        stages = curriculum.from_json(state["stages"], len(self.shards))
        begun = [stage for stage in stages if stage.first <= now]
        self.curriculum = Curriculum(curriculum.carry_on(begun, self._planned, now))
        current = self.curriculum.stage_at(now)
        if len(self.shards) == before and current.same_rule(begun[-1]):
            return None
        return self._tell(step, self.shares(begun[-1]), self.shares(current))

    def _tell(self, step: int, before: list[float], after: list[float]) -> str:
        sources = zip(self.shards, before, after, self.epochs(step), strict=True)
        told = [
            f"{shards.directory} {100 * now:.2f} % of the tokens (was {100 * was:.2f} %), after "
            f"{epochs:.2f} epochs"
            for shards, was, now, epochs in sources
        ]
        return f"another mixture from data step {step:,} on: {'; '.join(told)}"

    def take_up(self, state: dict[str, Any]) -> None:
        """Follow a state's own stages, whatever was planned."""
        self.curriculum = Curriculum(
            curriculum.from_json(upgraded(state)["stages"], len(self.shards))
        )


def upgraded(state: dict[str, Any]) -> dict[str, Any]:
    """A loader's state in today's form, whichever version wrote it."""
    # What states did not say before there was a choice.
    state = {"packing": "concat", "overhead": 0, "drops_eod": False, "skipped": [], **state}
    state = {"ramp": [], **state}
    if state.get("schema") == 1 and "weights" in state:  # shares of the samples
        counts = apportion(state.pop("weights"))
        state |= {"schema": SCHEMA, "stages": [[0, counts, [None] * len(counts)]]}
    return state


def cut(shards: Shards, layout: Layout, source: int) -> Cutting:
    """A split cut into samples as a layout wants them."""
    if layout.by_document:
        return Pieces(shards, layout, source)
    return Windows(shards, layout, source)


def _require_one_tokenizer(sources: Sequence[Shards]) -> None:
    for other in sources[1:]:
        if not other.has_tokenizer_of(sources[0]):
            raise UserError(
                f"{other.directory} and {sources[0].directory} were made with different "
                "tokenizers; prepare one with the other's, by tokenizer.path",
                status=EXIT_BAD_INPUT,
            )
