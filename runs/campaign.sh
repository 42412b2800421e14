#!/usr/bin/env bash
# docs/testing.md: all bad input of the campaign.
set -euo pipefail
cd "$(dirname "$0")/.."
python tests/campaign/campaign.py
