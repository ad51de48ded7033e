"""What the steps since the last record held."""

from pretrain.objectives.batch import Counts


class Tally:
    """Adds up steps until it is read."""

    def __init__(self, *, has_pairs: bool = False) -> None:
        self._has_pairs = has_pairs
        self._counts, self._positions, self._steps = Counts(0, 0, 0, 0), 0, 0

    def add(self, held: Counts, positions: int) -> None:
        """Count what one global batch of so many positions held."""
        self._counts = Counts(*(a + b for a, b in zip(self._counts, held, strict=True)))
        self._positions += positions
        self._steps += 1

    @property
    def predicted_fraction(self) -> float:
        """Share of the tokens that were in the loss."""
        return self._counts.predicted / max(self._counts.tokens, 1)

    def read(self) -> dict[str, float]:
        """Means a step, by their names in metrics.jsonl; starts again.

        `utilisation`: share of the positions that held a token. `predicted_tokens`: in the loss.
        With pairs also `predicted_pairs`, the rows that are one, and `replaced_tokens`: cut off, or
        replaced by another document's.
        """
        counts, steps = self._counts, max(self._steps, 1)
        found = {
            "utilisation": counts.tokens / max(self._positions, 1),
            "predicted_tokens": counts.predicted / steps,
        }
        if self._has_pairs:
            found["predicted_pairs"] = counts.pairs / steps
            found["replaced_tokens"] = counts.replaced / steps
        self._counts, self._positions, self._steps = Counts(0, 0, 0, 0), 0, 0
        return found
