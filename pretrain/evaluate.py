"""Loss and accuracy on the validation split."""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from data_prep.collate import IGNORED
from data_prep.loader import validation_batches
from data_prep.shards import Shards
from pretrain.config import PretrainConfig
from pretrain.objectives.batch import Batch, Counts, count, split
from pretrain.objectives.objective import Objective
from runtime import dist
from runtime.engine import Engine

Scores = dict[str, float]


class Validation:
    """The same samples at every evaluation, hidden and paired in the same way."""

    def __init__(self, config: PretrainConfig, shards: Shards, objective: Objective) -> None:
        self._config, self._shards, self._objective = config, shards, objective

    def __call__(self, engine: Engine, beat: Callable[[], None]) -> Scores:
        """Means over all ranks, by their names in metrics.jsonl. Collective.

        beat: called after each batch.

        `valid_loss` in nats per predicted token (plus, with pairs, nats per pair); for hidden
        tokens also the share that is guessed right, and `valid_unigram_accuracy`, the share that a
        guess of always the most frequent token gets right; for pairs `valid_pair_accuracy`, and
        `valid_pair_majority_accuracy`, that of a guess of always the more frequent label.
        """
        is_masked = self._objective.head != "causal_lm"
        sums = torch.zeros(4, dtype=torch.float64, device=engine.ranks.device)
        predicted, labels = 0.0, np.zeros(2, dtype=np.int64)
        targets = np.zeros(self._shards.vocab_size if is_masked else 0, dtype=np.int64)
        with engine.evaluating() as module:
            for batch in self._batches(engine):
                beat()
                found = count(batch)
                (on_device,) = split(batch, len(batch["targets"]), engine.ranks.device)
                sums += _sums(module, on_device, found)
                predicted += found.predicted
                if is_masked:
                    targets += _frequencies(batch["targets"], len(targets))
                if found.pairs:
                    labels += _frequencies(batch["pair_labels"], len(labels))
        summed = dist.sum_over_ranks(
            [*sums.tolist(), predicted, *labels.tolist(), *targets.tolist()]
        )
        return _scores(summed[:4], summed[4], summed[5:7], summed[7:])

    def _batches(self, engine: Engine) -> Iterator[Batch]:
        return validation_batches(
            self._shards,
            batch_size=self._config.micro_batch_size(engine.ranks.world_size),
            max_sequences=self._config.evaluate.max_sequences or None,
            rank=engine.ranks.rank,
            world_size=engine.ranks.world_size,
            layout=self._objective.layout,
            collate=self._objective.collate,
        )


def _frequencies(targets: torch.Tensor, size: int) -> npt.NDArray[np.int64]:
    return np.bincount(targets[targets != IGNORED].numpy(), minlength=size)


def _sums(module: nn.Module, batch: Batch, found: Counts) -> torch.Tensor:
    """Loss of the tokens, of the pairs, and how many of each are right. (4,) float64

    A loss is a mean, which the last ranks' padding of the round has none of.
    """
    out = module(**batch)
    zero = torch.zeros((), device=batch["input_ids"].device)
    parts = [
        out.token_loss * found.predicted if found.predicted else zero,
        out.pair_loss * found.pairs if found.pairs else zero,
        zero if out.n_correct is None else out.n_correct,
        zero if out.n_pairs_correct is None else out.n_pairs_correct,
    ]
    return torch.stack([part.double() for part in parts])


def _scores(
    sums: list[float], predicted: float, labels: list[float], targets: list[float]
) -> Scores:
    token_loss, pair_loss, correct, pairs_correct = sums
    predicted, pairs = max(predicted, 1), sum(labels)
    scores = {"valid_loss": token_loss / predicted}
    if targets:
        scores["valid_accuracy"] = correct / predicted
        scores["valid_unigram_accuracy"] = max(targets) / predicted
    if pairs:
        scores["valid_loss"] += pair_loss / pairs
        scores["valid_pair_accuracy"] = pairs_correct / pairs
        scores["valid_pair_majority_accuracy"] = max(labels) / pairs
    return scores
