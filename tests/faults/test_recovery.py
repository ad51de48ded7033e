"""N1–N3, S1, L1: runs with bad steps, told from outside by what they write and end with."""

from pathlib import Path
from typing import Any

import pytest

from data_prep.loader import Loader
from runtime.checkpoint import list_checkpoints
from runtime.records import read_metrics
from tests.faults.injection import row_digests
from tests.faults.runs import Runs, last_digest, losses

SEQ_LEN = 48  # of short rows some are alike, and a fault would strike more of them
CONSTANT = {"schedule__kind": "constant"}  # a longer run begins as a shorter one


@pytest.fixture(autouse=True)
def rows_that_differ(runs: Runs) -> None:
    runs.defaults = {"data__seq_len": SEQ_LEN}


def loader_of(runs: Runs) -> Loader:
    return Loader([(str(runs.corpus), 1.0)], seq_len=SEQ_LEN, global_batch_size=8, seed=3)


def poison(runs: Runs, steps: list[int], what: str = "loss nan", **where: int) -> dict[str, Any]:
    """A fault that strikes with the data of these data steps."""
    loader = loader_of(runs)
    rows = [digest for step in steps for digest in row_digests(loader.batch(step)["input_ids"])]
    return {"kind": "poison", "rows": rows, "what": what, **where}


def events(run_dir: Path, *kinds: str) -> list[dict[str, Any]]:
    found = read_metrics(run_dir / "events.jsonl")
    return [event for event in found if not kinds or event["kind"] in kinds]


def steps_of(run_dir: Path) -> dict[int, dict[str, Any]]:
    return {r["step"]: r for r in read_metrics(run_dir / "metrics.jsonl") if "lr" in r}


@pytest.mark.parametrize(("stage", "what"), [(1, "loss nan"), (2, "gradient inf"), (3, "loss inf")])
def test_what_is_not_finite_on_one_rank_is_skipped_by_all(
    runs: Runs, stage: int, what: str
) -> None:
    config = runs.config("run", parallel__zero_stage=stage)
    output = runs.finish(config, faults=[poison(runs, [5, 6], what, rank=1)])
    records = steps_of(runs.path("run"))
    assert list(records) == list(range(1, 13))
    assert [s for s, r in records.items() if r.get("skipped")] == [6, 7]
    assert [records[s]["update_ratio"] for s in (6, 7)] == [0.0, 0.0]
    told = events(runs.path("run"), "not_finite")
    assert [(e["step"], e["kind"], e["action"], e["data_step"]) for e in told] == [
        (6, "not_finite", "skip", 5),
        (7, "not_finite", "skip", 6),
    ]
    assert all(e["documents"] for e in told)
    assert "step skipped, weights unchanged" in output


def test_after_some_in_a_row_the_run_goes_back_and_leaves_their_data_out(runs: Runs) -> None:
    config = runs.config("run", steps=16, health__max_skipped_steps=3, **CONSTANT)
    output = runs.finish(config, faults=[poison(runs, [9, 10, 11, 12], rank=1)])
    run_dir = runs.path("run")
    kinds = [e["kind"] for e in events(run_dir, "not_finite", "rollback")]
    assert kinds == [*["not_finite"] * 3, "rollback", "not_finite"]
    (back,) = events(run_dir, "rollback")
    assert (back["left_step"], back["step"], back["window"]) == (12, 8, [9, 12])
    assert "back from step 12" in output
    records = steps_of(run_dir)
    assert list(records) == list(range(1, 17))  # each step once
    assert [s for s, r in records.items() if r.get("skipped")] == [10]  # data step 12


def test_the_data_left_out_is_all_that_differs(runs: Runs) -> None:
    """After going back the run is to the bit one whose data never held the window."""
    keys: dict[str, Any] = {"steps": 10, "health__max_skipped_steps": 2, **CONSTANT}
    runs.finish(runs.config("bad", **keys), faults=[poison(runs, [4, 5])])
    # Data steps 4 and 5 are poisoned: steps 5 and 6 are skipped, and taken again with 6, 7, …
    rows = runs.directory / "rows"
    again = runs.config("again", **keys)
    runs.finish(again, "steps=4")
    faults = [poison(runs, [4, 5]), {"kind": "record_rows", "path": str(rows), "rank": 0}]
    runs.finish(again, faults=faults)
    loader = loader_of(runs)
    expected = [row_digests(loader.batch(s)["input_ids"])[:4] for s in (4, 5, 6, 7, 8, 9, 10, 11)]
    seen = [line.split()[2] for line in rows.read_text().splitlines()]
    assert seen == [digest for rows in expected for digest in rows]
    assert losses(runs.path("bad")) == losses(runs.path("again"))
    both = [last_digest(runs.checkpoints(name), 10) for name in ("bad", "again")]
    assert both[0] == both[1]


