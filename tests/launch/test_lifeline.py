"""A host whose supervisor has gone, hurries or falls silent stops its ranks."""

import os

import pytest

from launch.cluster import lifeline
from launch.cluster.lifeline import BEAT, HURRY, Lifeline


class Line:
    """A lifeline, our end of it, and a clock that a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(lifeline.time, "monotonic", lambda: self.now)
        reading, self.writing = os.pipe()
        self.end = Lifeline(reading)

    def hears(self, word: bytes) -> int:
        os.write(self.writing, word)
        return self.end.requests()


def test_the_end_of_the_input_asks_once(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line(monkeypatch)
    assert line.hears(BEAT) == 0
    os.close(line.writing)
    assert [line.end.requests() for _ in range(3)] == [1, 0, 0]
    line.now += 10_000  # saves may take long
    assert line.end.requests() == 0


def test_in_a_hurry_it_asks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line(monkeypatch)
    assert line.hears(HURRY) == 0
    os.close(line.writing)
    assert line.end.requests() == 1
    line.now += lifeline.HURRY_S + 1
    assert [line.end.requests() for _ in range(2)] == [1, 0]


def test_what_was_said_before_the_end_is_heard_first(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line(monkeypatch)
    os.write(line.writing, BEAT + HURRY)
    os.close(line.writing)
    assert [line.end.requests() for _ in range(3)] == [0, 1, 0]


def test_silence_is_an_end_once_there_were_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line(monkeypatch)
    line.now += 10_000  # whoever starts a supervisor without beats
    assert line.end.requests() == 0
    assert line.hears(BEAT) == 0
    line.now += lifeline.SILENCE_S - 1
    assert line.end.requests() == 0
    line.now += 2
    assert [line.end.requests() for _ in range(2)] == [1, 0]


def test_without_a_line_nothing_is_asked() -> None:
    assert Lifeline(None).requests() == 0
