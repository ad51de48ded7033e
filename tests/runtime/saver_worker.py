"""Two ranks that save together; run by test_saver_ranks.py.

usage: saver_worker.py DIR
Prints a JSON line per rank.
"""

import errno
import json
import os
import sys
from pathlib import Path

from runtime import dist
from runtime.checkpoint import format as layout
from runtime.checkpoint import saver as module
from runtime.errors import UserError, leave
from runtime.run_directory import newest_checkpoint
from tests.runtime.saver_toys import Toy, new_saver


def main() -> None:
    root = Path(sys.argv[1])
    ranks = dist.init("cpu", 60)
    module.RETRY_PAUSES_S = (0.01, 0.01, 0.01)
    toy, said = Toy(ranks), []
    saver = new_saver(root, ranks, said=said, keep_last=0)
    found = {"rank": ranks.rank}
    real = os.write

    def failing(times):
        left = [times]

        def write(handle, data):
            if ranks.rank == 1 and left[0]:
                left[0] -= 1
                raise OSError(errno.EIO, "Input/output error")
            return real(handle, data)

        return write

    for step, failures in ((1, 0), (2, 0), (3, 2)):
        os.write = failing(failures)
        toy.weight.fill_(step)
        saver.save(step, toy, toy, {"step": step})
        saver.wait()
    found["tried_again"] = sum("rank 1: " in line for line in said)
    os.write = failing(4)
    saver.save(4, toy, toy, {"step": 4})
    try:
        saver.wait()
    except UserError as error:
        found["error"], found["status"] = str(error), error.status
    os.write = real
    found["committed"] = saver.committed

    hashed = []
    real_hash = layout.hash_file
    layout.hash_file = lambda path: hashed.append(path.name) or real_hash(path)
    dist.together(
        lambda: (root / "step_00000003" / "training" / "optimizer_00001.safetensors").write_bytes(
            bytes((root / "step_00000003/training/optimizer_00001.safetensors").stat().st_size)
        ),
        only_main=True,
    )
    newest = newest_checkpoint(root, ranks)
    found["newest"] = newest and newest.step
    found["hashed"] = sorted(hashed)
    print("\n" + json.dumps(found), flush=True)
    dist.shutdown()


if __name__ == "__main__":
    main()
    leave(0)
