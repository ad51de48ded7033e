#!/usr/bin/env bash
#SBATCH --job-name=ingot-finetune
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=USR1@300
''':'
# One file, three languages: bash reads up to `exec`, Slurm reads the #SBATCH lines, and Python
# takes this part as a string. So `deepspeed`, `torchrun`, `bash` and `sbatch` all start it.
case $0 in
    */slurm_script) root=${INGOT_ROOT:-$SLURM_SUBMIT_DIR} ;; # Slurm runs a copy of this file
    *) root=$(cd "$(dirname "$0")/.." && pwd) ;;
esac
if [ ! -e "$root/launch/start.sh" ]; then
    echo "error: $root is not the source tree; submit from there, or with python -m launch slurm" >&2
    exit 2
fi
exec bash "$root/launch/start.sh" "$root/launch/finetune.sh" "$@"
'''

import sys
from pathlib import Path

# Python puts this file's folder first, where names such as `report` would shadow others'.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from finetune.__main__ import main  # noqa: E402 - after the path is right
from runtime.errors import leave  # noqa: E402

if __name__ == "__main__":
    leave(main())
