"""What a run was made with: package versions, git commit, machine."""

import functools
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
    "torchao",
    "jieba",
)


def packages() -> dict[str, str]:
    """Versions of Python and of the packages that change numbers."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache  # asks git, and each save wants to know
def versions() -> dict[str, str]:
    """Versions of Python, the packages, the platform, and of this source tree."""
    commit = git_commit()
    found = {**packages(), "platform": platform.platform()}
    return {**found, "git_commit": commit} if commit else found


def started_with(config: pydantic.BaseModel, files: Iterable[Path]) -> dict[str, str]:
    """What all ranks of a run must have in common: settings, source, packages, small files."""
    same = {key: str(value) for key, value in flat(config.model_dump(mode="json")).items()}
    same |= packages()  # machines may differ in their platform
    same |= {str(path): digest([path]) for path in files}
    return same | {"source": source()}


def source() -> str:
    """A digest of the source tree, as far as a run depends on it."""
    return digest(path for room in _ROOMS for path in (_ROOT / room).rglob("*.py"))


def digest(files: Iterable[Path]) -> str:
    """16 hexadecimal digits of what files hold and of their names, in one order."""
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
