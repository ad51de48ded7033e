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
supervise=("$python" -m launch supervise --)

gpus=0
if command -v nvidia-smi >/dev/null; then
    gpus=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU' || true)
fi

if [ -n "${SLURM_JOB_NODELIST:-}" ] && [ -z "${SLURM_STEP_ID:-}" ]; then
    # Inside a Slurm job: one torchrun per node, which starts a rank per GPU (or one on a CPU).
    first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    ranks=${SLURM_GPUS_ON_NODE:-$gpus}
    # A node that fails makes the others fail as well; all start again and meet at the first one.
    exec srun --ntasks-per-node=1 --kill-on-bad-exit=1 \
        "${supervise[@]}" "$python" -m torch.distributed.run \
        --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "$((ranks > 0 ? ranks : 1))" \
        --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d \
        --rdzv-endpoint "$first:$((20000 + SLURM_JOB_ID % 20000))" \
        "$script" "$@"
elif [ "$gpus" -gt 1 ] && [ "${CUDA_VISIBLE_DEVICES-all}" != "" ]; then
    # Without --num_gpus: DeepSpeed would ignore CUDA_VISIBLE_DEVICES beside it.
    exec "${supervise[@]}" "$python" -m deepspeed.launcher.runner "$script" "$@"
else
    exec "${supervise[@]}" "$python" "$script" "$@"
fi
