"""What a process forked for one command does: become that command in a folder."""

import os
import runpy
import sys
from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Run `python WORDS` in a folder: `argv` is the folder and the words."""
    folder, *words = argv
    os.chdir(folder)
    sys.path.insert(0, folder)
    if words[0] == "-m":
        sys.argv = words[1:]
        sys.modules.pop(f"{words[1]}.__main__", None)  # it was imported before the fork
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
    return 0
