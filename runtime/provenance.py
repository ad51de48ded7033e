"""What a run was made with: package versions, git commit, machine."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path

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


def git_commit() -> str | None:
    """The commit of the source tree, with `+` where it has local changes; None outside git."""
    git = shutil.which("git")
    root = Path(__file__).resolve().parent.parent
    if git is None or not (root / ".git").exists():
        return None
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}

    def run(*arguments: str) -> str | None:
        done = subprocess.run(  # noqa: S603 - fixed arguments
            [git, "-C", str(root), *arguments], capture_output=True, text=True, env=environment
        )
        return done.stdout.strip() if done.returncode == 0 else None

    commit = run("rev-parse", "HEAD")
    return f"{commit}+" if commit and run("status", "--porcelain") else commit
