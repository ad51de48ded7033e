"""B1: the same run again is the same to the last bit."""

from tests.faults.runs import Runs, last_digest, losses


def test_a_run_repeats_to_the_bit(runs: Runs) -> None:
    """Forty steps of two ranks, with dropout, accumulation and warm-up."""
    for name in ("first", "second"):
        runs.finish(runs.config(name, steps=40, checkpoint__every_steps=0))
    first, second = (losses(runs.path(name)) for name in ("first", "second"))
    assert list(first) == list(range(1, 41))
    assert first == second
    digests = [last_digest(runs.checkpoints(name), 40) for name in ("first", "second")]
    assert digests[0] == digests[1]
