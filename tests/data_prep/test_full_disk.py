"""A disk that fills up: one clear line, the earlier data holds, and the same command goes on."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep import manifest
from data_prep.verify import verify_directory
from tests.data_prep.samples import contents, make_texts, write_jsonl
from tests.data_prep.test_executors import ROOT, write_config


def run_with_files_of(config: Path, size: int) -> subprocess.CompletedProcess:
    """A limit on the size of files gives what a full disk gives: writes that fail.

    No bytecode is written: Python would cut it at the limit, and nobody could import it later.
    """
    return subprocess.run(
        [sys.executable, "-m", "data_prep", "run", str(config)],
        cwd=ROOT,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_one_line_and_the_run_goes_on(tmp_path, workers):
    write_jsonl(tmp_path / "x.jsonl", [*make_texts(300), " ".join(make_texts(2000))])
    rules = {"workers": workers, "dedup__exact": True}
    config = write_config(tmp_path, "out", **rules)
    done = run_with_files_of(config, 24_000)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "File too large" in last
    assert "run the same command again" in last
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out/manifest.json").exists()
    assert run_with_files_of(config, resource.RLIM_INFINITY).returncode == 0
    assert run_with_files_of(write_config(tmp_path, "calm", **rules), -1).returncode == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "calm")


def test_a_disk_that_is_full_before_the_first_task_is_one_line_too(tmp_path):
    write_jsonl(tmp_path / "x.jsonl", make_texts(300))
    done = run_with_files_of(write_config(tmp_path, "out"), 100)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "cannot be written: File too large" in done.stderr


def test_a_full_disk_leaves_what_was_there(tmp_path):
    write_jsonl(tmp_path / "x.jsonl", make_texts(200))
    config = write_config(tmp_path, "out")
    assert run_with_files_of(config, -1).returncode == 0
    before = contents(tmp_path / "out")
    write_jsonl(tmp_path / "y.jsonl", [" ".join(make_texts(3000))])
    text = config.read_text().replace("x.jsonl", "*.jsonl")
    config.write_text(text)
    assert run_with_files_of(config, 24_000).returncode == 1
    assert before.items() <= contents(tmp_path / "out").items()
    assert verify_directory(tmp_path / "out") == []
    assert manifest.load(tmp_path / "out").documents == 200
    assert run_with_files_of(config, -1).returncode == 0
    assert manifest.load(tmp_path / "out").documents == 201
