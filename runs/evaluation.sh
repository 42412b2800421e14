#!/usr/bin/env bash
# README.md, Figures of the bundled models.
set -euo pipefail
cd "$(dirname "$0")/.."
microcinema evaluate
