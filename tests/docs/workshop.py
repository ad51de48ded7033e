"""A folder as a user has it after cloning, and the commands of one page run in it, in order."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.docs.exceptions import python_words, smaller
from tests.docs.made import write_files
from tests.docs.pages import Block, Command, page
from tests.faults.harness import ForkServer
from tests.processes import ROOT, environment

PATIENCE_S = 240.0
SHOWN = 4000  # characters of a failed command's output
_STEP = re.compile(r"([\w./-]*/checkpoints)/(step_\d{8})")


class Workshop:
    """The source tree (by links), small data, and what the page's own blocks wrote."""

    def __init__(self, folder: Path, models: Path, server: ForkServer) -> None:
        self.folder = folder
        self.renamed: list[str] = []  # see _name_steps
        self._server = server
        for entry in sorted(ROOT.iterdir()):
            if not entry.name.startswith(".") and entry.name not in ("runs", "data", "build"):
                (folder / entry.name).symlink_to(entry)
        (folder / ".venv").symlink_to(sys.prefix)
        write_files(folder)
        shutil.copytree(models, folder / "models")

    def take(self, other: "Workshop", text: str) -> None:
        """Have what another page left, but for what this one, of that text, prepares itself."""
        renamed = shutil.ignore_patterns(*other.renamed)
        for source, name in (
            ("data/my-text", "data/my-text"),
            ("data/my-text", "data/my-corpus"),
            ("runs/my-gpt", "runs/my-gpt"),
        ):
            (self.folder / name).parent.mkdir(exist_ok=True)
            if f"output: {name}\n" in text:
                continue
            shutil.copytree(other.folder / source, self.folder / name, ignore=renamed)
        shutil.copy(other.folder / "my-gpt.yaml", self.folder)
        for block in page("README.md").blocks:
            if block.language == "yaml":
                self.write(block)

    def write(self, block: Block) -> None:
        """Write a YAML block that says its file's name."""
        if block.file_name:
            (self.folder / block.file_name).write_text(block.text, encoding="utf-8")

    def run(self, command: Command) -> None:
        """Run one command, made small."""
        text = smaller(command.text)
        self._name_steps(text)
        words = python_words(text)
        if words is not None:
            status, output = self._fork(words)
        else:
            done = self._call(["bash", "-c", f"set -euo pipefail\n{text}"])
            status, output = done.returncode, done.stdout
        assert status == 0, f"{command.page}:{command.line}: {text}\n{output[-SHOWN:]}"

    def _fork(self, words: list[str]) -> tuple[int, str]:
        """Run `python WORDS` in a process that has its packages already: seconds are saved."""
        process = self._server.start(
            [str(self.folder), *words], target="tests.docs.forked:main", **self._environment()
        )[0]
        return process.wait(PATIENCE_S), process.output()

    def _call(self, words: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words,
            cwd=self.folder,
            env=environment(**self._environment()),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=PATIENCE_S,
        )

    def _environment(self) -> dict[str, str]:
        return {"PYTHONPATH": str(self.folder), "DS_ACCELERATOR": "cpu"}

    def python(self, block: Block) -> None:
        """Run a Python block."""
        self._name_steps(block.text)
        done = self._call([sys.executable, "-c", block.text])
        where = f"{block.page}:{block.line}"
        assert done.returncode == 0, f"{where}\n{done.stdout[-SHOWN:]}"

    def _name_steps(self, text: str) -> None:
        """Give the run's last step the number that it has where nothing was made small.

        The page's number is the right one: test_steps_named_are_those_of_the_config.
        """
        for folder, step in _STEP.findall(text):
            checkpoints = self.folder / folder
            if checkpoints.is_dir() and not (checkpoints / step).exists():
                newest = (checkpoints / "latest").read_text().strip()
                shutil.copytree(checkpoints / newest, checkpoints / step, copy_function=os.link)
                self.renamed.append(step)
