#!/usr/bin/env bash
# The models of docs/evidence.md, and its tables: small models in pairs, with λ = 0.03 and without, everything else equal, and one
# on a schedule that ends in pure noise; JOBS at a time on a core each. Killed, it goes on where it was.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-runs/evidence}
microcinema cache configs/evidence.toml --out "$out/cache"
cache=$(echo "$out"/cache/*/)
small=""
large="--set model.override.network.model_channels=48 --set model.override.network.head_channels=24"
eps="microcinema train"
v="microcinema train --set model.override.parameterization=v"
zero="python benchmarks/train_zero_snr.py --set model.override.parameterization=v"
ends="microcinema train --set model.override.network.condition=ends --set data.text_drop=1"
for run in small-eps-0 large-eps-0 small-v-0 small-zero-0 small-ends-0 small-eps-1 small-eps-2 large-eps-1 large-eps-2; do
    IFS=- read -r size kind seed <<< "$run"
    steps=4000
    [ "$size-$kind" = small-eps ] && steps=6000
    for lambda in 0.03 0; do
        [ "$kind-$lambda" = zero-0.03 ] && continue
        echo "${!kind} configs/evidence.toml --out $out/$size-$kind-$lambda-$seed ${!size} --set train.steps=$steps" \
            "--set model.override.lambda_=$lambda --set train.seed=$seed --set data.scenes=0 --set data.cache=$cache"
    done
done | xargs -P "${JOBS:-2}" -L 1 env
python benchmarks/figures.py "$out"
