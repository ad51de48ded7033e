import errno
import io
from pathlib import Path

import orjson
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from runtime.metrics import MetricsLog, Progress, Rate, duration, memory_bytes
from runtime.records import read_metrics


def test_records_and_tensorboard_hold_the_same(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, resume_step=0, tensorboard=True)
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


def test_a_resumed_run_has_each_step_once(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, resume_step=0, tensorboard=False)
    for step in range(1, 6):
        log.record(step, loss=float(step))
    log.close()
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 6, "lo')  # the crash
    log = MetricsLog(tmp_path, resume_step=3, tensorboard=False)
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
    block = torch.ones(16 << 20)  # 64 MiB
    assert memory_bytes(torch.device("cpu")) - before > 50 << 20
    del block


def test_what_a_full_disk_did_not_take_is_written_later_or_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = MetricsLog(tmp_path, resume_step=0, tensorboard=False)
    real, room = log._file, [30]

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

    monkeypatch.setattr(log, "_file", Disk())
    for step in range(1, 6):
        log.record(step, loss=1.0 / step)
    room[0] = 1000
    log.record(6, loss=0.1)
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    room[0] = 0
    log.record(7, loss=0.1)
    log.close()
    assert "the last 1 records are lost" in capsys.readouterr().err
