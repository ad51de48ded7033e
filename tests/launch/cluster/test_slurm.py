"""What is submitted to Slurm, and when a job is queued again; with stand-ins for its programs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from launch.__main__ import main
from launch.cluster import sweep
from launch.cluster.slurm_job import MAX_IDLE_STOPS, Job
from runtime.errors import UserError
from tests.processes import ROOT, environment
from tests.tiny_run import write_config

SCRIPT = str(ROOT / "launch/pretrain.sh")
# Each keeps its words. `srun` ends as it is told, after a checkpoint where it is told to make one.
PROGRAM = """\
#!{python}
import json, os, signal, sys
name, words = os.path.basename(sys.argv[0]), sys.argv[1:]
with open({folder!r} + "/called", "a") as file:
    file.write(json.dumps([name, *words]) + "\\n")
if name == "sbatch":
    print(sum(1 for _ in open({folder!r} + "/called")) + 100)
elif words[:2] == ["show", "job"]:
    print(os.environ["JOB"])
elif words[:2] == ["show", "hostnames"]:
    print("node1\\nnode2")
elif name == "srun":
    if step := os.environ.get("SAVES"):
        os.makedirs({folder!r} + "/run/checkpoints/step_" + step.zfill(8))
    if os.environ.get("WAITS"):
        # Blocked, not handled: what comes just before a sleep is handled only after it.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        print("waiting", flush=True)
        if signal.sigtimedwait([signal.SIGUSR1], 60):
            sys.exit(75)
    sys.exit(int(os.environ["STATUS"]))
