import os
import signal
import subprocess
import sys
import time

import pytest

from runtime.signals import StopRequest
from tests.processes import ROOT, environment

CODE = """
import sys, time
from runtime.signals import StopRequest
stop = StopRequest()
StopRequest.same_request_s = float(sys.argv[2])
print("ready", flush=True)
while not stop.check():
    time.sleep(0.01)
print(stop.reason, flush=True)
time.sleep(float(sys.argv[1]))
print("saved", flush=True)
"""


def start(saving_s: float, same_request_s: float) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, str(saving_s), str(same_request_s)],
        env=environment(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_arrives_twice_at_once_is_one_request(number: int) -> None:
    process = start(0.3, 60)
    process.send_signal(number)
    time.sleep(0.05)
    process.send_signal(number)
    assert process.communicate(timeout=20)[0] == f"{signal.Signals(number).name}\nsaved\n"
    assert process.returncode == 0


def test_another_signal_does_not_cut_the_save_short() -> None:
    process = start(1.0, 0.1)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=20)[0] == "SIGINT\nsaved\n"


def test_the_same_signal_later_ends_at_once() -> None:
    process = start(60, 0.5)
    assert process.stdout is not None
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "SIGTERM\n"  # the first was heard
    time.sleep(0.7)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=20)[0] == ""
    assert process.returncode == 75


def test_a_signal_while_a_request_takes_over_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    earlier, real = StopRequest(), signal.signal

    def late(number, handler):
        if number == signal.SIGTERM:
            signal.raise_signal(number)  # the last that the earlier one hears
        return real(number, handler)

    with monkeypatch.context() as patched:
        patched.setattr(signal, "signal", late)
        later = StopRequest()
    later.restore()
    earlier.restore()
    assert later.reason == "SIGTERM"


def test_handlers_are_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    stop = StopRequest()
    assert signal.getsignal(signal.SIGTERM) != before
    assert not stop.check()
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.check()
    assert stop.reason == "SIGTERM"
    stop.restore()
    assert signal.getsignal(signal.SIGTERM) == before
