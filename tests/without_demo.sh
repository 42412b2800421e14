#!/usr/bin/env bash
# The paper's package stands alone: its tests pass where the bundled models and their folder are deleted.
set -euo pipefail
cd "$(dirname "$0")/.."
python="$PWD/.venv/bin/python"
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git ls-files -z | grep -zv '^microcinema_core/demo/\|^models/\|^tests/demo/' | xargs -0 cp --parents -t "$copy"
cd "$copy"
"$python" -m pytest tests/core
