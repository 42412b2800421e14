#!/usr/bin/env bash
# docs/training.md: what a training needs, computed without a GPU; and the full-size step on a CPU, of 11 GB of RAM.
set -euo pipefail
cd "$(dirname "$0")/.."
python benchmarks/train_memory.py
python benchmarks/train_step.py --trained new --size 8 --checkpointing --steps 1
