import numpy as np
import pytest

from data_prep.permutation import make_key, permute


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 100, 1000, 65537])
def test_it_is_a_permutation(size):
    for seed in range(3):
        image = permute(np.arange(size), size, make_key(seed, 0))
        assert np.array_equal(np.sort(image), np.arange(size))


def test_single_values_agree_with_many_and_large_sizes_work():
    key, size = make_key(1, 2, 3), 10**12 + 39
    some = np.array([0, 1, 2, size - 1, size // 2])
    together = permute(some, size, key)
    assert [int(permute(np.array([i]), size, key)[0]) for i in some] == together.tolist()
    assert len(set(together.tolist())) == 5
    assert together.max() < size


def test_keys_give_unrelated_orders_without_pattern():
    size = 10_000
    one, two = (permute(np.arange(size), size, make_key(0, epoch)) for epoch in (0, 1))
    assert (one == two).sum() < 10  # 1 expected
    assert (one == np.arange(size)).sum() < 10
    for order in (one, two):
        assert abs(np.corrcoef(order, np.arange(size))[0, 1]) < 0.05
        assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.05
    # 100 bins of neighbours' distances, chi-squared with 99 degrees of freedom
    counts = np.histogram((one[1:] - one[:-1]) % size, bins=100, range=(0, size))[0]
    assert ((counts - size / 100) ** 2 / (size / 100)).sum() < 170
