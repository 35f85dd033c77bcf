#!/usr/bin/env bash
# Fine-tune the embedded model on the embedded data, offline, on a CPU: install, data, training,
# scores before and after, export. Running it again keeps earlier runs and makes a new one.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh ""

python scripts/make_scenes.py --out data/scenes

number=1
while [ -e "runs/demo-$number" ]; do number=$((number + 1)); done
run="runs/demo-$number"

accelerate launch --quiet --num_processes 1 --num_machines 1 --mixed_precision no \
    --dynamo_backend no --num_cpu_threads_per_process 2 \
    recipes/caption.py --config recipes/caption/tiny.yaml --output "$run" || {
    status=$?
    [ ! -f "$run/config.yaml" ] || echo "to go on with it: .venv/bin/python recipes/caption.py" \
        "--config recipes/caption/tiny.yaml --output $run --resume" >&2
    exit "$status"
}
blip2ft export "$run" --out "$run/model"

cat <<END

settings, scores, captions and checkpoints   $run
a model that stock transformers loads        $run/model
caption your own pictures with it            .venv/bin/blip2ft caption PICTURE --model $run/model
END
