"""What a person sees while data is prepared."""

import io
import re
import sys
import time

from data_prep import progress
from data_prep.progress import Progress
from data_prep.tally import SegmentReport, UnitReport


def report() -> UnitReport:
    segment = SegmentReport(
        source=0, start=0, end=9, records=1200, bad={"invalid_json": 2}, dropped={"c4/menu": 31}
    )
    return UnitReport(unit=0, segments=[segment])


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_bytes_documents_reasons_and_the_time_left(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    with Progress("tokenising", 40_000_000) as shown:
        shown.advance(10_000_000, report())
        for _ in range(3):  # a rate needs some time
            time.sleep(0.02)
            shown.advance(10_000)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    assert "10.0/40.0 MB" in text
    assert "1,200 documents, c4/menu 31, invalid_json 2" in text
    assert re.search(r"\d:\d\d:\d\d", text)


def test_elsewhere_a_line_now_and_then(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_PLAIN_EVERY_S", 0.0)
    with Progress("cleaning", 40_000_000) as shown:
        shown.advance(10_000_000, report())
    told = capsys.readouterr().err
    assert re.fullmatch(
        r"cleaning: 25 %, [\d,.]+ MB/s, 0:0\d left, 1,200 documents, c4/menu 31, invalid_json 2\n",
        told,
    )
