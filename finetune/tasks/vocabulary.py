"""What the tasks share that predict tokens of the vocabulary: batches without padding, and loss."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from finetune.tasks.base import (
    IGNORE_INDEX,
    Arrays,
    Encoded,
    Indices,
    Outputs,
    Task,
    pad,
    padded,
)

if TYPE_CHECKING:
    from torch import Tensor

_PIECE = 1 << 24  # logits that are made fp32 at once
LOSS, CORRECT, COUNT = range(3)  # what is kept of an item: sum of its losses, hits, labels


@dataclass(frozen=True)
class Predicted(Encoded):
    """Rows of tokens, some of which are predicted: -100 in `labels`, one a token, elsewhere.

    Packed, the rows of a batch lie end to end in one, each seeing itself alone (`cu_seqlens`), so
    that nothing is padding and no text leaks into another.
    """

    is_token_level: bool = True
    is_packed: bool = True

    def batch(self, indices: Indices, pad_id: int) -> Arrays:
        """Make the model's arguments for these rows.

        input_ids and targets, aligned with them. Packed (1, N): and cu_seqlens, and rows: where
        the targets that count are. Else (B, T): and attention_mask.
        """
        ids = [self.row(int(index)) for index in indices]
        # What each token predicts: the next.
        labels = [self.labels_of(int(index)) for index in indices]
        return self.arrays(ids, [np.append(row[1:], IGNORE_INDEX) for row in labels], pad_id)

    def arrays(
        self, ids: Sequence[npt.NDArray[Any]], targets: Sequence[npt.NDArray[Any]], pad_id: int
    ) -> Arrays:
        """Make the model's arguments of these rows and what each of their tokens predicts."""
        if not self.is_packed:
            return {**pad(ids, pad_id), "targets": padded(targets, IGNORE_INDEX)}
        wanted = np.concatenate(targets).astype(np.int64)
        return {
            "input_ids": np.concatenate(ids).astype(np.int64)[None],
            "cu_seqlens": np.cumsum([0, *map(len, ids)]).astype(np.int32),
            "targets": wanted[None],
            "rows": np.flatnonzero(wanted != IGNORE_INDEX),
        }

    def labels_of(self, index: int) -> npt.NDArray[Any]:
        """The labels of a row, one a token."""
        return self._row(self.labels, index)


class VocabularyTask(Task):
    """A task whose answers are tokens."""

    is_of_vocabulary = True
    metrics = ("loss", "perplexity", "token_accuracy")

    def infer(self, net: Any, batch: Mapping[str, "Tensor"]) -> Outputs:
        """Sum of losses (nats), hits, and number of the predicted tokens of each item.

        Of a packed batch, only the logits of what is predicted are made.
        """
        import torch

        logits = net(**{k: v for k, v in batch.items() if k != "targets"}).logits
        if "rows" not in batch:
            return self.reduce(logits, batch)
        rows, bounds = batch["rows"], batch["cu_seqlens"].long()
        owner = torch.searchsorted(bounds, rows, right=True) - 1
        return _summed(logits, batch["targets"].flatten()[rows], owner, len(bounds) - 1)

    def reduce(self, logits: "Tensor", batch: Mapping[str, "Tensor"]) -> Outputs:
        """As `infer`, from the logits (B, T, V) of a batch that is not packed."""
        targets = batch["targets"]
        row, column = (targets != IGNORE_INDEX).nonzero().unbind(1)
        return _summed(logits[row, column], targets[row, column], row, len(targets))

    def scores(self, data: Encoded, outputs: Outputs, labels: Sequence[str]) -> dict[str, float]:
        """Loss in nats and hits over all predicted tokens alike, and exp(loss)."""
        loss, correct, count = np.stack(outputs).sum(0)
        mean = loss / max(count, 1)
        return {
            "loss": float(mean),
            "perplexity": math.exp(min(mean, 700)),  # a number in JSON, however bad
            "token_accuracy": float(correct / max(count, 1)),
        }

    def report(self, data: Encoded, outputs: Outputs, labels: Sequence[str]) -> dict[str, Any]:
        """Return the scores, and how many tokens they are of."""
        counted = int(np.stack(outputs)[:, COUNT].sum())
        return {**self.scores(data, outputs, labels), "predicted_tokens": counted}

    def predictions(
        self, data: Encoded, outputs: Outputs, labels: Sequence[str]
    ) -> Iterator[dict[str, Any]]:
        """Yield the scores of each example; `predicted`: its loss, None where nothing counted."""
        sums = np.zeros((len(data.examples), 3))
        np.add.at(sums, self.owners(data), np.stack(outputs))
        for loss, correct, count in sums.tolist():
            yield {
                "predicted": loss / count if count else None,
                "token_accuracy": correct / count if count else None,
                "tokens": int(count),
            }


def _summed(logits: "Tensor", targets: "Tensor", owner: "Tensor", items: int) -> Outputs:
    """Losses, hits and counts of each item from (M, V) logits and (M,) targets of (M,) owners."""
    import torch

    sums = torch.zeros(items, 3, dtype=torch.float64)
    size = max(1, _PIECE // logits.shape[-1])
    for start in range(0, len(targets), size):
        part = slice(start, start + size)
        scores, wanted, of = logits[part].float(), targets[part], owner[part]
        loss = torch.nn.functional.cross_entropy(scores, wanted, reduction="none")
        hits = scores.argmax(-1) == wanted
        values = torch.stack([loss, hits.float(), torch.ones_like(loss)], dim=1).double()
        sums.index_add_(0, of.cpu(), values.cpu())
    return list(sums.numpy())
