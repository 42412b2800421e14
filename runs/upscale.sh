#!/usr/bin/env bash
# Figures of docs/interpolation.md, Smoother and larger. PHOTOGRAPHS: a folder of photographs.
set -euo pipefail
cd "$(dirname "$0")/.."
python benchmarks/upscale_order.py "$PHOTOGRAPHS" --threads 1
python benchmarks/clip_memory.py
