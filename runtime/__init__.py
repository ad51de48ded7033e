"""What every run needs: typed config, process group, engine, checkpoint store, metrics."""

import os

# Before torch loads OpenMP: how long a thread that waits for the others spins before it sleeps. On
# two cores a small model's step took 74 ms with GNU's default of 300,000 turns, 74 with 16,000, and
# 119 with none; beside a process that keeps one core busy 1,054 with 64,000, 370, and 123.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # other OpenMPs know no number of turns
    os.environ.setdefault("GOMP_SPINCOUNT", "16000")
