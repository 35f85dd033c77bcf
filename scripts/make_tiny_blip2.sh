#!/usr/bin/env bash
# Build the embedded models from the embedded drawings alone: data/tiny-blip2, its stage-1 twin
# data/tiny-retriever, and runs/tiny/t5, a twin with an encoder-decoder. Hours on 2 cores.
# Every step is kept in runs/tiny: after a stop, run it again and it goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh ""
# glibc hands large buffers back to the system at once, and a third of the time goes by in page
# faults; these stop it
export MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=2147483647

out=runs/tiny

# recipe RECIPE CONFIG FOLDER [OPTIONS]: run a recipe to its end, from where it stopped
recipe() {
    [ -d "$3/adapter" ] && return
    local resume=false
    [ -e "$3" ] && resume=true
    python "recipes/$1.py" --config "recipes/pretrain/$2.yaml" --output "$3" \
        --train.resume "$resume" "${@:4}"
}

# assemble FOLDER OPTIONS: put a start together, once
assemble() {
    [ -e "$1" ] || blip2ft assemble --out "$1" "${@:2}"
}

# export_run RUN FOLDER: merge a run, once
export_run() {
    [ -e "$2" ] || blip2ft export "$1" --out "$2" --dtype bf16
}

# Pictures: what is trained on comes as shards, as web data does.
python scripts/make_scenes.py --out data/scenes
python scripts/make_scenes.py --out "$out/scenes" --styles openmoji --seed 1 \
    --train 30000 --validation 1 --test 1
blip2ft shard "$out/scenes/openmoji/train.parquet" --out "$out/shards"

# Parts that the paper takes ready-made.
python scripts/make_tiny_vision.py "$out/vision"
python scripts/make_tiny_bert.py "$out/bert"
python scripts/make_tiny_language.py "$out/opt" --kind opt
python scripts/make_tiny_language.py "$out/t5" --kind t5

# Stage 1: represent images by text.
assemble "$out/stage1-start" --vision "$out/vision" --bert "$out/bert" \
    --queries 12 --cross-attention-every 1 --feature-size 64
recipe retrieval stage1_tiny "$out/stage1"
export_run "$out/stage1" "$out/stage1-model"

# Stage 2: speak to a frozen language model.
for language in opt t5; do
    assemble "$out/stage2-$language-start" \
        --stage1 "$out/stage1-model" --language "$out/$language"
    recipe caption stage2_tiny "$out/stage2-$language" \
        --model.name "$out/stage2-$language-start"
    export_run "$out/stage2-$language" "$out/stage2-$language-model"
done

# The paper's figure 5 in small: stage 2 without stage 1, from the same BERT and with the same budget.
assemble "$out/no-stage1-start" --vision "$out/vision" --bert "$out/bert" \
    --queries 12 --cross-attention-every 1 --language "$out/opt"
recipe caption stage2_tiny "$out/no-stage1" --model.name "$out/no-stage1-start"

python scripts/gather_tiny_metrics.py "$out" data/tiny-blip2/metrics.json
for twin in "stage1-model tiny-retriever" "stage2-opt-model tiny-blip2"; do
    set -- $twin
    cp "$out/$1"/* "data/$2/"
done
