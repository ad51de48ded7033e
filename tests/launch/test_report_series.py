"""Long runs in constant memory: joined buckets keep the extremes, and short runs lose nothing."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from launch.report.axes import axis_of, log_axis, short
from launch.report.series import MOST, Curve
from tests.processes import ROOT, environment


def filled(values: np.ndarray, chunk: int) -> Curve:
    curve = Curve()
    steps = np.arange(1, len(values) + 1, dtype=float)
    rows = np.stack([steps, steps * 100, values], axis=1)
    for start in range(0, len(rows), chunk):
        curve.add_all(rows[start : start + chunk])
    return curve


@pytest.mark.parametrize("chunk", [1, 700, 100_000])
@pytest.mark.parametrize("count", [3, MOST, 2 * MOST - 1, 2 * MOST, 2 * MOST + 1, 54_321])
def test_buckets_are_those_of_numpy(count: int, chunk: int) -> None:
    if count > 20_000 and chunk == 1:
        count = 20_011  # the same, in a second
    values = np.random.default_rng(count).normal(size=count)
    points = filled(values, chunk).points()
    assert len(points.mean) <= 2 * MOST
    assert points.counts.sum() == count
    ends = np.cumsum(points.counts).astype(int)
    for place in {0, len(ends) // 2, len(ends) - 1}:
        held = values[ends[place] - int(points.counts[place]) : ends[place]]
        assert points.low[place] == held.min()
        assert points.high[place] == held.max()
        assert points.mean[place] == pytest.approx(held.mean())
        middle = (2 * ends[place] - len(held) + 1) / 2
        assert points.steps[place] == pytest.approx(middle)
        assert points.tokens[place] == pytest.approx(100 * middle)
    assert points.is_exact == (count < 2 * MOST)


def test_a_spike_of_one_step_stays_among_many() -> None:
    values = np.full(50_000, 3.0)
    values[33_333] = 40.0
    curve = filled(values, 4096)
    drawn = curve.points(300)
    assert len(drawn.mean) <= 300
    assert drawn.high.max() == 40.0
    assert (curve.high, curve.high_step) == (40.0, 33_334)
    assert drawn.mean.max() < 4


def test_what_is_not_finite_is_counted_and_left_out() -> None:
    curve = Curve()
    for step, value in enumerate([1.0, None, math.nan, math.inf, 2.0], start=1):
        curve.add(step, math.nan, value)
    assert (curve.count, curve.gaps, curve.gap_steps) == (2, 3, [2, 3, 4])
    assert (curve.first, curve.last, curve.low, curve.high) == (1.0, 2.0, 1.0, 2.0)
    assert Curve().points().mean.shape == (0,)


@pytest.mark.parametrize("size", [5, 4001])
def test_the_median_counts_values_and_not_buckets(size: int) -> None:
    values = np.arange(size, dtype=float)
    assert filled(values, 512).median == pytest.approx(np.median(values), abs=2)


def test_axes_have_round_numbers_and_room() -> None:
    axis = axis_of([5.2], [7.6], 0, 100)
    assert axis.ticks(6) == pytest.approx([5.5, 6, 6.5, 7, 7.5])
    assert axis_of([0.0], [10.0], 0, 1).low == 0  # no room below nothing
    assert axis_of([3.0], [3.0], 0, 1).low < 3 < axis_of([3.0], [3.0], 0, 1).high
    decades = log_axis([1e-5], [10.0], 100, 0)
    assert all(decades.low <= tick <= decades.high for tick in decades.ticks(5))
    (first, middle, none) = decades.at(np.array([1e-5, 1e-2, 0.0]))
    assert first > middle
    assert math.isnan(none)
    texts = [short(value) for value in (1.5e6, 300_000, 2e9, 0.002, 3e-5, 0, 5000, -20_000)]
    assert texts == ["1.5M", "300k", "2B", "0.002", "3e-5", "0", "5000", "-20k"]


@pytest.mark.slow
def test_a_million_records_make_a_small_page_in_little_memory(tmp_path: Path) -> None:
    line = (
        b'{"step":%d,"tokens_seen":%d,"loss":%.4f,"lr":0.001,"grad_norm":%.3f,"update_ratio":0.01,'
        b'"tokens_per_second":%.1f,"mfu":0.41,"mfu_causal":0.38,"memory_bytes":12345678901}\n'
    )
    noise = np.random.default_rng(0).random(1000)
    with (tmp_path / "metrics.jsonl").open("wb") as file:
        for start in range(0, 1_000_000, 1000):
            steps = range(start + 1, start + 1001)
            rows = zip(steps, noise.tolist(), strict=True)
            file.write(b"".join(line % (s, 512 * s, 3 + x, 1 + x, 9e3 + x) for s, x in rows))
        file.write(line % (1_000_001, 512_000_512, 99.0, 1.0, 9e3))
    # Not ru_maxrss, which begins with what the process that starts this one holds.
    code = (
        "import pathlib, re, sys; from launch.__main__ import main; "
        "status = main(['report', sys.argv[1]]); "
        "state = pathlib.Path('/proc/self/status').read_text(); "
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', state)[1]); sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 200 * 1024  # KiB; the file has 200 MB
    page = (tmp_path / "report.html").read_text()
    assert len(page) < 3_000_000
    assert "greatest 99 at step 1,000,001" in page
