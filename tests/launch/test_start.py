"""Every launcher reaches the same entry with the same arguments."""

import contextlib
import os
import random
import shutil
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from tests.corpus import prepare_corpus
from tests.processes import ROOT, environment, free_port

SCRIPT = "launch/pretrain.sh"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("launch")
    data = prepare_corpus(root, documents=60)
    path = root / "run.yaml"
    path.write_text(
        f"run: {{dir: {root}/run}}\nmodel: {{preset: llama-tiny}}\n"
        f"data: {{train: {data}, seq_len: 16}}\nbatch: {{global_batch_size: 4}}\nsteps: 2\n"
        "precision: fp32\nevaluate: {every_steps: 0}\nlog: {tensorboard: false}\n"
    )
    return path


def start(*command: str, **extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=ROOT,
        env=environment(
            VENV=str(Path(shutil.which("python", path=environment()["PATH"])).parent.parent),
            **extra,
        ),
        capture_output=True,
        text=True,
        timeout=180,
    )


def test_deepspeed_with_two_ranks_trains(config: Path) -> None:
    command = ["deepspeed", "--num_gpus", "2", "--master_port", str(free_port())]
    done = start(*command, SCRIPT, str(config), "run.dir=" + str(config.parent / "two"))
    assert done.returncode == 0, done.stderr
    assert "2 × cpu" in done.stdout
    assert (config.parent / "two" / "checkpoints" / "step_00000002" / "MANIFEST.json").exists()


@pytest.mark.parametrize(
    "launcher",
    [
        ["deepspeed"],
        ["torchrun", "--standalone", "--nproc-per-node", "1"],
        ["bash"],
        ["python"],
    ],
    ids=lambda launcher: launcher[0],
)
def test_launchers_pass_the_arguments(config: Path, launcher: list[str]) -> None:
    port = ["--master_port", str(free_port())] if launcher == ["deepspeed"] else []
    done = start(*launcher, *port, SCRIPT, str(config), "steps=77", "--print-config")
    assert done.returncode == 0, done.stderr
    assert "steps: 77\n" in done.stdout


def test_a_bad_config_ends_every_launcher_with_2(config: Path) -> None:
    for launcher in (["bash"], ["deepspeed", "--master_port", str(free_port())]):
        done = start(*launcher, SCRIPT, str(config), "stepz=1")
        assert done.returncode == 2, (launcher, done.stdout, done.stderr)
        assert "did you mean steps" in done.stderr + done.stdout


def executable(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def free_job() -> int:
    """The number of a job whose port, 20000 beyond it, is free.

    Below those that the system hands out, so that nobody gets it meanwhile.
    """
    while True:
        number = random.randrange(1, 12768)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", 20000 + number))
            return number


def test_sbatch_runs_torchrun_on_every_node(config: Path, tmp_path: Path) -> None:
    """With stand-ins for Slurm's commands: the batch script is a copy, as slurmd makes it."""
    tools = tmp_path / "bin"
    tools.mkdir()
    executable(tools / "scontrol", '#!/bin/sh\nprintf "127.0.0.1\\nnode2\\n"\n')
    executable(
        tools / "srun",
        '#!/bin/sh\necho "srun $*"\nwhile [ "${1#--}" != "$1" ]; do shift; done\n'
        'SLURM_STEP_ID=0 exec "$@"\n',
    )
    spool = tmp_path / "job00017"
    spool.mkdir()
    copy = Path(shutil.copy(ROOT / SCRIPT, spool / "slurm_script"))
    done = start(
        "bash",
        str(copy),
        str(config),
        "steps=78",
        "--print-config",
        PATH=f"{tools}{os.pathsep}{environment()['PATH']}",
        SLURM_SUBMIT_DIR=str(ROOT),
        SLURM_JOB_ID=str(free_job()),
        SLURM_JOB_NODELIST="node[1-2]",
        SLURM_JOB_NUM_NODES="1",
    )
    assert done.returncode == 0, done.stderr
    assert "--nnodes 1 --nproc-per-node 1" in done.stdout
    assert "steps: 78\n" in done.stdout


@pytest.mark.parametrize("name", ["start.sh", "setup.sh", "demo.sh", "test.sh"])
def test_scripts_are_valid_bash(name: str) -> None:
    assert subprocess.run(["bash", "-n", str(ROOT / "launch" / name)]).returncode == 0


def test_start_scripts_are_valid_python_and_alike() -> None:
    texts = {}
    for stage in ("pretrain", "finetune"):
        text = (ROOT / "launch" / f"{stage}.sh").read_text()
        compile(text, f"{stage}.sh", "exec")
        texts[stage] = text.replace(stage, "STAGE")
    assert texts["pretrain"] == texts["finetune"]
