#!/usr/bin/env bash
# Figures and pictures of docs/interpolation.md. CLIPS: a folder of videos.
set -euo pipefail
cd "$(dirname "$0")/.."
python benchmarks/interpolation.py "$CLIPS"/*
python benchmarks/hard_cases.py docs/hard-cases.jpg
