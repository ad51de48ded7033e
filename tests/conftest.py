"""Settings that every test shares."""

import os

# Small tensors: more threads than one only wait for each other. Also keeps sums in one order.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
