import random
from typing import Any

import pytest

from runtime.health import Health, SlowRanks, Verdict
from runtime.sections import Health as Settings


def health(**keys: Any) -> Health:
    return Health(Settings(**keys))


def judged(h: Health, data_step: int, loss: float, *, finite_gradients: bool = True) -> Any:
    applied = h.accept(loss) and finite_gradients
    return h.judge(data_step, applied=applied, is_finite=True, at_lowest_scale=None)


def noisy(rng: random.Random, step: int) -> float:
    """A loss curve as they are: falling fast, then slowly, with noise that has heavy tails."""
    level = 2.5 + 7 / (1 + step / 40)
    noise = rng.gauss(0, 0.05) if rng.random() < 0.95 else rng.gauss(0, 0.1)
    return level + noise


def test_no_more_than_one_false_alarm_in_ten_thousand_steps() -> None:
    rng, h = random.Random(1), health(on_spike="skip")
    alarms = [s for s in range(40_000) if judged(h, s, noisy(rng, s))]
    assert len(alarms) <= 4


@pytest.mark.parametrize("at", [500, 1000, 5000])
def test_a_spike_is_found_and_the_step_not_taken(at: int) -> None:
    rng, h = random.Random(2), health(on_spike="skip")
    for step in range(at):
        assert judged(h, step, noisy(rng, step)) is None
    assert not h.accept(noisy(rng, at) + 2.5)
    verdict = h.judge(at, applied=False, is_finite=True, at_lowest_scale=None)
    assert verdict == Verdict("spike", "skip")
    assert not h.is_in_doubt


def test_a_new_level_does_not_stay_a_spike() -> None:
    rng, h = random.Random(3), health(on_spike="skip")
    for step in range(300):
        judged(h, step, 2.0 + rng.gauss(0, 0.02))
    verdicts = [judged(h, 300 + step, 3.0 + rng.gauss(0, 0.02)) for step in range(100)]
    assert verdicts[0] is not None
    assert not any(verdicts[20:])


def spike(**keys: Any) -> tuple[Health, Verdict | None]:
    rng, h = random.Random(4), health(**keys)
    for step in range(100):
        judged(h, step, 2.0 + rng.gauss(0, 0.02))
    return h, judged(h, 100, 5.0)


def test_what_a_spike_leads_to() -> None:
    assert spike(on_spike="log")[1] == Verdict("spike", "log")
    assert spike(on_spike="rollback")[1] == Verdict("spike", "roll_back", (None, 101))
    h, verdict = spike(on_spike="lower_lr")
    assert verdict == Verdict("spike", "lower_lr")
    assert h.lr_factor == 0.5
    assert spike(on_spike="skip", spike_sigma=0)[1] is None


def test_steps_that_are_not_finite_are_skipped_then_rolled_back() -> None:
    h = health(max_skipped_steps=3)
    assert judged(h, 6, 2.0) is None
    assert judged(h, 7, float("nan")) == Verdict("not_finite", "skip")
    assert h.is_in_doubt
    assert judged(h, 8, 2.0, finite_gradients=False) == Verdict("not_finite", "skip")
    assert judged(h, 9, float("inf")) == Verdict("not_finite", "roll_back", (7, 10))
    fresh = health(max_skipped_steps=3)
    for data_step, loss in ((7, float("nan")), (8, 2.0), (9, float("nan")), (10, float("nan"))):
        verdict = judged(fresh, data_step, loss)
    assert verdict == Verdict("not_finite", "skip")  # not three in a row


def test_weights_that_are_not_finite_are_rolled_back_at_once() -> None:
    h = health()
    assert h.accept(2.0)
    verdict = h.judge(4, applied=True, is_finite=False, at_lowest_scale=None)
    assert verdict == Verdict("not_finite", "roll_back", (4, 5))


def test_rollbacks_come_to_an_end() -> None:
    h = health(max_rollbacks=2)
    assert [h.count_rollback() for _ in range(3)] == [True, True, False]


def test_fp16_may_look_for_its_scale_but_not_stay_at_the_lowest() -> None:
    h = health()
    for step in range(50):
        h.accept(2.0)
        assert h.judge(step, applied=False, is_finite=True, at_lowest_scale=False) is None
    verdicts = []
    for step in range(10):
        h.accept(2.0)
        verdicts.append(h.judge(step, applied=False, is_finite=True, at_lowest_scale=True))
    assert [v.action for v in verdicts if v] == ["skip"] * 9 + ["give_up"]


def test_a_state_decides_all_that_follows() -> None:
    rng, h = random.Random(5), health(on_spike="lower_lr")
    losses = [2.0 + rng.gauss(0, 0.05) for _ in range(400)]
    losses[250] = losses[300] = 4.0
    losses[290] = losses[291] = float("nan")
    again = health(on_spike="lower_lr")
    verdicts = []
    for step, loss in enumerate(losses):
        if step == 291:
            again.load_state_dict(h.state_dict())
        verdicts.append(judged(h, step, loss))
        if step >= 291:
            assert judged(again, step, loss) == verdicts[-1]
    assert again.state_dict() == h.state_dict()
    assert again.lr_factor == 0.25


def slow_steps(extra: float, *, steps: int, noise: float, seed: int = 0) -> list[tuple[int, int]]:
    """(step, rank) of every rank named, of four ranks of which rank 2 takes longer."""
    rng, slow = random.Random(seed), SlowRanks(1.5)
    named = []
    for step in range(steps):
        own = [0.1 * (1 + abs(rng.gauss(0, noise))) for _ in range(4)]
        own[rng.randrange(4)] += 0.3 if rng.random() < 0.1 else 0  # a neighbour, now and then
        own[2] += extra
        found = slow.add(own, 0.3)
        if found is not None:
            named.append((step, found.rank))
    return named


def test_a_slow_rank_is_named_soon_and_then_rarely() -> None:
    named = slow_steps(0.2, steps=220, noise=0.1)
    assert named[0][0] < 20
    assert {rank for _, rank in named} == {2}
    assert len(named) == 3


def test_clean_steps_name_nobody() -> None:
    assert slow_steps(0.0, steps=1000, noise=0.15) == []


def test_a_rank_that_costs_next_to_nothing_is_not_worth_a_line() -> None:
    slow = SlowRanks(1.5)
    assert not any(slow.add([0.001, 0.003], 0.3) for _ in range(50))


def test_one_rank_is_never_slow() -> None:
    slow = SlowRanks(1.5)
    assert not any(slow.add([0.5], 0.5) for _ in range(50))
