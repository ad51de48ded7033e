"""The container file: its instructions, the files that it copies, and what it builds from them."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.architecture.source import ROOMS
from tests.processes import ROOT

FILE = ROOT / "launch/templates/Containerfile"
# https://docs.docker.com/reference/dockerfile, of which podman reads the same
INSTRUCTIONS = {"ARG", "CMD", "COPY", "ENV", "FROM", "RUN", "USER", "WORKDIR"}
METADATA = "from setuptools import build_meta as b; b.prepare_metadata_for_build_wheel('.')"


def instructions() -> list[tuple[str, str]]:
    lines = [line for line in FILE.read_text().splitlines() if not line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in text.splitlines() if line]


def copied() -> list[str]:
    """What is copied from the source tree."""
    found = []
    for name, rest in instructions():
        words = rest.split()
        if name == "COPY" and not words[0].startswith("--from"):
            found += words[:-1]
    return found


def test_every_instruction_is_one() -> None:
    assert {name for name, _ in instructions()} <= INSTRUCTIONS
    stages = [rest.split() for name, rest in instructions() if name == "FROM"]
    assert [words[1:] for words in stages] == [["AS", "packages"], []]
    froms = [rest for name, rest in instructions() if name == "COPY" and "--from" in rest]
    assert froms == ["--from=packages /opt/venv /opt/venv"]


def test_what_is_copied_is_in_the_tree() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", *copied()], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for path in copied():
        assert any(file == path or file.startswith(f"{path}/") for file in tracked), path
    assert set(ROOMS) <= set(copied())


def test_it_runs_as_a_user_and_starts_our_commands() -> None:
    users = [rest for name, rest in instructions() if name == "USER"]
    last = instructions()[-2:]
    assert users == ["1000:1000"]
    assert [name for name, _ in last] == ["USER", "CMD"]
    environment = dict(
        word.split("=", 1) for n, rest in instructions() if n == "ENV" for word in shlex.split(rest)
    )
    (root,) = [rest for name, rest in instructions() if name == "WORKDIR" and rest != "/build"]
    assert environment["PYTHONPATH"] == root
    assert environment["PATH"].startswith(f"{environment['VENV']}/bin:")


def test_its_python_is_one_that_we_support() -> None:
    (python,) = {rest.partition("=")[2] for n, rest in instructions() if rest.startswith("PYTHON=")}
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert tuple(map(int, python.split("."))) >= tuple(map(int, wanted[2:].split(".")))


@pytest.mark.parametrize("name", ["RUN"])
def test_its_commands_are_shell(name: str) -> None:
    commands = [rest for instruction, rest in instructions() if instruction == name]
    assert len(commands) == 4
    for command in commands:
        assert subprocess.run(["sh", "-n", "-c", command]).returncode == 0
    (pip,) = [command for command in commands if " pip install" in command]
    assert "--constraint constraints.txt" in pip
    assert re.search(r'"\.\[data\]"$', pip)


def test_the_packages_stage_builds_from_what_it_copies(tmp_path: Path) -> None:
    """Without our source: pip reads the requirements from these files alone."""
    (first,) = [rest.split()[:-1] for n, rest in instructions() if n == "COPY" and "toml" in rest]
    for name in first:
        shutil.copy(ROOT / name, tmp_path)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from setuptools import build_meta as b; b.prepare_metadata_for_build_wheel('.')",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (metadata,) = tmp_path.glob("*.dist-info/METADATA")
    assert "Requires-Dist: torch" in metadata.read_text()
