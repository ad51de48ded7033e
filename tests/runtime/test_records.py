import errno
import io
from mmap import mmap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import orjson
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from runtime import progress
from runtime.metrics import Clock, MetricsLog, memory_bytes
from runtime.progress import Progress, Rate, duration
from runtime.records import keep_until, read_metrics
from runtime.sections import Log
from runtime.sinks import Histogram, open_sinks


def test_records_and_tensorboard_hold_the_same(tmp_path: Path) -> None:
    sinks = open_sinks(tmp_path, "run", Log(tensorboard=True), Log())
    log = MetricsLog(tmp_path, Clock(tmp_path, 1, "cpu"), resume_step=0, sinks=sinks)
    log.record(1, loss=2.5, mfu=None, note="text")
    log.record(2, loss=float("nan"))
    log.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {"step": 1, "loss": 2.5, "mfu": None, "note": "text"},
        {"step": 2, "loss": None},
    ]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["loss"]
    assert events.Scalars("loss")[0].value == 2.5


def test_what_has_no_step_is_dropped_and_never_ends_a_resume(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    strange = [{"step": step} for step in ("x", None, [], {}, 2**63)]
    records = [{"step": 1}, *strange, [], {"step": 2}, {"step": 3}]
    path.write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in records))
    keep_until(path, 2)
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]


def test_a_resumed_run_has_each_step_once(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, Clock(tmp_path, 1, "cpu"), resume_step=0)
    for step in range(1, 6):
        log.record(step, loss=float(step))
    log.close()
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 6, "lo')  # the crash
    log = MetricsLog(tmp_path, Clock(tmp_path, 1, "cpu"), resume_step=3)
    log.record(4, loss=40.0)
    log.close()
    lines = (tmp_path / "metrics.jsonl").read_bytes().splitlines()
    records = [orjson.loads(line) for line in lines]
    assert [(r["step"], r["loss"]) for r in records] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_stays_on_one_line_of_a_terminal() -> None:
    stream = Terminal()
    progress = Progress(2, stream=stream)
    progress.update(1, loss=1.5, lr=1e-4, mfu=None)
    progress.update(2, loss=1.25, lr=1e-4, mfu=None)
    assert stream.getvalue().count("\n") == 1
    assert "step 2/2  loss 1.25  lr 1.00e-04  mfu n/a" in stream.getvalue()


def test_progress_is_plain_and_sparse_elsewhere() -> None:
    stream = io.StringIO()
    progress = Progress(100, stream=stream, every_s=1000)
    for step in range(1, 101):
        progress.update(step, loss=1.0)
    assert stream.getvalue().splitlines() == ["step 1/100  loss 1", "step 100/100  loss 1"]


def test_rate_counts_only_what_was_added() -> None:
    rate = Rate()
    rate.add(1000)
    assert rate.read() > 0
    assert rate.read() == 0
    rate.add(1000)
    rate.pause_until_now()
    assert rate.read() == 0


def test_duration() -> None:
    assert [duration(s) for s in (3.4, 200, 7500)] == ["3 s", "3 min 20 s", "2 h 05 min"]


def test_memory_is_that_of_this_process() -> None:
    before = memory_bytes(torch.device("cpu"))
    # Straight from the system: a tensor may lie in what earlier tests left in the heap (heap.keep).
    with mmap(-1, 64 << 20) as block:
        block.write(bytes(64 << 20))
        assert memory_bytes(torch.device("cpu")) - before > 50 << 20


def test_what_a_full_disk_did_not_take_is_written_later_or_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = MetricsLog(tmp_path, Clock(tmp_path, 1, "cpu"), resume_step=0)
    real, room = log._metrics._file, [30]

    class Disk:
        """Takes so many bytes, then none."""

        def write(self, data: bytes) -> int:
            if not room[0]:
                raise OSError(errno.ENOSPC, "No space left on device")
            taken = data[: room[0]]
            room[0] -= len(taken)
            return real.write(taken)

        def close(self) -> None:
            real.close()

    monkeypatch.setattr(log._metrics, "_file", Disk())
    for step in range(1, 6):
        log.record(step, loss=1.0 / step)
    room[0] = 1000
    log.record(6, loss=0.1)
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    room[0] = 0
    log.record(7, loss=0.1)
    log.close()
    assert "the last 1 records are lost" in capsys.readouterr().err


def test_samples_are_rewound_with_the_metrics(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, Clock(tmp_path, 2, "cpu"), resume_step=0)
    assert not (tmp_path / "samples.jsonl").exists()
    for step in (2, 4, 6):
        log.record(step, loss=1.0)
        log.sample(step, "samples/0", prompt="a", text=f"at {step}")
    log.rewind(4)
    log.sample(6, "samples/0", prompt="a", text="again")
    log.close()
    samples = read_metrics(tmp_path / "samples.jsonl")
    assert [sample["text"] for sample in samples] == ["at 2", "at 4", "again"]
    assert [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [2, 4]
    assert len(read_metrics(tmp_path / "clock.jsonl")) == 2  # its start and its end


def test_lists_are_scalars_of_their_own_for_sinks(tmp_path: Path) -> None:
    sinks = open_sinks(tmp_path, "run", Log(), Log())
    log = MetricsLog(tmp_path, Clock(tmp_path, 1, "cpu"), resume_step=0, sinks=sinks)
    log.record(1, tokens_by_source=[30, 10])
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["tokens_by_source/0", "tokens_by_source/1"]


def test_the_waiting_share_is_that_of_the_time_between_readings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, waited = 50.0, 100.0
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: now))
    rate = Rate(lambda: waited)
    now, waited = 52.0, 100.5
    rate.read()
    assert rate.waiting == 0.25
    now = 53.0
    rate.read()
    assert rate.waiting == 0


def test_a_histogram_is_numpys() -> None:
    values = torch.cat((torch.randn(5000), torch.tensor([float("nan"), float("inf")])))
    found = Histogram.of(values.reshape(2, -1))
    finite = values[:5000].double().numpy()
    counts, edges = np.histogram(finite, bins=64)
    assert found.edges == pytest.approx(list(edges), rel=1e-9)
    assert sum(found.counts) == 5000
    assert np.abs(np.cumsum(found.counts) - np.cumsum(counts)).max() <= 1  # values on an edge
    assert found.sum_squares == pytest.approx(float((finite**2).sum()))
    assert Histogram.of(torch.full((3,), 2.0)) == ([2.0, 2.0], [3], 6.0, 12.0)
    assert Histogram.of(torch.tensor([float("nan")])).counts == [0]


def test_a_line_that_a_crash_cut_takes_no_other_with_it(tmp_path: Path) -> None:
    """clock.jsonl is never rewound, so that nobody else mends its end."""
    (tmp_path / "clock.jsonl").write_bytes(b'{"step":1,"time":5.0}\n{"step":3,"ti')
    Clock(tmp_path, 1, "cpu").tick(7)
    first, second = read_metrics(tmp_path / "clock.jsonl")
    assert (first["step"], second["step"]) == (1, 7)
