#!/usr/bin/env bash
# From raw text to a fine-tuned model and a report, on whatever hardware is here.
# Safe to interrupt and run again: finished stages are reused, a half-trained one resumes.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/launch/setup.sh"
cd "$root"
PATH=${VENV:-$root/.venv}/bin:$PATH
out=runs/demo
mkdir -p "$out"

# The demo's batch of 16 splits evenly over 1, 2, 4, 8 or 16 GPUs; without a GPU, one process.
gpus=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU' || true)
ranks=1
while [ $((ranks * 2)) -le "$gpus" ] && [ "$ranks" -lt 16 ]; do ranks=$((ranks * 2)); done

stage() { printf '\n== %s\n' "$*"; }

stage "1/5 data: the standard library's sources become tokens ($out/data)"
python -m data_prep demo

stage "2/5 pretraining: a small GPT under DeepSpeed ZeRO-1 ($out/pretrain)"
deepspeed --num_gpus "$ranks" launch/pretrain.sh pretrain/configs/demo.yaml

stage "3/5 fine-tuning: which package is this function from? ($out/finetune)"
deepspeed --num_gpus "$ranks" launch/finetune.sh finetune/configs/demo.yaml

stage "4/5 generation: what the pretrained model writes"
checkpoints=$out/pretrain/checkpoints
python -m model generate "$checkpoints/$(cat "$checkpoints/latest")" --prompt 'def main(argv):' --max-new-tokens 80 \
    --temperature 0.7 --seed 0 | tee "$out/sample.txt"

stage "5/5 report"
python -m launch report "$out" --output "$out/report.html"
