"""Whether a model is right as often as it says it is. Torch-free."""

from dataclasses import asdict, dataclass
from typing import Any

BINS = 15  # of equal width, as in Guo et al. 2017, "On Calibration of Modern Neural Networks"


@dataclass(frozen=True)
class Bin:
    """The predictions whose probability is in (low, high]."""

    low: float
    high: float
    count: int
    confidence: float  # mean probability; 0 where there are none
    accuracy: float  # share that is right; 0 where there are none


class Calibration:
    """Collects predictions one by one, in constant memory."""

    def __init__(self) -> None:
        self._counts = [0] * BINS
        self._sums = [0.0] * BINS
        self._right = [0] * BINS

    def add(self, probability: float, *, is_right: bool) -> None:
        """Count a prediction, made with this probability."""
        place = min(max(-int(-probability * BINS // 1) - 1, 0), BINS - 1)
        self._counts[place] += 1
        self._sums[place] += probability
        self._right[place] += is_right

    @property
    def count(self) -> int:
        """How many predictions there are."""
        return sum(self._counts)

    def bins(self) -> list[Bin]:
        """All bins, by rising probability."""
        return [
            Bin(n / BINS, (n + 1) / BINS, count, total / (count or 1), right / (count or 1))
            for n, (count, total, right) in enumerate(
                zip(self._counts, self._sums, self._right, strict=True)
            )
        ]

    def error(self) -> float:
        """Return the expected calibration error: the mean gap between confidence and accuracy."""
        return sum(b.count * abs(b.accuracy - b.confidence) for b in self.bins()) / self.count

    def as_json(self) -> dict[str, Any]:
        """The error, the means and the bins, for report.json."""
        return {
            "ece": self.error(),
            "confidence": sum(self._sums) / self.count,
            "accuracy": sum(self._right) / self.count,
            "bins": [asdict(found) for found in self.bins()],
        }
