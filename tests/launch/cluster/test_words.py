"""Commands print what they would run, and what is printed runs: with every word as it was."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launch.__main__ import main
from launch.cluster import local
from launch.cluster.local import visible_gpus
from launch.cluster.printing import CommandLine, quoted
from runtime.errors import UserError
from tests.corpus import prepare_corpus
from tests.processes import ROOT, environment, free_port
from tests.security.test_hosts import WORDS
from tests.tiny_run import write_config

SHOW = "import json, os, sys; print(json.dumps([sys.argv[1:], os.environ.get('NCCL_TEST')]))"


@pytest.mark.parametrize("word", WORDS)
def test_what_is_printed_runs_as_it_was(tmp_path: Path, word: str) -> None:
    command = CommandLine([sys.executable, "-c", SHOW, "--option", word, word], {"NCCL_TEST": word})
    text = command.text()
    assert all(ch.isprintable() or ch == "\n" for ch in text), "it would not reach a terminal whole"
    done = subprocess.run(
        ["bash", "-c", text],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [["--option", word, word], word]
    assert list(tmp_path.iterdir()) == []


def test_a_bad_byte_is_spelled() -> None:
    assert quoted(os.fsdecode(b"a\xff1'\\")) == "$'a\\xff1\\'\\\\'"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "$(touch x) 'y'\nz.yaml"
    changes = {"batch__micro_batch_size": 1}
    return write_config(path, tmp_path / "run", tmp_path / "corpus", **changes)


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """The words that a command would run, as bash splits them."""
    assert main(list(words)) == 0
    text = capsys.readouterr().out
    show = "import json, sys; print(json.dumps(sys.argv[1:]))"
    command = text[text.index(sys.executable) :].removeprefix(sys.executable)
    done = subprocess.run(
        ["bash", "-c", f'{sys.executable} -c "$SHOW" {command}'],
        env={"SHOW": show},
        capture_output=True,
        text=True,
        check=True,
    )
    found: list[str] = json.loads(done.stdout)
    return found


def test_torchrun_says_the_same_on_every_machine(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--nodes", "4", "--gpus-per-node", "2", "--rdzv-endpoint", "head:29401", "--print"]
    words = printed(capsys, "torchrun", *options, "--", str(config), "optim.lr=3e-4")
    assert words == [
        *("-m", "launch", "supervise", "--", sys.executable, "-m", "torch.distributed.run"),
        *("--nnodes", "4", "--nproc-per-node", "2", "--rdzv-id", "run", "--rdzv-backend", "c10d"),
        *("--rdzv-endpoint", "head:29401", str(ROOT / "launch/pretrain.sh"), str(config)),
        "optim.lr=3e-4",
    ]


def test_local_takes_what_is_here(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.cluster.local.visible_gpus", lambda: 0)
    script = [str(ROOT / "launch/pretrain.sh"), str(config)]
    assert printed(capsys, "local", "--print", "--", str(config))[4:] == [sys.executable, *script]
    words = printed(capsys, "local", "--ranks", "2", "--print", "--", str(config))
    runner = [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile="]
    assert words[4:11] == [*runner, "--master_addr", "127.0.0.1", "--master_port"]
    assert words[12:] == ["--num_gpus", "2", *script]
    monkeypatch.setattr("launch.cluster.local.visible_gpus", lambda: 2)
    assert printed(capsys, "local", "--print", "--", str(config))[12:] == script
    assert main(["local", "--ranks", "4", "--print", "--", str(config)]) == 2
    assert "4 ranks need as many GPUs and 2 are visible" in capsys.readouterr().err


def test_fewer_ranks_than_gpus_take_the_first_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.cluster.local.visible_gpus", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert local.start(["x.py"], 2).environment["CUDA_VISIBLE_DEVICES"] == "0,1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,5,3,1")
    assert local.start(["x.py"], 2).environment["CUDA_VISIBLE_DEVICES"] == "7,5"
    assert "CUDA_VISIBLE_DEVICES" not in local.start(["x.py"], 4).environment


def test_two_runs_of_a_machine_take_two_ports() -> None:
    with socket.socket() as first:
        # As the run does: what an earlier test has left in TIME_WAIT is not in the way of either.
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):  # or somebody else has it: just as well
            first.bind(("127.0.0.1", 29500))
            first.listen()
        assert local.free_port() != 29500


@pytest.mark.parametrize(
    ("chosen", "found"),
    [
        (None, 3),
        ("", 0),
        ("-1", 0),
        ("1", 1),
        ("0,2", 2),
        ("0,-1,2", 1),
        ("1,7,2", 1),
        ("GPU-8a,GPU-9b", 2),
    ],
)
def test_visible_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: str | None, found: int
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\nfor i in 0 1 2; do echo "GPU $i: H100 (UUID: x)"; done\n')
    tool.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if chosen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert visible_gpus() == found


def test_a_driver_that_hangs_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nexec sleep 60\n")
    tool.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr("launch.cluster.local._NVIDIA_SMI_S", 0.2)
    with pytest.raises(UserError, match="the driver hangs"):
        visible_gpus()


def test_what_cannot_be_started_is_one_line() -> None:
    """In a process of its own: a supervisor takes signals and orphans until it ends."""
    done = subprocess.run(
        [sys.executable, "-m", "launch", "supervise", "--", "no-such-program"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "'no-such-program' cannot be started: No such file" in done.stderr
    assert done.stderr.count("\n") == 1


def test_ssh_prints_no_escape_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path / "a\x1b[31m.yaml", tmp_path / "run", tmp_path / "corpus")
    hosts = tmp_path / "hosts"
    hosts.write_text("node1 slots=1\n")
    assert main(["ssh", "--hostfile", str(hosts), "--print", "--", str(config)]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert "\x1b" not in line
    done = subprocess.run(
        ["bash", "-c", f'ssh() {{ printf "%s" "${{@: -1}}"; }}; {line}'],
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(config) in done.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["slurm", "--sweep", "optim.lr=[]"], "--sweep: no values in"),
        (["torchrun", "--nodes", "4", "--gpus-per-node", "8"], "add --rdzv-endpoint HOST:29400"),
        (["torchrun", "--nodes", "0", "--gpus-per-node", "8"], "nodes: expected 1 to 16384"),
        (["torchrun", "--gpus-per-node", "-1"], "expected"),
        (["torchrun", "--gpus-per-node", "1", "--rdzv-endpoint", "$(id):1"], "not a host name"),
        (["torchrun", "--gpus-per-node", "1", "--rdzv-endpoint", "a:0"], "a port of 1 to 65535"),
        (["torchrun", "--gpus-per-node", "1", "--rdzv-endpoint", "a:x"], "a port of 1 to 65535"),
        (["torchrun", "--gpus-per-node", "3"], "8 is not divisible by micro_batch_size × ranks"),
        (["local", "--ranks", "two"], "ranks: expected 1 to 64"),
    ],
)
def test_mistakes_are_one_line(
    config: Path, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main([*words, "--print", "--", str(config)])
    except SystemExit as left:  # argparse
        status = int(left.code or 0)
    assert status == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["absent.yaml"], "cannot be read"),
        (["{config}", "stepz=1"], "did you mean steps"),
        (["{config}", "other.yaml"], "expected CONFIG key=value"),
        (["steps=1"], "give the config first"),
    ],
)
def test_the_config_is_read_before_anything_starts(
    config: Path, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.replace("{config}", str(config)) for word in words]
    assert main(["local", "--", *words]) == 2
    assert told in capsys.readouterr().err


def test_a_run_starts_as_printed(tmp_path: Path, config: Path) -> None:
    """Two ranks, from a folder that is not the source tree, to the mistake that only they see."""
    done = subprocess.run(
        [sys.executable, "-m", "launch", "local", "--ranks", "2", "--", str(config)],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert "data.train" in done.stderr


@pytest.mark.slow
def test_two_machines_meet_where_they_are_told(tmp_path: Path) -> None:
    """The line that is printed for every machine, run twice on this one."""
    corpus = prepare_corpus(tmp_path / "corpus", documents=60)
    changes: dict[str, Any] = {"steps": 4, "evaluate__every_steps": 0, "log__tensorboard": False}
    path = write_config(tmp_path / "c.yaml", tmp_path / "run", corpus, **changes)
    options = ["--nodes", "2", "--gpus-per-node", "1"]
    options += ["--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--print"]
    line = subprocess.run(
        [sys.executable, "-m", "launch", "torchrun", *options, "--", str(path)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    machines = [
        subprocess.Popen(
            ["bash", "-c", line],
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    outputs = [machine.communicate(timeout=200)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], outputs
    assert "2 × cpu" in "".join(outputs)
    assert (tmp_path / "run/checkpoints/step_00000004/MANIFEST.json").exists()
