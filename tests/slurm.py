"""A Slurm of one node, on loopback: munged, slurmctld and slurmd of Debian, ended by pid.

Jobs of the partition `urgent` pre-empt those of `test`, which get a signal and 20 s. A job that is
queued again starts after 6 s (`cred_expire`); a real cluster's wait two minutes.
"""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "sinfo")
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=sched_min_interval=200000,batch_sched_delay=0
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
JobRequeue=1
SlurmctldPort={controller}
SlurmdPort={daemon}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmdSpoolDir={folder}/spool
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=16000 State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=test Nodes={host} Default=YES PriorityTier=1 GraceTime=20 MaxTime=INFINITE State=UP
PartitionName=urgent Nodes={host} PriorityTier=10 MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Why there can be no Slurm here, or None."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=_PATH) is None]
    if absent:
        return f"needs Debian's slurm-wlm and munge: no {', '.join(absent)}"
    return None if os.geteuid() == 0 else "slurmd and its jobs need root"


@contextlib.contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Yield the environment in which `sbatch` and the others find this Slurm."""
    for name in ("spool", "state"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    controller = daemon = free_port()
    while daemon == controller:  # a port that was probed may be given again
        daemon = free_port()
    config = folder / "slurm.conf"
    config.write_text(
        _CONFIG.format(
            host=socket.gethostname().split(".")[0],
            folder=folder,
            controller=controller,
            daemon=daemon,
            cpus=len(os.sched_getaffinity(0)),
        )
    )
    environment = {**os.environ, "PATH": _PATH, "SLURM_CONF": str(config)}
    files = [f"--{name}={folder}/munge.{name}" for name in ("socket", "pid-file", "log-file")]
    files += [f"--key-file={key}", f"--seed-file={folder}/munge.seed"]
    commands = [
        ["munged", "--foreground", "--force", *files],
        ["slurmctld", "-D", "-f", str(config)],
        ["slurmd", "-D", "-f", str(config)],
    ]
    with contextlib.ExitStack() as stack:
        for command in commands:
            stack.enter_context(_running(command, environment, folder / f"{command[0]}.out"))
            if command[0] == "munged":
                _until_there(folder / "munge.socket")  # without it the others end
        _until_idle(environment, folder)
        try:
            yield environment
        finally:
            _end_jobs(environment)


def _end_jobs(environment: dict[str, str]) -> None:
    """Cancel what is left and wait: without its controller a job's keeper asks for it forever."""
    for _ in range(100):
        subprocess.run(["scancel", "--user=root"], env=environment, check=False)
        words = ["squeue", "--noheader"]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        if done.returncode or not done.stdout.strip():
            return
        time.sleep(0.2)


@contextlib.contextmanager
def _running(command: list[str], environment: dict[str, str], log: Path) -> Iterator[None]:
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
    try:
        time.sleep(0.3)
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _until_there(socket_path: Path) -> None:
    """Wait for a daemon's socket; where it never comes, Slurm says so later."""
    for _ in range(100):
        if socket_path.is_socket():
            return
        time.sleep(0.2)


def _until_idle(environment: dict[str, str], folder: Path) -> None:
    """Wait for the node; where it never comes, skip and show what Slurm says."""
    told = ""
    for _ in range(100):
        done = subprocess.run(
            ["sinfo", "--noheader", "--format=%T"], env=environment, capture_output=True, text=True
        )
        told = done.stdout.strip() or done.stderr.strip()
        if told.startswith("idle"):
            return
        time.sleep(0.2)
    logs = "\n".join(p.read_text(errors="replace")[-600:] for p in folder.glob("*.log"))
    pytest.skip(f"Slurm does not start here ({told}): {logs}")