"""


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sbatch", "scontrol", "srun"):
        path = folder / name
        path.write_text(PROGRAM.format(python=sys.executable, folder=str(tmp_path)))
        path.chmod(0o700)
    return folder


def called(tmp_path: Path, name: str) -> list[list[str]]:
    path = tmp_path / "called"
    lines = path.read_text().splitlines() if path.exists() else []
    return [words for first, *words in map(json.loads, lines) if first == name]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(
        tmp_path / "it's $(x).yaml",
        tmp_path / "run",
        tmp_path / "corpus",
        batch__micro_batch_size=1,
    )


def batch_job(
    tmp_path: Path, programs: Path, *arguments: str, **extra: str
) -> subprocess.Popen[str]:
    """The batch script as slurmd starts it."""
    variables = {
        "PATH": f"{programs}{os.pathsep}{environment()['PATH']}",
        "SLURM_JOB_ID": "17",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "JOB": "JobId=17 JobState=RUNNING Reason=None\n Requeue=1 Restarts=0 BatchFlag=1",
        "STATUS": "0",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "launch.cluster.start", SCRIPT, *arguments],
        cwd=tmp_path,
        env={**environment(**variables), **extra},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("status", "job", "again", "told"),
    [
        (0, {}, False, ""),
        (2, {}, False, ""),
        (1, {}, False, ""),
        (137, {}, False, ""),
        (75, {}, True, "stopped at step -1; job 17 is queued again"),
        (143, {}, True, "queued again"),
        (138, {}, True, "queued again"),
        (75, {"JobState": "CANCELLED"}, False, "not queued again: it is CANCELLED"),
        (75, {"JobState": "TIMEOUT"}, False, "it is TIMEOUT"),
        (75, {"Requeue": "0"}, False, "submitted with --no-requeue"),
        (75, {"BatchFlag": "0"}, False, "it is no batch job"),
    ],
)
def test_when_a_job_is_queued_again(
    tmp_path: Path,
    programs: Path,
    config: Path,
    status: int,
    job: dict[str, str],
    again: bool,
    told: str,
) -> None:
    shown = {"JobState": "RUNNING", "Requeue": "1", "BatchFlag": "1", **job}
    text = " ".join(f"{key}={value}" for key, value in shown.items())
    process = batch_job(tmp_path, programs, str(config), STATUS=str(status), JOB=text)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == status
    assert (["requeue", "17"] in called(tmp_path, "scontrol")) == again
    assert told in errors


def test_a_signal_to_the_batch_script_alone_reaches_the_ranks(
    tmp_path: Path, programs: Path, config: Path
) -> None:
    """srun would abort the step at SIGTERM; it passes SIGUSR1 on."""
    process = batch_job(tmp_path, programs, str(config), WAITS="1")
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 75
    assert ["requeue", "17"] in called(tmp_path, "scontrol")


def test_a_job_that_never_gets_on_is_not_queued_forever(
    tmp_path: Path, programs: Path, config: Path
) -> None:
    (tmp_path / "run").mkdir()
    saves = ["1", "2", *[""] * (MAX_IDLE_STOPS + 1)]
    for number, step in enumerate(saves):
        process = batch_job(
            tmp_path,
            programs,
            str(config),
            STATUS="75",
            SAVES=step,
            SLURM_RESTART_COUNT=str(number),
        )
        errors = process.communicate(timeout=60)[1]
        assert ("is queued again" in errors) == (number < len(saves) - 1), (number, errors)
    assert f"stopped {MAX_IDLE_STOPS} times in a row without a new checkpoint" in errors


def test_a_job_that_never_comes_to_its_first_step(
    tmp_path: Path, programs: Path, config: Path
) -> None:
    for restarts, again in ((MAX_IDLE_STOPS - 1, True), (MAX_IDLE_STOPS, False)):
        count = str(restarts)
        process = batch_job(tmp_path, programs, str(config), STATUS="75", SLURM_RESTART_COUNT=count)
        assert ("is queued again" in process.communicate(timeout=60)[1]) == again


def test_every_node_starts_the_same_torchrun(tmp_path: Path, programs: Path, config: Path) -> None:
    extra = {"SLURM_GPUS_ON_NODE": "8", "SLURM_CPUS_PER_TASK": "64"}
    process = batch_job(tmp_path, programs, str(config), "steps=5", **extra)
    process.communicate(timeout=60)
    (words,) = called(tmp_path, "srun")
    assert words[:4] == [
        *("--ntasks-per-node=1", "--kill-on-bad-exit=1", "--cpus-per-task=64", "--cpu-bind=none")
    ]
    launcher = words[words.index("torch.distributed.run") + 1 :]
    run_id = launcher.pop(launcher.index("--rdzv-id") + 1)
    assert re.fullmatch(r"17-[0-9a-f]{8}", run_id)
    assert launcher == [
        *("--nnodes", "2", "--nproc-per-node", "8", "--rdzv-id", "--rdzv-backend", "c10d"),
        *("--rdzv-endpoint", "node1:20017", SCRIPT, str(config), "steps=5"),
    ]


def test_an_arrays_task_is_a_run_of_its_own(tmp_path: Path, programs: Path, config: Path) -> None:
    task = {"SLURM_ARRAY_JOB_ID": "16", "SLURM_ARRAY_TASK_ID": "1", "STATUS": "75"}
    (tmp_path / "sweep").write_text("# two\noptim.lr=1\n\noptim.lr=2 'run.name=b'  # second\n")
    for arguments, changes in (
        ([], ["run.seed=4", 'run.name="run-1"', f'run.dir="{tmp_path}/run-1"']),
        (["--sweep=sweep"], ["optim.lr=2", "run.name=b", f'run.dir="{tmp_path}/run-1"']),
        (["--sweep=run.seed=[5, 6]"], ["run.seed=6", 'run.name="run-1"']),
    ):
        process = batch_job(tmp_path, programs, *arguments, str(config), "steps=5", **task)
        errors = process.communicate(timeout=60)[1]
        words = called(tmp_path, "srun")[-1]
        given = words[words.index(SCRIPT) + 1 :]
        assert given[: 2 + len(changes)] == [str(config), "steps=5", *changes], errors
        # Its own number is that of the whole array.
        assert called(tmp_path, "scontrol")[-1] == ["requeue", "16_1"]


def test_named_by_the_config_each_task_has_a_directory(tmp_path: Path) -> None:
    path = write_config(tmp_path / "c.yaml", tmp_path / "x", tmp_path, run__dir="runs/{name}")
    changes = sweep.of_task("pretrain", path, [], 3, None)
    assert changes == ["run.seed=6", 'run.name="x-3"'], "the directory follows the name"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a b=1\n", "sweep:1: expected key=value, got 'a'"),
        ("x=1\ny='\n", "sweep:2: No closing quotation"),
        ("# none\n", "no runs"),
        (b"\xff", "not UTF-8 text"),
        (b"a=1\n" * 300_000, "larger than"),
    ],
)
def test_mistakes_in_a_sweep(tmp_path: Path, text: str | bytes, told: str) -> None:
    path = tmp_path / "sweep"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=told):
        sweep.read(str(path))


def submitted(
    tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch, *words: str
) -> list[list[str]]:
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{environment()['PATH']}")
    assert main(["slurm", *words]) == 0
    return called(tmp_path, "sbatch")


def test_the_words_of_sbatch(
    tmp_path: Path, programs: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = "--nodes 4 --gpus-per-node 2 --time 24:00:00 --partition gpu --account me --requeue"
    options += " --signal USR1@120 --cpus-per-task 16 --mem 0"
    (words,) = submitted(
        tmp_path, programs, monkeypatch, *options.split(), "--", str(config), "optim.lr=3e-4"
    )
    assert words == [
        *("--parsable", "--job-name=run", "--nodes=4", "--gpus-per-node=2", "--time=24:00:00"),
        *("--partition=gpu", "--account=me", "--cpus-per-task=16", "--mem=0"),
        *("--signal=USR1@120", "--requeue", "--export=ALL", SCRIPT, str(config), "optim.lr=3e-4"),
    ]


def test_a_chain_waits_for_the_one_before(
    tmp_path: Path, programs: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = submitted(tmp_path, programs, monkeypatch, "--chain", "3", "--", str(config))
    after = [next((w for w in words if "dependency" in w), None) for words in chain]
    assert after == [None, "--dependency=afterany:101", "--dependency=afterany:102"]
    assert all("--no-requeue" in words for words in chain)


def test_what_is_printed_submits_the_same(
    tmp_path: Path,
    programs: Path,
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--chain", "2", "--sweep", "run.seed=[1, 2]", "--", str(config), "run.name=x"]
    real = submitted(tmp_path, programs, monkeypatch, *words)
    (tmp_path / "called").unlink()
    capsys.readouterr()
    assert main(["slurm", "--print", *words]) == 0
    assert called(tmp_path, "sbatch") == []
    text = capsys.readouterr().out
    assert f"INGOT_ROOT={ROOT}" in text
    subprocess.run(["bash", "-ec", text], check=True)
    assert called(tmp_path, "sbatch") == real


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--time 5", "the signal to save would come 300 s before its end"),
        ("--time 1:2:3:4", "--time: expected minutes"),
        ("--time 0", "--time: expected minutes"),
        ("--signal KILL@5", "--signal: expected USR1, TERM or INT"),
        ("--signal USR1", "--signal: expected"),
        ("--array 0-x", "--array: expected numbers"),
        ("--array 0-4%0", "--array: expected numbers"),
        ("--array 4-0", "--array: no task"),
        ("--array 0-99999", "at most 1000 tasks"),
        ("--array 0-2 --sweep run.seed=[1,2]", "task 2 has no line"),
        ("--sweep run.sed=[1,2]", "did you mean run.seed"),
        ("--sweep absent", "absent: No such file"),
        ("--partition a;id", "--partition: expected a name"),
        ("--account $(id)", "--account: expected a name"),
        ("--mem lots", "--mem: expected a size"),
        ("--output a'b", "--output: expected a path"),
        ("--job-name -x", "expected one argument"),
        ("--job-name=-x", "--job-name: expected"),
        ("--nodes 0", "nodes: expected 1"),
        ("--nodes 3 --gpus-per-node 1", "8 is not divisible"),
        ("--chain 0", "chain: expected"),
    ],
)
def test_mistakes_are_one_line(
    config: Path, options: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main(["slurm", *options.split(), "--print", "--", str(config)])
    except SystemExit as left:  # argparse
        status = int(left.code or 0)
    assert status == 2
    assert told in capsys.readouterr().err


def test_no_slurm_is_one_line(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["slurm", "--", str(config)]) == 2
    assert "sbatch is not here" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_the_scripts_ask_slurm_for_a_signal_and_a_place_in_the_queue(stage: str) -> None:
    lines = (ROOT / f"launch/{stage}.sh").read_text().splitlines()
    asked = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")]
    assert set(asked) >= {"--requeue", "--signal=USR1@300", "--open-mode=append"}


def test_a_list_of_nodes_without_a_job_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(UserError, match="SLURM_JOB_ID names no job"):
        Job()
