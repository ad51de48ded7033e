"""Files that are whole or absent, hostile inputs, and memory."""

import random
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from data_prep.atomic import remove_leftovers
from data_prep.dedup import (
    DedupConfig,
    Job,
    SignatureWriter,
    duplicates,
    is_signed,
    records,
    stages,
)
from data_prep.dedup.records import BAND, Spool, key_range, load
from data_prep.dedup.words import split_words
from runtime.errors import UserError
from tests.architecture.source import ROOT
from tests.data_prep.dedup.made import corpus, cut, decide, deduplicated, sign
from tests.processes import environment

EVERY = DedupConfig.model_validate({"exact": True, "near": True, "paragraphs": True})


def visible(directory: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in directory.iterdir() if p.name[0] != "."}


def test_spilled_records_are_sorted_too(tmp_path: Path, monkeypatch) -> None:
    rng = np.random.default_rng(0)
    made = np.zeros(5000, BAND)
    made["key"] = rng.integers(0, 1 << 64, 5000, dtype=np.uint64)
    made["key"][::3] = made["key"][0]
    made["document"] = rng.permutation(5000)
    for limit in (1 << 20, 9000):
        monkeypatch.setattr(records, "_IN_MEMORY", limit)
        with Spool(tmp_path / "x", BAND) as spool:
            for part in np.array_split(made, 37):
                spool.add(part)
            spool.finish()
        assert (np.fromfile(tmp_path / "x", BAND) == np.sort(made, order=list(BAND.names))).all()
        assert [path.name for path in tmp_path.iterdir()] == ["x"]
    for partitions in (1, 2, 3, 7):
        ranges = [key_range(p, partitions) for p in range(partitions)]
        assert ranges[0][0] == 0
        assert ranges[-1][1] == 1 << 64
        parts = [load(tmp_path / "x", BAND, "key", low, high) for low, high in ranges]
        assert (np.concatenate(parts) == np.fromfile(tmp_path / "x", BAND)).all()


def test_a_unit_counts_when_it_is_finished(tmp_path: Path) -> None:
    assert not is_signed(tmp_path, 0, EVERY)
    with SignatureWriter(tmp_path, 0, EVERY) as writer:
        writer.add("some text")
    assert not list(tmp_path.iterdir())
    sign(tmp_path, [["some text"]], EVERY)
    assert is_signed(tmp_path, 0, EVERY)
    assert not is_signed(tmp_path, 0, DedupConfig(exact=True))
    other = EVERY.model_copy(update={"near": EVERY.near.model_copy(update={"rows": 6})})
    assert not is_signed(tmp_path, 0, other)
    stricter = EVERY.near.model_copy(update={"min_similarity": 0.9})
    assert is_signed(tmp_path, 0, EVERY.model_copy(update={"near": stricter}))
    (tmp_path / "unit_00000.bands").write_bytes(b"")
    assert not is_signed(tmp_path, 0, EVERY)
    with pytest.raises(UserError, match="unit 0"):
        duplicates(tmp_path, 0)


CHILD = """
import sys
from pathlib import Path
from data_prep.dedup import is_signed
from tests.data_prep.dedup import made, test_files
from tests.data_prep.dying import die_at
directory = Path(sys.argv[1])
units = made.cut(made.corpus(80), [20])
die_at(int(sys.argv[2]))
for unit in range(len(units)):
    if not is_signed(directory, unit, test_files.EVERY):
        made.sign(directory, units[: unit + 1], test_files.EVERY, unit)
test_files.decide_again(directory, len(units))
"""


def decide_again(directory: Path, units: int) -> None:
    decide(directory, EVERY, units)


def test_killed_at_any_moment_the_result_is_the_same(tmp_path: Path) -> None:
    units = cut(corpus(80), [20])
    wanted = deduplicated(tmp_path / "undisturbed", units, EVERY)
    directory = tmp_path / "killed"
    directory.mkdir()
    rng = random.Random(0)
    killed = 0
    for _ in range(200):
        words = [sys.executable, "-c", CHILD, str(directory), str(rng.randint(1, 12))]
        status = subprocess.run(words, env=environment(), cwd=ROOT).returncode
        remove_leftovers(directory)
        if (directory / "match_00000_00004").exists():
            remove_leftovers(directory / "match_00000_00004")
        if status != -signal.SIGKILL:
            break
        killed += 1
    assert status == 0
    assert killed >= 3
    assert visible(directory) == visible(tmp_path / "undisturbed")
    assert [duplicates(directory, unit) for unit in range(4)] == wanted


def test_going_on_does_nothing_twice(tmp_path: Path) -> None:
    units = cut(corpus(60), [20])
    sign(tmp_path, units, EVERY)
    steps = stages(Job(tmp_path, 3, EVERY))
    for stage in steps:
        for number in stage.numbers:
            stage.task(number)
        before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
        for number in stage.numbers:
            stage.task(number)
        assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    assert not list(tmp_path.glob("match*"))
    assert not list(stages(Job(tmp_path, 3, EVERY)))


def test_hostile_texts_take_no_longer(tmp_path: Path) -> None:
    word, spaces = "word " * 300_000, " " * 500_000
    texts = [word, word + "end", "x" * 1_000_000, spaces, "\n" * 300_000 + "a", "\n \n" * 100_000]
    same = ["the same text of ten words that everyone has here"] * 20_000
    start = time.process_time()
    found = deduplicated(tmp_path / "a", [texts, same], EVERY)
    seconds = time.process_time() - start
    # Its one shingle more is half of all its shingles: not near, for all their length.
    assert set(found[0].documents) == {5}
    assert set(found[1].documents) == set(range(1, 20_000))
    assert all(d.document == 0 for d in found[1].documents.values())
    start = time.process_time()
    deduplicated(tmp_path / "b", [texts, same * 2], EVERY)
    assert time.process_time() - start < 5 * seconds + 1  # quadratic would add far more


def test_memory_does_not_grow_with_the_units(tmp_path: Path, monkeypatch) -> None:
    """Three times the documents, the same peak: what is held is a batch and a partition."""
    monkeypatch.setattr(records, "_IN_MEMORY", 1 << 16)
    monkeypatch.setattr("data_prep.dedup.job.PARTITION_BYTES", 1 << 16)
    monkeypatch.setattr("data_prep.dedup.signatures._BATCH_CHARACTERS", 1 << 14)
    peaks = []
    split_words("x")  # tables are made once
    for units in (4, 12):
        rng = random.Random(0)
        made = [
            [" ".join(f"w{rng.randrange(10**6)}" for _ in range(8)) for _ in range(800)]
            for _ in range(units)
        ]
        tracemalloc.start()
        deduplicated(tmp_path / str(units), made, EVERY)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]  # three times, were it all held
    assert peaks[1] < 12 << 20
