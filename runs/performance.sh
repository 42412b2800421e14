#!/usr/bin/env bash
# docs/performance.md: one step beside the peers, at a width that one core can run. FLOPs are counted on no device.
set -euo pipefail
cd "$(dirname "$0")/.."
OMP_NUM_THREADS=1 python benchmarks/network.py --width 64 --size 16 --repeats 5
