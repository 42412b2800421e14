#!/usr/bin/env bash
# docs/performance.md, Activations.
set -euo pipefail
cd "$(dirname "$0")/.."
python benchmarks/activations.py
