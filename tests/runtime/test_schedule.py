import itertools

import pytest
import torch
from transformers import get_linear_schedule_with_warmup

from runtime.schedule import lr_ratio
from runtime.sections import Schedule


def ratios(total: int, **keys: object) -> list[float]:
    return [lr_ratio(Schedule(**keys), step, total) for step in range(total)]


def test_warmup_is_linear_and_reaches_the_peak() -> None:
    assert ratios(20, warmup_steps=4)[:5] == [0.25, 0.5, 0.75, 1.0, pytest.approx(1.0)]


def test_cosine_equals_torch() -> None:
    total, floor = 30, 0.1
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total - 1, eta_min=floor)
    expected = []
    for _ in range(total):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()
    assert ratios(total, kind="cosine", min_ratio=floor) == pytest.approx(expected, abs=1e-12)


def test_linear_equals_transformers() -> None:
    total, warmup, floor = 30, 6, 0.25
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    # Its first step after the warm-up has the peak, and its step `total - 1` would be 0.
    reference = get_linear_schedule_with_warmup(optimizer, warmup, total - 1)
    found = ratios(total, kind="linear", warmup_steps=warmup, min_ratio=floor)
    for step in range(total):
        if step >= warmup:
            expected = floor + (1 - floor) * optimizer.param_groups[0]["lr"]
            assert found[step] == pytest.approx(expected, abs=1e-12)
        optimizer.step()
        reference.step()
    assert found[warmup - 1] == found[warmup] == 1.0
    assert found[-1] == pytest.approx(floor)


def test_wsd_is_flat_then_linear_to_the_floor() -> None:
    values = ratios(100, kind="wsd", warmup_steps=10, decay_steps=20, min_ratio=0.0)
    assert values[10:80] == [1.0] * 70
    assert values[-1] == 0.0
    falls = [a - b for a, b in itertools.pairwise(values[79:])]
    assert falls == pytest.approx([1 / 20] * 20)


def test_wsd_decays_over_a_fifth_by_default() -> None:
    values = ratios(100, kind="wsd", min_ratio=0.1)
    assert values[79] == 1.0
    assert values[80] < 1.0
    assert values[-1] == pytest.approx(0.1)


def test_constant() -> None:
    assert ratios(7, kind="constant", warmup_steps=2) == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("kind", ["cosine", "linear", "wsd", "constant"])
def test_a_run_of_one_step(kind: str) -> None:
    assert 0 <= ratios(1, kind=kind)[0] <= 1
