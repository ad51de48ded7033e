"""Runs several commands of `python -m pretrain`, each in a fork of one process with torch loaded.

usage: ingot_worker.py JOBS.json, a list of argument lists. Prints each exit status on a line.
"""

import json
import os
import sys
from pathlib import Path

import deepspeed  # noqa: F401 - for the forks

from pretrain.__main__ import main
from runtime.errors import leave

if __name__ == "__main__":
    for arguments in json.loads(Path(sys.argv[1]).read_text()):
        child = os.fork()
        if child == 0:
            leave(main(arguments))
        print(f"status {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}", flush=True)
