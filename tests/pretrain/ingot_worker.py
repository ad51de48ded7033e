"""Runs several commands of one stage, each in a fork of one process with everything imported.

usage: ingot_worker.py pretrain|finetune JOBS.json, a list of argument lists.
Prints what each command prints, and its exit status on a line.
"""

import json
import os
import sys
from importlib import import_module
from pathlib import Path

from runtime.errors import leave

LOADED = {
    "pretrain": ("deepspeed", "pretrain.train"),
    "finetune": ("accelerate", "sklearn.metrics", "finetune.train"),
}

if __name__ == "__main__":
    stage, jobs = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    for name in LOADED[stage]:
        import_module(name)
    main = import_module(f"{stage}.__main__").main
    for arguments in jobs:
        child = os.fork()
        if child == 0:
            leave(main(arguments))
        print(f"status {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}", flush=True)
