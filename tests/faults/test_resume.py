"""B2: runs that are killed and started again, at each step, end as if nothing had happened."""

import random

import pytest

from runtime.records import read_metrics
from tests.faults.runs import Runs, last_digest, losses, steps_saved

STEPS = 40  # with dropout, two micro-batches a step and rank, warm-up and decay
STOPPED = 75


def broken_run(runs: Runs, name: str, kills: list[tuple[int, str]], **keys: object) -> None:
    """Each kill: so many steps after the last start, in that way; then to the end."""
    config = runs.config(name, steps=STEPS, checkpoint__every_steps=1, **keys)
    for number, (step, way) in enumerate(kills):
        victim = number % 2
        # A killed rank has saved its last step only where saving is not put off.
        overrides = [f"checkpoint.background={'true' if way == 'SIGTERM' else 'false'}"]
        faults = [{"kind": "step", "rank": victim, "step": step, "do": way}]
        run = runs.start(config, *overrides, faults=faults)
        statuses = run.wait_then_kill(patience_s=20)
        if way == "SIGTERM":
            assert statuses == [STOPPED] * 2, run.output()
        else:
            assert statuses[victim] == -9, run.output()
    runs.finish(config)


def assert_equal(runs: Runs, *names: str) -> None:
    first = losses(runs.path(names[0]))
    assert list(first) == list(range(1, STEPS + 1))
    digests = {name: last_digest(runs.checkpoints(name), STEPS) for name in names}
    for name in names:
        found = losses(runs.path(name))  # each step stands there once
        different = [s for s in found if found[s] != first[s]]
        assert found == first, f"{name} differs from step {different[:1]} on"
        assert digests[name] == digests[names[0]], name


def variants(*of_muon: pytest.MarkDecorator) -> list[pytest.param]:
    return [
        pytest.param({}, id="adamw"),
        pytest.param(
            {"optim__name": "muon", "data__workers": 2}, id="muon, 2 workers", marks=of_muon
        ),
    ]


@pytest.mark.parametrize("keys", variants(pytest.mark.nightly))  # two minutes of the same kills
def test_killed_at_each_of_twenty_steps(runs: Runs, keys: dict) -> None:
    """One run, stopped after each of its first twenty steps, by a kill and by a request in turn.

    Every fifth start is killed in its first step, before it has got anywhere: a double resume.
    """
    runs.finish(runs.config("calm", steps=STEPS, **keys))
    kills = []
    for number in range(20):
        kills.append((1, "SIGTERM") if number % 2 else (2, "SIGKILL"))
        if number % 5 == 4:
            kills.append((1, "SIGKILL"))
    broken_run(runs, "broken", kills, **keys)
    assert_equal(runs, "calm", "broken")


def test_steps_that_are_trained_twice_stand_in_the_metrics_once(runs: Runs) -> None:
    """L1: after kills that lose up to three steps each, beginning with one before any save."""
    keys = {"steps": 16, "checkpoint__every_steps": 4, "evaluate__every_steps": 2}
    runs.finish(runs.config("calm", **keys))
    config = runs.config("broken", **keys)
    lost = 0
    for step in (3, 8, 4, 8):  # of each start's own, before which it is killed
        run = runs.start(config, faults=[{"kind": "step", "step": step, "do": "SIGKILL"}])
        assert run.wait() == [-9, -9], run.output()
        recorded = list(losses(runs.path("broken")))
        assert recorded == list(range(1, len(recorded) + 1))
        saved = steps_saved(runs.checkpoints("broken"))
        lost += len(recorded) - max(saved, default=0)
    assert lost >= 6
    runs.finish(config)
    for name in ("loss", "valid_loss"):
        found, calm = (
            [
                (r["step"], r[name])
                for r in read_metrics(runs.path(n) / "metrics.jsonl")
                if name in r
            ]
            for n in ("broken", "calm")
        )
        assert found == calm


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("keys", variants())
def test_a_run_killed_once_at_each_step(runs: Runs, keys: dict) -> None:
    """Forty runs, each killed or stopped at one of the first twenty steps, and some again later."""
    runs.finish(runs.config("calm", steps=STEPS, **keys))
    chance = random.Random(0)
    for step in range(1, 21):
        for way in ("SIGKILL", "SIGTERM"):
            name = f"{way}{step}"
            kills = [(step, way)]
            if chance.random() < 0.5:
                kills.append((chance.randint(1, 10), chance.choice(["SIGKILL", "SIGTERM"])))
            broken_run(runs, name, kills, **keys)
            assert_equal(runs, "calm", name)
