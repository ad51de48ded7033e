"""What launch/start.sh does: start a training script on what this machine or Slurm job has."""

import os
import sys
from collections.abc import Sequence

from launch.cluster import local, slurm_job
from runtime.errors import command


@command
def main(argv: Sequence[str]) -> int:
    """Start SCRIPT [ARGUMENT …]; returns its exit status, where it was not replaced by it."""
    # Within a step of the job srun has started us, once for each task: a task is one rank's place.
    if not os.environ.get("SLURM_JOB_NODELIST") or os.environ.get("SLURM_STEP_ID"):
        local.start(argv, max(local.visible_gpus(), 1)).replace()
    return slurm_job.run(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
