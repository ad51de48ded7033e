"""The scaling benchmark: which runs there are, what they amount to, and one that is real."""

import json
from pathlib import Path
from typing import Any

import pytest

from launch.report.efficiency_chart import efficiency_chart
from launch.scaling import results
from launch.scaling.command import main
from launch.scaling.results import Measured
from launch.scaling.runs import WARM_UP, Case, Plan, cases, launcher, measure, modes, settings
from runtime.checks import check_batch
from runtime.errors import UserError

RANKS, PER_RANK = [1, 2, 4], 4


@pytest.fixture(autouse=True)
def _no_orphans_for_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command ends soon after it has asked for them; the process of the tests goes on."""
    monkeypatch.setattr("launch.leftovers.adopt_orphans", lambda: None)


def plan(tmp_path: Path, **changes: Any) -> Plan:
    given: dict[str, Any] = {
        "data": tmp_path / "shards",
        "output": tmp_path,
        "steps": 5,
        "seq_len": 64,
        "precision": "fp32",
        "threads": 1,
        "launcher": "",
        "timeout_s": 60,
    }
    return Plan(**{**given, **changes})


def measured(case: Case, step_s: float, inside_s: float) -> Measured:
    """What ranks tell whose first steps are slow, and are not counted."""
    slow = [9.0] * WARM_UP
    rank = {
        "seconds": [*slow, step_s, step_s, 5 * step_s],
        "communication_s": [*slow, inside_s, inside_s, inside_s],
        "memory_bytes": 100 * case.ranks,
    }
    return Measured(case, modes(case, RANKS, PER_RANK), [[rank] * case.ranks] * 2)


def test_a_point_on_both_curves_is_run_once() -> None:
    todo = list(cases(["llama-tiny"], [1, 3], RANKS, PER_RANK))
    assert len(todo) == len(set(todo)) == 2 * 5
    curves = {(c.ranks, c.sequences): modes(c, RANKS, PER_RANK) for c in todo if c.stage == 1}
    assert curves == {
        (1, 4): ["weak"],
        (1, 16): ["strong"],
        (2, 8): ["weak"],
        (2, 16): ["strong"],
        (4, 16): ["weak", "strong"],
    }


def test_medians_efficiencies_and_shares() -> None:
    """Two ranks at 1.25 times the time of one for twice the tokens: 80 %."""
    found = [
        measured(Case("llama-tiny", 1, 1, 4, 4), 0.4, 0.0),
        measured(Case("llama-tiny", 1, 2, 8, 4), 0.5, 0.1),
    ]
    one, two = results.points(found, seq_len=100)
    assert (one.step_s, one.tokens_per_second, one.efficiency) == (0.4, 1000, 1)
    assert two.tokens_per_second == pytest.approx(1600)
    assert two.efficiency == pytest.approx(0.8)
    assert two.communication == pytest.approx(0.2)
    assert two.memory_bytes == 200
    assert (
        "| weak | llama-tiny | 1 | 2 | 8 | 500.0 ms | 0 % | 1,600 | 80 % | 20 % |"
        in results.table([two])
    )
    drawn = efficiency_chart([one, two])
    assert drawn.startswith("<svg")
    assert "ZeRO-1 weak" in drawn


def test_two_results_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = Case("llama-tiny", 1, 1, 4, 4)
    for name, step_s in (("a", 0.4), ("b", 0.2)):
        about = {"machine": {"cpu": name, "cores": 2}}
        results.write(tmp_path / name, about, [measured(case, step_s, 0.1)], 100)
    assert main(["--compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    told = capsys.readouterr().out
    assert "machine.cpu: A a, B b" in told
    assert "cores" not in told, "what is equal is not told"
    assert "| weak | llama-tiny | 1 | 1 | 1,000 | 2,000 | 2.00 |" in told
    (tmp_path / "b").write_text("{}")
    with pytest.raises(UserError, match="no result of a scaling benchmark"):
        main(["--compare", str(tmp_path / "a"), str(tmp_path / "b")])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--ranks", "0"], "--ranks 0: expected numbers from 1"),
        (["--ranks", "two"], "--ranks two"),
        (["--zero", "4"], "--zero 4: expected numbers from 0 to 3"),
        (["--zero", "0"], "write --precision fp32"),
        (["--models", "llama-tny"], "no preset; known: "),
        (["--models", "llama-tiny+d_model"], "PRESET+key=value"),
        (["--models", "llama-tiny+../x=1"], "PRESET+key=value"),
        (["--steps", "0"], "--steps 0"),
        (["--vocab", "1"], "--vocab 1"),
    ],
)
def test_bad_words_are_refused_before_anything_runs(
    options: list[str], told: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as refused:
        main([*options, "--output", str(tmp_path / "out")])
    assert told in str(refused.value)
    assert refused.value.status == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("ranks", "batch"), [((2, 3), 4), ((1, 4, 6), 4), ((1, 2, 8), 3)])
def test_every_case_is_one_that_the_run_accepts(ranks: tuple[int, ...], batch: int) -> None:
    found = list(cases(["llama-tiny"], [1], ranks, batch))
    assert {case.ranks for case in found} == set(ranks)
    for case in found:
        assert not list(check_batch(case.sequences, case.micro_batch_size, case.ranks))


def test_a_launcher_gets_the_number_of_ranks(tmp_path: Path) -> None:
    case = Case("llama-tiny", 1, 2, 8, 4)
    told = launcher(
        case, plan(tmp_path, launcher="mpirun -n {ranks} --hostfile 'my hosts' python3")
    ).words
    assert told == ["mpirun", "-n", "2", "--hostfile", "my hosts", "python3"]
    config = settings(case, plan(tmp_path), tmp_path / "run")
    assert config["batch"] == {"global_batch_size": 8, "micro_batch_size": 4}


def test_a_launcher_that_is_not_there_or_fails_is_a_line(tmp_path: Path) -> None:
    case = Case("llama-tiny", 1, 1, 4, 4)
    with pytest.raises(UserError, match="no-such-launcher: no such launcher"):
        measure(case, plan(tmp_path, launcher="no-such-launcher"), 0)
    with pytest.raises(UserError, match="status 1, 0 of 1 ranks measured"):
        measure(case, plan(tmp_path, launcher="false"), 1)


@pytest.mark.slow
def test_two_ranks_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A real run: its collectives are counted, and take some of each step but not all of it."""
    out = tmp_path / "out"
    options = ["--ranks", "2", "--zero", "3", "--models", "llama-tiny+n_layers=1", "--vocab", "64"]
    options += ["--steps", "4", "--seq-len", "32", "--batch", "2", "--output", str(out)]
    assert main(options) == 0
    content = json.loads((out / "scaling.json").read_text())
    (point,) = [p for p in content["points"] if p["mode"] == "weak"]
    assert 0 < point["communication"] < 1
    assert point["tokens_per_second"] == pytest.approx(2 * 2 * 32 / point["step_s"])
    ranks = content["runs"][0]["turns"][0]
    assert [rank["rank"] for rank in ranks] == [0, 1]
    for rank in ranks:
        assert len(rank["seconds"]) == WARM_UP + 4
        # Gathering, scattering and agreeing: every step the same calls.
        assert len(set(rank["calls"][WARM_UP:])) == 1
        assert rank["calls"][WARM_UP] > 10
        assert rank["threads"] == 1
    assert content["versions"]["torch"]
    assert "communication" in capsys.readouterr().out
    with pytest.raises(UserError, match="holds a measurement already"):
        main(options)
