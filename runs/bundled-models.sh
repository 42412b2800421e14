#!/usr/bin/env bash
# The bundled models from nothing. Killed, it goes on where it was when it is started again.
# The bundled demo-base had more steps and repairs on its way (docs/log.md).
set -euo pipefail
cd "$(dirname "$0")/.."
for model in demo-autoencoder demo-base demo-interpolation; do
    microcinema train "configs/$model.toml"
done
echo "runs/demo-base/demo-base.safetensors runs/demo-interpolation/demo-interpolation.safetensors"
