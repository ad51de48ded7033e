"""Host names, values and arguments that want to be commands: refused, or passed as they are."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from launch.cluster.hosts import (
    MAX_BYTES,
    check_deepspeed,
    check_environment_file,
    check_host,
    read_hostfile,
    ssh_command,
)
from runtime.errors import EXIT_BAD_INPUT, UserError
from tests.processes import ROOT, environment

MARKER = "marker"
TOUCH = f"touch {MARKER}"
HOSTILE_HOSTS = [
    "-oProxyCommand=touch${IFS}marker",
    "-oProxyCommand=touch",
    "--",
    "-",
    "-F/tmp/config",
    "node;id",
    "node&touch",
    "node|sh",
    "$(touch)",
    "`touch`",
    "${IFS}",
    "node'",
    'node"',
    "node\\",
    "a/b",
    "../x",
    "user@host",
    "root@-oX",
    "host:22",
    "[::1]",
    ".node",
    "node.",
    "node-",
    "no_de",
    "nо-de",  # a Cyrillic letter
    "ｎｏｄｅ",
    "node\u200b",
    "node\u2028",
    "*",
    "?",
    "~",
    "node,other",
    "%n",
    "a" * 300,
    "node\x00",
    "node\x1b[2J",
    "node=1",
    "{a,b}",
    "<(id)",
    "!!",
]
WORDS = [
    "",
    " ",
    "two words",
    f"; {TOUCH}",
    f"$({TOUCH})",
    f"`{TOUCH}`",
    f"' ; {TOUCH} ; '",
    f'" ; {TOUCH} ; "',
    "'\"'\"'",
    "\\",
    "\\'",
    "a\\nb",
    "a\nb",
    f"\n{TOUCH}\n",
    "\t",
    "*",
    "~",
    "$HOME",
    "${IFS}",
    "!!",
    "#no comment",
    "--",
    "-oProxyCommand=x",
    "a=b",
    "> marker",
    "< /etc/passwd",
    f"| {TOUCH}",
    f"& {TOUCH} &",
    "{a,b}",
    "[a-z]",
    "%n %h",
    "é 中 😀",
    "data.train=[a, b]",
    "optim={lr: 1e-3}",
    "\r",
    "x" * 5000,
    "\x01\x7f",
    "$'\\x41'",
    f"$(({TOUCH}))",
    "^a^b",
]
STUB = """\
#!{python}
import json, os, sys
with open({record!r}, "a") as file:
    file.write(json.dumps(sys.argv) + "\\n")
