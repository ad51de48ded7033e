"""A launcher that is stopped or killed leaves a saved run and no worker behind."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from runtime.checkpoint import newest_verified
from runtime.records import read_metrics
from tests.corpus import prepare_corpus
from tests.processes import ROOT, environment, free_port


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("signals")
    data = prepare_corpus(root, documents=60)
    path = root / "run.yaml"
    path.write_text(
        "model: {preset: null, family: llama, n_layers: 1, n_heads: 1, d_model: 8, "
        f"max_seq_len: 16}}\ndata: {{train: {data}, seq_len: 16}}\n"
        "batch: {global_batch_size: 4}\nsteps: 1000000\nprecision: fp32\n"
        "evaluate: {every_steps: 0}\nlog: {every_steps: 1, tensorboard: false}\n"
        "checkpoint: {every_steps: 0}\n"
    )
    return path


def workers_of(run_dir: Path) -> list[int]:
    """Pids of the ranks of a run, by the run directory on their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if f"run.dir={run_dir}".encode() in words and b"--local_rank" in b" ".join(words):
                found.append(int(entry.name))
    return found


def wait_for(condition, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_deepspeeds_launcher(config: Path, tmp_path: Path, number: int) -> None:
    """SIGTERM and SIGKILL end DeepSpeed's runner without a word to its workers; Ctrl-C reaches
    the whole group at once."""
    run_dir = tmp_path / "run"
    command = ["deepspeed", "--num_gpus", "2", "--master_port", str(free_port())]
    process = subprocess.Popen(
        [*command, "launch/pretrain.sh", str(config), f"run.dir={run_dir}"],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for(lambda: len(read_metrics(run_dir / "metrics.jsonl")) > 3)
        assert len(workers_of(run_dir)) >= 2
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        process.wait(timeout=60)
        wait_for(lambda: not workers_of(run_dir))
    finally:
        for pid in workers_of(run_dir):
            os.kill(pid, signal.SIGKILL)
    found = newest_verified(run_dir / "checkpoints")
    assert found is not None
    assert found.step == read_metrics(run_dir / "metrics.jsonl")[-1]["step"]
