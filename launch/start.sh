#!/usr/bin/env bash
# Start a training script on everything this machine, or this Slurm job, has; start it again when
# it fails (`python -m launch supervise --help`), and leave no process behind.
# usage: start.sh SCRIPT [ARGUMENT …]      (called by pretrain.sh and finetune.sh)
set -euo pipefail
script=$1
shift
root=$(cd "$(dirname "$script")/.." && pwd)
python=${VENV:-$root/.venv}/bin/python
[ -x "$python" ] || python=$(command -v python3)

export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
exec "$python" -m launch.cluster.start "$script" "$@"
