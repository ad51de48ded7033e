"""What a run was made with: package versions, git commit, machine."""

import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pydantic

from runtime.config import flat

_ROOT = Path(__file__).resolve().parent.parent
_ROOMS = ("model", "runtime", "data_prep", "pretrain", "finetune")

PACKAGES = (
    "torch",
    "deepspeed",
    "transformers",
    "accelerate",
    "tokenizers",
    "numpy",
    "safetensors",
    "jieba",
)


def versions() -> dict[str, str]:
    """Versions of Python, of the packages that change numbers, and of this source tree."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    commit = git_commit()
    return {**found, "git_commit": commit} if commit else found


def started_with(config: pydantic.BaseModel, files: Iterable[Path]) -> dict[str, str]:
    """What all ranks of a run must have in common: settings, source, packages, small files."""
    same = {key: str(value) for key, value in flat(config.model_dump(mode="json")).items()}
    # Machines may differ in their kernel, and git is not everywhere.
    of_machine = ("platform", "git_commit")
    same |= {key: value for key, value in versions().items() if key not in of_machine}
    same |= {str(path): _digest([path]) for path in files}
    return same | {"source": _digest(p for room in _ROOMS for p in (_ROOT / room).rglob("*.py"))}


def _digest(files: Iterable[Path]) -> str:
    whole = hashlib.sha256()
    for path in sorted(files):
        whole.update(path.name.encode() + path.read_bytes())
    return whole.hexdigest()[:16]


def git_commit() -> str | None:
    """The commit of the source tree, with `+` where it has local changes; None outside git."""
    git = shutil.which("git")
    if git is None or not (_ROOT / ".git").exists():
        return None
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}

    def run(*arguments: str) -> str | None:
        done = subprocess.run(  # noqa: S603 - fixed arguments
            [git, "-C", str(_ROOT), *arguments], capture_output=True, text=True, env=environment
        )
        return done.stdout.strip() if done.returncode == 0 else None

    commit = run("rev-parse", "HEAD")
    return f"{commit}+" if commit and run("status", "--porcelain") else commit