os.execv("/bin/sh", ["sh", "-c", sys.argv[-1]])
"""
SHOW = "import json, os, sys; print(json.dumps([sys.argv[1:], os.environ.get('NCCL_TEST')]))"


@pytest.fixture
def stub(tmp_path: Path) -> Path:
    """An ssh that keeps its words and does what sshd does with the last one."""
    path = tmp_path / "bin" / "ssh"
    path.parent.mkdir()
    path.write_text(STUB.format(python=sys.executable, record=str(tmp_path / "record")))
    path.chmod(0o700)
    return path


def test_there_are_enough() -> None:
    assert len(set(HOSTILE_HOSTS)) >= 40
    assert len(set(WORDS)) >= 40


@pytest.mark.parametrize("name", HOSTILE_HOSTS)
def test_hostile_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError) as caught:
        check_host(name, "here")
    assert caught.value.status == EXIT_BAD_INPUT
    (tmp_path / "hosts").write_text(f"good slots=2\n{name} slots=2\n", encoding="utf-8")
    with pytest.raises(UserError, match="hosts"):
        read_hostfile(tmp_path / "hosts")
    with pytest.raises(UserError):
        ssh_command(name, ["true"], {}, tmp_path)


@pytest.mark.parametrize("name", ["a", "node-1", "10.0.0.7", "n1.cluster.example", "X9"])
def test_names_of_machines_are_taken(tmp_path: Path, name: str) -> None:
    (tmp_path / "hosts").write_text(f"# ours\n\n{name}\tslots=8  # eight\n")
    assert read_hostfile(tmp_path / "hosts") == {name: 8}


@pytest.mark.parametrize(
    "text",
    [
        *("", "# none\n", "a\n", "a slots=0\n", "a slots=x\n", "a slots=99999\n", "a slots=1 b\n"),
        *("a slots=1\na slots=1\n", "a slots=-1\n", "slots=1 a\n", "a slots=1\x0bb slots=1\n"),
    ],
)
def test_broken_hostfiles_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "hosts").write_text(text)
    with pytest.raises(UserError, match="hosts"):
        read_hostfile(tmp_path / "hosts")


def test_a_huge_hostfile_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_bytes(b"# \n" * MAX_BYTES)
    with pytest.raises(UserError, match="larger than"):
        read_hostfile(tmp_path / "hosts")


@pytest.mark.parametrize("word", WORDS)
def test_arguments_and_values_arrive_as_they_are(tmp_path: Path, stub: Path, word: str) -> None:
    argv = [sys.executable, "-c", SHOW, "first", word, "last"]
    command = ssh_command("node-1", argv, {"NCCL_TEST": word, "HF_TOKEN": "secret"}, tmp_path)
    assert "secret" not in " ".join(command)
    done = subprocess.run(
        command,
        env={"PATH": f"{stub.parent}:/usr/bin:/bin", "PYTHONUTF8": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [["first", word, "last"], word]
    assert not (tmp_path / MARKER).exists()
    (words,) = map(json.loads, (tmp_path / "record").read_text().splitlines())
    assert words[1:] == command[1:]
    assert words[-3:-1] == ["--", "node-1"]


@pytest.mark.parametrize(
    "line", ["NOT A LINE", "A-B=1", "A=$(touch marker)", "A=`id`", 'A="x"', "A=x;id", "=1", "A=é"]
)
def test_environment_files_that_a_shell_would_expand(tmp_path: Path, line: str) -> None:
    (tmp_path / ".deepspeed_env").write_text(f"NCCL_DEBUG=INFO\n{line}\n", encoding="utf-8")
    with pytest.raises(UserError, match="deepspeed_env"):
        check_environment_file(tmp_path / ".deepspeed_env")


@pytest.mark.parametrize(
    "options",
    [
        ["--hostfile", "bad"],
        ["--hostfile=bad"],
        ["--hostf", "bad"],
        ["-H", "bad"],
        ["-Hbad"],
        ["--hostfile", "good", "--hostfile", "bad"],
        ["--hostfile", "good", "--include", "node;id:0"],
        ["--hostfile", "good", "--exclude=node@$(id)"],
        ["--hostfile", "good", "--master_addr", "-oProxyCommand=x"],
    ],
)
def test_what_deepspeed_would_read_is_checked(tmp_path: Path, options: list[str]) -> None:
    (tmp_path / "good").write_text("node slots=2\n")
    (tmp_path / "bad").write_text("-oProxyCommand=touch${IFS}marker slots=2\n")
    home = {"HOME": str(tmp_path)}
    check_deepspeed(["deepspeed", "--hostfile", "good", "x.sh"], home, tmp_path)
    with pytest.raises(UserError):
        check_deepspeed(["/bin/deepspeed", *options, "x.sh"], home, tmp_path)
    (tmp_path / ".deepspeed_env").write_text("A=$(id)\n")
    with pytest.raises(UserError):
        check_deepspeed(["python", "-m", "deepspeed.launcher.runner", "x.sh"], home, tmp_path)


def test_the_supervisor_refuses_before_anything_starts(tmp_path: Path, stub: Path) -> None:
    (tmp_path / "hosts").write_text("-oProxyCommand=touch${IFS}marker slots=2\n")
    arguments = ["supervise", "--", "deepspeed", "--hostfile", str(tmp_path / "hosts"), "x.sh"]
    done = subprocess.run(
        [sys.executable, "-m", "launch", *arguments],
        env={**environment(), "PATH": str(stub.parent)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == EXIT_BAD_INPUT
    assert "hosts:1: '-oProxyCommand=touch${IFS}marker' is not a host name" in done.stderr
    assert not (tmp_path / "record").exists()
