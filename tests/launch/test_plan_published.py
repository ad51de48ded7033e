"""The comparison with published runs: data, statistics, and how good the model is held to be."""

import math
import random

import pytest
from scipy import stats

from launch.plan import compare
from launch.plan.published import GPUS, NOT_COMPARED, SHAPES, SOFTWARE, Run, runs
from model.flops import flops_per_token, parameters


@pytest.fixture(scope="module")
def found() -> list[compare.Compared]:
    return compare.compare_all()


def test_every_row_has_a_source_and_known_names() -> None:
    rows = list(runs())
    assert len(rows) > 150
    for run in rows:
        assert run.source
        assert run.model in SHAPES
        assert run.gpu in GPUS
        assert run.system in SOFTWARE
        assert run.tokens_per_second > 0
    assert len({run[:8] for run in rows}) == len(rows), "a row is there twice"
    assert all(NOT_COMPARED.values())


@pytest.mark.parametrize(
    ("model", "seq_len", "stated"),
    # NumParams of llm-foundry's table; its norms have weights only, and so have ours.
    [
        ("MPT-125m", 2048, 125_311_488),
        ("MPT-760m", 2048, 760_470_528),
        ("MPT-1b", 2048, 1_315_950_592),
        ("MPT-7b", 2048, 6_658_859_008),
        ("MPT-13b", 2048, 12_853_954_560),
        ("MPT-70b", 2048, 64_862_437_376),
    ],
)
def test_shapes_have_the_stated_parameters(model: str, seq_len: int, stated: int) -> None:
    """Up to 0.1 %: theirs learn as many positions as a row has tokens, and have some biases."""
    shape = SHAPES[model].model_copy(update={"max_seq_len": seq_len})
    assert parameters(shape) == pytest.approx(stated, rel=1e-3)


@pytest.mark.parametrize(
    ("model", "gpu", "seq_len", "speed", "stated"),
    [
        ("MPT-1b", "h100", 2048, 45_455, 0.4182),
        ("MPT-7b", "a100-80gb", 2048, 4_641, 0.6423),
        ("MPT-13b", "h100", 4096, 4_717, 0.416),
        ("GPT-2 124M", "a100-80gb", 1024, 218_453, 0.602),
    ],
)
def test_mfu_of_rows_is_the_stated_one(
    model: str, gpu: str, seq_len: int, speed: float, stated: float
) -> None:
    """Their formula: 6·N + 12·L·d·T, all parameters counted; ours leaves out position tables."""
    ours = flops_per_token(SHAPES[model], seq_len).full * speed / GPUS[gpu].peak["bf16"]
    assert ours == pytest.approx(stated, rel=0.01)


def test_rank_correlations_are_scipy_s() -> None:
    rng = random.Random(0)
    for size in (4, 10, 50):
        first = [rng.randint(0, 8) / 2 for _ in range(size)]  # with ties
        second = [round(value + rng.gauss(0, 1)) for value in first]
        assert compare.spearman(first, second) == pytest.approx(
            stats.spearmanr(first, second).statistic
        )
        assert compare.kendall(first, second) == pytest.approx(
            stats.kendalltau(first, second).statistic
        )
    assert compare.spearman([1, 1, 1], [1, 2, 3]) == compare.kendall([1, 1, 1], [1, 2, 3]) == 0.0


def test_errors_are_predicted_over_measured(found: list[compare.Compared]) -> None:
    for one in found:
        assert abs(one.error) < 0.5, "no digit is missing"
        assert one.error == pytest.approx(one.predicted / one.run.tokens_per_second - 1)
        ratio = one.predicted_mfu / one.measured_mfu
        assert ratio == pytest.approx(one.predicted / one.run.tokens_per_second)


def test_the_order_of_published_runs_is_right(found: list[compare.Compared]) -> None:
    """What the model claims: on runs that set none of its constants too."""
    groups = {group.name: group for group in compare.groups(found)}
    for name, least in (("all", 0.9), ("held out", 0.9), ("held out, not llm-foundry", 0.85)):
        assert (groups[name].spearman or 0) > least, name
        assert (groups[name].spearman_speed or 0) > 0.98
    for gpu in ("h100", "a100-80gb", "a100-40gb"):
        assert (groups[f"on {gpu}"].spearman or 0) > 0.8
        assert (groups[f"on {gpu}"].kendall or 0) > 0.6
    assert groups["held out"].mean_error < 0.07
    assert abs(groups["held out"].bias) < 0.03
    assert groups["held out"].runs > 2 * groups["calibrated on"].runs


def test_the_interval_holds_most_held_out_runs(found: list[compare.Compared]) -> None:
    from launch.estimate.step_time import FASTEST, SLOWEST

    held_out = [one for one in found if not one.run.is_calibrated]
    # A step takes predicted ÷ measured times as long as predicted.
    inside = [FASTEST <= 1 + one.error <= SLOWEST for one in held_out]
    assert sum(inside) / len(inside) > 0.9


def test_groups_that_are_too_small_have_no_order(found: list[compare.Compared]) -> None:
    groups = {group.name: group for group in compare.groups(found)}
    assert groups["on v100-32"].runs < compare.LEAST
    assert groups["on v100-32"].spearman is None


def test_the_constants_were_set_by_the_rows_that_say_so() -> None:
    """A100's and H100's rates sit where the mean error of their calibration rows is least."""
    chosen = [run for run in runs() if run.is_calibrated and run.gpus == 8]
    assert {run.gpu for run in chosen} == {"h100", "a100-80gb"}
    for gpu in ("h100", "a100-80gb"):
        errors = [math.log1p(compare.compare(run).error) for run in chosen if run.gpu == gpu]
        errors.sort()
        assert abs(errors[len(errors) // 2]) < 0.03, gpu


def test_tables_print_every_row(found: list[compare.Compared]) -> None:
    text = compare.tables(found)
    for run in (one.run for one in found):
        assert sum(f"{run.system}, {run.model}, {run.gpus} × {run.gpu}" in line for line in text)
    assert any(line.startswith("held out, not llm-foundry") for line in text)
    assert "not compared:" in text


def test_records_are_plain(found: list[compare.Compared]) -> None:
    import json

    records = json.loads(json.dumps(compare.as_records(found)))
    assert records[0]["system"] == "llm-foundry"
    assert {"tokens_per_second", "predicted_tokens_per_second", "error"} <= set(records[0])
    assert isinstance(next(runs()), Run)
