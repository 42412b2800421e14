#!/usr/bin/env bash
# Figures of what a camera uncovers (docs/log.md, The picture's edges). PHOTOGRAPHS: a folder of photographs.
set -euo pipefail
cd "$(dirname "$0")/.."
python benchmarks/edges.py "$PHOTOGRAPHS" --pixels --moves 1
