import numpy as np
import pytest

from data_prep.mixture import Mixture, apportion
from runtime.errors import UserError


@pytest.mark.parametrize("weights", [[1.0], [0.7, 0.3], [3, 1, 1, 0.01], [1 / 3] * 3])
def test_proportions_hold_everywhere_and_own_indices_count_up(weights):
    mixture = Mixture(apportion(weights))
    samples = np.arange(150_000)
    sources, own = mixture.locate(samples)
    share = np.array(weights) / sum(weights)
    for end in (100, 1000, 65_536, 150_000):
        counts = np.bincount(sources[:end], minlength=len(weights))
        assert np.abs(counts - share * end).max() <= 1 + len(weights) + end / 65_536
        assert mixture.consumed(end) == counts.tolist()
    for source in range(len(weights)):
        mine = own[sources == source]
        assert np.array_equal(mine, np.arange(len(mine)))


@pytest.mark.parametrize("weights", [[], [0.0], [1, -1], [1, float("nan")], [1, 1e-9]])
def test_unusable_weights_are_refused(weights):
    with pytest.raises(UserError, match="weight"):
        Mixture(apportion(weights))
