#!/usr/bin/env bash
# docs/training.md, on one GPU of 80 GB: a full-size model, steps of each configuration, inference in 16 bits.
# Ten minutes, 10 GB of disk, 16 GB of RAM. `runs/full-size-gpu.sh v2-1_512-ema-pruned.safetensors` begins with that file;
# without it the file's weights are drawn at random, in its exact shapes: nothing but times and memory means anything then.
set -euo pipefail
cd "$(dirname "$0")/.."
out=runs/full-size-gpu
mkdir -p "$out"
source=${1:-$out/random-sd21.safetensors}
if [ ! -f "$source" ]; then
    PYTHONPATH=tests/helpers:. python -c "
import sys, torch
from safetensors.torch import save_file
from sd21 import ldm_file
from microcinema_core.config import BASE
save_file(ldm_file(BASE, torch.float16), sys.argv[1])" "$source"
fi
[ -f "$out/base.safetensors" ] || microcinema init --from "$source" -o "$out/base.safetensors"
microcinema info "$out/base.safetensors"

step() {  # one configuration; one that does not fit says so, and the next goes on
    echo "== $*"
    python benchmarks/train_step.py --device cuda --steps 4 --threads 8 "$@" 2>&1 | tail -n 12 || echo "failed: $*"
}
{
    nvidia-smi --query-gpu=name,memory.total --format=csv,noheader
    step --checkpointing
    step --checkpointing --micro-batch 4
    step
    step --checkpointing --micro-batch 4 --optimizer adamw8bit
    step --checkpointing --trained new --optimizer adamw8bit
    step --trained new --optimizer adamw8bit
    step --checkpointing --trained lora --optimizer adamw8bit
    step --checkpointing --micro-batch 4 --compile
    for dtype in float16 bfloat16; do
        echo "== inference in $dtype"
        python benchmarks/network.py --device cuda --dtype "$dtype" --clips 2
    done
} 2>&1 | tee "$out/log.txt"
echo "== table"
grep -E "^ *[0-9.]+ s  (all|new|lora) " "$out/log.txt" | sed -E 's/^ *[0-9.]+ s  //'
