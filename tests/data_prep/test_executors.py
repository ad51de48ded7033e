"""The same bytes from a Ray cluster and from a Slurm array as from one process."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import orjson
import pytest

from data_prep.config import DataPrepConfig, check
from data_prep.executors.slurm import array_script, map_by_slurm
from data_prep.plan import make_plan
from data_prep.sources import input_files
from data_prep.stages import stages
from runtime.config import load
from runtime.errors import UserError
from tests import slurm
from tests.data_prep.samples import contents, make_texts, settings, write_jsonl
from tests.processes import free_port

ROOT = Path(__file__).parents[2]


def write_config(tmp_path: Path, output: str, **changes) -> Path:
    chosen = settings(split__valid=0.1, **changes)
    path = tmp_path / "x.jsonl"
    if not path.exists():
        write_jsonl(path, [*make_texts(400), "broken"])
        with path.open("ab") as stream:
            stream.write(b"{\n")
    chosen["input"]["paths"] = [str(path)]
    chosen["output"] = str(tmp_path / output)
    file = tmp_path / f"{output}.yaml"
    file.write_bytes(orjson.dumps(chosen))
    return file


def run(config: Path, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "data_prep", "run", str(config)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def calm(tmp_path: Path) -> dict[str, bytes]:
    done = run(write_config(tmp_path, "calm", workers=1))
    assert done.returncode == 0, done.stderr
    return contents(tmp_path / "calm")


@pytest.fixture
def cluster(tmp_path):
    """`ray start --head` on loopback, ended by `--block`'s own process."""
    port = free_port()
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    options = {
        "node-ip-address": "127.0.0.1",
        "port": port,
        "num-cpus": 2,
        "include-dashboard": "false",
        "object-store-memory": 100_000_000,
    }
    command += [f"--{name}={value}" for name, value in options.items()]
    with (tmp_path / "ray.out").open("wb") as out:
        head = subprocess.Popen(
            [*command, "--disable-usage-stats"],
            stdout=out,
            stderr=out,
            env={**os.environ, "RAY_TMPDIR": "/tmp"},
        )
    started = time.monotonic()
    while "started" not in (tmp_path / "ray.out").read_text() and head.poll() is None:
        assert time.monotonic() - started < 300, (tmp_path / "ray.out").read_text()
        time.sleep(0.2)
    assert head.poll() is None, (tmp_path / "ray.out").read_text()
    yield f"127.0.0.1:{port}"
    head.terminate()
    try:
        head.wait(120)
    except subprocess.TimeoutExpired:
        head.kill()  # what it has started dies with it
        head.wait()


@pytest.mark.slow
def test_a_ray_cluster_makes_the_same_bytes(tmp_path, cluster):
    pytest.importorskip("ray")
    made = write_config(tmp_path, "ray", executor="ray", ray__address=cluster)
    done = run(made)
    if done.returncode == -signal.SIGSEGV:  # Ray's own core, seen once; the same command goes on
        done = run(made)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "ray") == calm(tmp_path)


def test_no_cluster_is_one_line(tmp_path):
    pytest.importorskip("ray")
    address = f"127.0.0.1:{free_port()}"
    done = run(write_config(tmp_path, "ray", executor="ray", ray__address=address))
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith(f"error: no Ray cluster at {address}")


