#!/usr/bin/env bash
# docs/gamma.svg: the bias of a frame's mean against γ.
set -euo pipefail
cd "$(dirname "$0")/.."
python benchmarks/gamma.py
