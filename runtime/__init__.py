"""What every run needs: typed config, process group, engine, checkpoint store, metrics."""

import os

# Before torch loads OpenMP: how long a thread spins, while it waits for the others, before it sleeps.
# GNU's default of 300,000 turns makes a step ten times as long where another process wants the
# cores; without any, a small model's step takes 1.6 times as long on idle ones. Of 74, 74 and
# 119 ms with 300,000, 16,000 and none on two idle cores, a busy neighbour makes > 1,000, 370 and 123.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # of other OpenMPs, which know no number of turns
    os.environ.setdefault("GOMP_SPINCOUNT", "16000")