@pytest.fixture
def batch(tmp_path_factory):
    why = slurm.missing()
    if why:
        pytest.skip(why)
    with slurm.slurm(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


@pytest.mark.slow
def test_a_slurm_array_makes_the_same_bytes(tmp_path, batch):
    made = write_config(tmp_path, "slurm", executor="slurm", slurm__tasks=3, slurm__poll_s=0.5)
    done = run(made, batch)
    assert done.returncode == 0, done.stderr
    assert re.search(r"Slurm job \d+", done.stdout)
    assert contents(tmp_path / "slurm") == calm(tmp_path)


@pytest.mark.slow
def test_an_array_that_fails_is_told_with_its_words(tmp_path, batch):
    setup = "echo 'error: no such module'; exit 3"
    made = write_config(tmp_path, "x", executor="slurm", slurm__setup=[setup], slurm__poll_s=0.5)
    done = run(made, batch)
    assert done.returncode == 1
    assert re.search(
        r"error: Slurm job \d+ has ended and 1 tasks are not done .*no such module", done.stderr
    )


def planned(tmp_path: Path, **changes):
    config = load(DataPrepConfig, write_config(tmp_path, "out", **changes), (), check)
    Path(config.output).mkdir(exist_ok=True)
    return make_plan(config, input_files(config, Path("unused")))


def test_the_array_script_is_bash_and_takes_every_task_once(tmp_path):
    """Where there is no Slurm: a stand-in for `sbatch` that runs the array's tasks by bash."""
    plan = planned(tmp_path, executor="slurm", slurm__tasks=4, slurm__time="1-00:00:00")
    shards = next(stage for stage in stages(plan) if stage.name == "shards")
    numbers = [number for number in shards.weights if number != 2]
    script = array_script(plan, shards, numbers)
    assert "#SBATCH --array=0-3\n" in script
    assert "#SBATCH --time=1-00:00:00\n" in script
    path = tmp_path / "array.sh"
    # "exec" of an echo instead of the interpreter shows what would run.
    path.write_text(script.replace(f"exec {sys.executable}", "exec echo"))
    assert subprocess.run(["bash", "-n", str(path)]).returncode == 0
    found = []
    for task in range(4):
        done = subprocess.run(
            ["bash", str(path)],
            env={**os.environ, "SLURM_ARRAY_TASK_ID": str(task)},
            capture_output=True,
            text=True,
            check=True,
        )
        words = done.stdout.split()
        assert words[:5] == ["-m", "data_prep", "task", str(plan.output), "shards"]
        found += [int(word) for word in words[5:]]
    assert sorted(found) == numbers


@pytest.mark.parametrize(
    ("key", "value"),
    [("partition", "a\nb"), ("account", "x; rm -rf /"), ("time", "soon"), ("memory", "4 G")],
)
def test_what_goes_into_a_script_is_checked(tmp_path, key, value):
    with pytest.raises(UserError, match=f"slurm.{key}"):
        planned(tmp_path, **{f"slurm__{key}": value})


def test_no_slurm_is_one_line(tmp_path):
    made = write_config(tmp_path, "x", executor="slurm")
    environment = {**os.environ, "PATH": "/nowhere"}
    done = run(made, environment)
    assert done.returncode == 2
    assert "error: executor: slurm needs sbatch" in done.stderr


class FakeStage:
    name = told = "shards"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def is_done(self, number: int) -> bool:
        return (self.folder / f"done_{number}").exists()


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """programs(squeue) puts stand-ins for Slurm on PATH; `calls` has what was called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def make(squeue: str) -> Path:
        calls = tmp_path / "calls"
        for name, body in {"sbatch": "echo 71", "squeue": squeue, "scancel": ""}.items():
            path = folder / name
            path.write_text(f'#!/bin/sh\ncd {tmp_path}\necho {name} "$@" >> calls\n{body}\n')
            path.chmod(0o755)
        return calls

    return make


def watch(tmp_path, **changes):
    plan = planned(tmp_path, executor="slurm", slurm__poll_s=0.02, **changes)
    (plan.work / "slurm").mkdir(parents=True, exist_ok=True)
    return plan, map_by_slurm(FakeStage(tmp_path), [0], plan)


def test_a_controller_that_does_not_answer_is_waited_for(tmp_path, programs, capsys):
    calls = programs(
        "n=$(grep -c squeue calls); [ $n -lt 9 ] || touch done_0\n"
        "echo 'slurm_load_jobs error: Socket timed out on send/recv operation' >&2; exit 1"
    )
    plan, watched = watch(tmp_path)
    assert list(watched) == [0]
    assert "scancel" not in calls.read_text()
    told = capsys.readouterr().err
    assert told.count("squeue does not answer (slurm_load_jobs error: Socket timed out") == 1
    assert not list((plan.work / "slurm").glob("*.job"))


@pytest.mark.parametrize(
    "answer", ["true", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"]
)
def test_a_job_that_is_gone_fails_with_words_of_its_own(tmp_path, programs, answer):
    calls = programs(answer)
    plan, watched = watch(tmp_path)
    old = plan.work / "slurm" / "shards_0.log"
    old.write_text("error: of an earlier run\n")
    with pytest.raises(UserError, match=r"Slurm job 71 has ended and 1 tasks are not done; run"):
        list(watched)
    assert not old.exists()
    assert "scancel 71" in calls.read_text()
    assert (plan.work / "slurm" / "shards.job").read_text() == "71"


def test_the_array_of_a_killed_process_is_ended_first(tmp_path, programs, capsys):
    calls = programs("[ $(grep -c scancel calls) -gt 1 ] || echo R; ! grep -q sbatch calls")
    plan, watched = watch(tmp_path)
    (plan.work / "slurm" / "shards.job").write_text("55")
    (tmp_path / "done_0").touch()
    assert next(watched) == 0
    with pytest.raises(UserError, match="interrupted"):
        watched.throw(UserError("interrupted"))
    lines = calls.read_text().splitlines()
    at = next(k for k, line in enumerate(lines) if line.startswith("sbatch"))
    assert lines[0].startswith("squeue --noheader --jobs 55")
    assert lines[1] == "scancel 55"
    assert lines[at - 1].startswith(("squeue", "scancel"))
    assert [line for line in lines[at:] if "scancel" in line] == ["scancel 71"]
    assert "cancelling Slurm job 55 of an earlier run" in capsys.readouterr().out


def test_percent_signs_and_white_space_in_the_output(tmp_path):
    for name, line in (("a%j", rf"{tmp_path}/a%%j/.*/slurm/shards_%a\.log"), ("b c", None)):
        folder = tmp_path / name
        folder.mkdir()
        plan = planned(folder, executor="slurm")
        if line is None:
            with pytest.raises(UserError, match="cannot name a folder with white space"):
                array_script(plan, FakeStage(folder), [0])
        else:
            script = array_script(plan, FakeStage(folder), [0])
            assert re.search(f"^#SBATCH --output={line}$", script, re.MULTILINE)
