#!/usr/bin/env bash
# The clip of README.md, the thumbnails in workflows/ and the pictures in web/docs/.
set -euo pipefail
cd "$(dirname "$0")/.."
python tools/pictures.py
