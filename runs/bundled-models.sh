#!/usr/bin/env bash
# The bundled models from nothing, on two cores. Killed, it goes on where it was when it is started again. Each stage
# tells its time, its log (runs/NAME/log.jsonl) how far it came; the last lines hold both files against their floors.
set -euo pipefail
cd "$(dirname "$0")/.."
for model in demo-autoencoder demo-base; do
    time torchrun --master-addr 127.0.0.1 --master-port "${PORT:-29500}" --nproc-per-node 2 \
        -m microcinema_core train "configs/$model.toml"
done
time microcinema train configs/demo-interpolation.toml
time microcinema evaluate runs/demo-base/demo-base.safetensors
time microcinema evaluate runs/demo-interpolation/demo-interpolation.safetensors
