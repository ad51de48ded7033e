import numpy as np
import pytest
from scipy import stats

from finetune.report.statistics import difference, spread, t_quantile


def test_spread_is_numpys():
    values = np.random.default_rng(0).normal(3, 2, 7).tolist()
    found = spread(values)
    assert found.mean == pytest.approx(np.mean(values))
    assert found.std == pytest.approx(np.std(values, ddof=1))
    assert (found.min, found.max, found.n) == (min(values), max(values), 7)
    assert spread([0.5]) == (0.5, None, 0.5, 0.5, 1)


@pytest.mark.parametrize("freedom", [1, 2, 4, 9, 29, 30, 31, 60, 1000])
def test_quantiles_are_students(freedom):
    assert t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=6e-4)


def test_difference_is_the_paired_t_test():
    draw = np.random.default_rng(1)
    first = dict(enumerate(draw.normal(1.0, 1, 6)))
    second = {seed: value - 0.4 + draw.normal(0, 0.2) for seed, value in first.items()}
    found = difference(first, second)
    reference = stats.ttest_rel(list(first.values()), list(second.values()))
    interval = reference.confidence_interval(0.95)
    assert found is not None
    assert found.interval == pytest.approx((interval.low, interval.high), rel=1e-3)
    assert found.mean / found.standard_error == pytest.approx(reference.statistic)
    assert found.sign == (1 if reference.pvalue < 0.05 else 0) == 1
    assert difference(second, first).sign == -1


def test_only_seeds_of_both_are_compared_and_one_proves_nothing():
    assert difference({1: 0.5, 2: 0.9}, {3: 0.1}) is None
    found = difference({1: 0.5, 2: 0.9}, {2: 0.4, 3: 0.1})
    assert (found.mean, found.standard_error, found.n) == (0.5, None, 1)
    assert found.sign == 0
    same = difference({1: 0.5, 2: 0.6}, {1: 0.5, 2: 0.6})
    assert (same.sign, same.positive) == (0, 0)