def test_a_run_killed_after_going_back_ends_as_the_one_that_was_not(runs: Runs) -> None:
    keys: dict[str, Any] = {"steps": 14, "health__max_skipped_steps": 2, **CONSTANT}
    bad = poison(runs, [5, 6])
    runs.finish(runs.config("whole", **keys), faults=[bad])
    config = runs.config("parts", **keys)
    for step in (8, 9, 3):  # steps of the process, which takes those before going back twice
        run = runs.start(config, faults=[bad, {"kind": "step", "do": "SIGKILL", "step": step}])
        run.wait_then_kill(patience_s=0.1)
    runs.finish(config, faults=[bad])
    assert losses(runs.path("parts")) == losses(runs.path("whole"))
    both = [last_digest(runs.checkpoints(name), 14) for name in ("whole", "parts")]
    assert both[0] == both[1]


def test_windows_of_two_roll_backs_to_one_checkpoint_are_both_left_out(runs: Runs) -> None:
    keys: dict[str, Any] = {"health__max_skipped_steps": 2, "checkpoint__every_steps": 8}
    config = runs.config("run", steps=16, **keys, **CONSTANT)
    runs.finish(config, faults=[poison(runs, [9, 10, 12, 13])])
    windows = [e["window"] for e in events(runs.path("run"), "rollback")]
    assert windows == [[9, 11], [12, 14]]
    assert list(steps_of(runs.path("run"))) == list(range(1, 17))


def test_nothing_is_saved_while_steps_are_skipped(runs: Runs) -> None:
    config = runs.config("run", steps=9, checkpoint__keep_last=0)
    runs.finish(config, faults=[poison(runs, [6, 7])])
    assert [info.step for info in list_checkpoints(runs.checkpoints("run"))] == [4, 9]


def test_a_run_that_goes_back_again_and_again_ends_with_a_line(runs: Runs) -> None:
    keys: dict[str, Any] = {"health__max_skipped_steps": 2, "health__max_rollbacks": 1}
    config = runs.config("run", steps=30, **keys)
    run = runs.start(config, faults=[poison(runs, list(range(5, 40)))])
    assert run.wait() == [1, 1]
    output = run.output()
    assert "training diverged, and the run has gone back 1 times (health.max_rollbacks)" in output
    assert "Traceback" not in output
    assert [info.step for info in list_checkpoints(runs.checkpoints("run"))] == [4]


@pytest.mark.parametrize("on_spike", ["log", "skip", "lower_lr", "rollback"])
def test_a_spike(runs: Runs, on_spike: str) -> None:
    keys: dict[str, Any] = {"health__on_spike": on_spike, "optim__lr": 1e-3, **CONSTANT}
    config = runs.config("run", steps=24, **keys)
    runs.finish(config, faults=[poison(runs, [21], "loss 10")])
    run_dir = runs.path("run")
    (event,) = events(run_dir, "spike")
    assert (event["data_step"], event["step"]) == (21, 22)
    records = steps_of(run_dir)
    assert list(records) == list(range(1, 25))
    skipped = [s for s, r in records.items() if r.get("skipped")]
    assert skipped == ([22] if on_spike in ("skip", "lower_lr") else [])
    assert records[24]["lr"] == (5e-4 if on_spike == "lower_lr" else 1e-3)
    windows = [e["window"] for e in events(run_dir, "rollback")]
    assert windows == ([[20, 22]] if on_spike == "rollback" else [])


@pytest.mark.parametrize("key", ["weight", "master"])
def test_a_bit_that_flips_on_one_rank_is_found_and_undone(runs: Runs, key: str) -> None:
    """Found at the next comparison, and the run ends as if it had not been."""
    keys: dict[str, Any] = {"health__checksum_every_steps": 1}
    runs.finish(runs.config("calm", **keys))
    assert events(runs.path("calm"), "drift") == []
    # Before step 7 begins: the forward pass and the update of that step are already damaged.
    fault = {"kind": "flip", "step": 7, "key": key, "rank": 1, "at": "comparison"}
    output = runs.finish(runs.config("flipped", **keys), faults=[fault])
    (event,) = events(runs.path("flipped"), "drift")
    assert (event["rank"], event["step"]) == (1, 6)
    assert "memory changed on its own: rank 1 differs" in output
    assert losses(runs.path("flipped")) == losses(runs.path("calm"))
    both = [last_digest(runs.checkpoints(name), 12) for name in ("flipped", "calm")]
    assert both[0] == both[1]


@pytest.mark.parametrize("key", ["weight", "exp_avg"])
def test_a_replica_that_drifts_is_named_within_the_interval(runs: Runs, key: str) -> None:
    """Of four copies under ZeRO-0, where nothing heals by itself."""
    keys: dict[str, Any] = {"health__checksum_every_steps": 4, "parallel__zero_stage": 0}
    config = runs.config("run", **keys)
    # The lowest bits of a weight may be rounded away by the next update.
    faults = [{"kind": "flip", "step": 6, "key": key, "bit": 12, "rank": 2}]
    runs.finish(config, ranks=4, faults=faults)
    (event,) = events(runs.path("run"), "drift")
    assert (event["rank"], event["step"]) == (2, 8)
    assert [e["step"] for e in events(runs.path("run"), "rollback")] == [4]


def test_a_slow_rank_is_named(runs: Runs) -> None:
    config = runs.config("run", steps=20)
    output = runs.finish(config, faults=[{"kind": "slow", "seconds": 0.1, "rank": 1}])
    (event,) = events(runs.path("run"), "slow_rank")
    assert event["rank"] == 1
    assert event["step"] <= 20
    assert "rank 1 is slow" in output
