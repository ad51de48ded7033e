"""The process of one peer: `worker.py '{"peer": …, "size": …, …}'`, then orders on stdin."""

import json
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import torch

from benchmarks.peers.orders import Orders
from benchmarks.peers.shapes import SIZES


def main() -> None:
    """Build the peer and step it until told to stop."""
    options = json.loads(sys.argv[1])
    warnings.filterwarnings("ignore")
    device = torch.device(options["device"])
    if device.type == "cpu":
        torch.set_num_threads(options["threads"])
    orders = Orders(device)
    work = SIZES[options["size"]][options["family"]]
    work = work._replace(batch_size=options["batch_size"] or work.batch_size)
    if options["peer"] == "engine":
        from benchmarks.peers.ours import engine as run
    elif options["peer"] == "bare":
        from benchmarks.peers.bare import loop as run
    elif options["peer"] == "nanogpt":
        from benchmarks.peers.nanogpt import loop as run
    elif options["peer"] == "trainer":
        from benchmarks.peers.trainer import loop as run
    else:
        from benchmarks.peers.litgpt_loop import loop as run
    run(work, options, orders, device)


if __name__ == "__main__":
    main()
