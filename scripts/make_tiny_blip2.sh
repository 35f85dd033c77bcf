#!/usr/bin/env bash
# Build the embedded models from the embedded drawings alone: data/tiny-blip2, its stage-1 twin
# data/tiny-retriever, and a twin with an encoder-decoder (runs/tiny/stage2-t5-model). Some hours on
# 2 cores. Every step is kept in runs/tiny: after a stop, run it again and it goes on.
#
# STEPS=2 OUT=/tmp/rehearsal bash scripts/make_tiny_blip2.sh    rehearses it; data/ stays as it is
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh ""
# glibc hands large buffers back to the system at once, and a third of the time goes by in page
# faults; these stop it
export MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=2147483647

out="${OUT:-runs/tiny}"
scenes=30000
few_steps=() few_train_steps=() tolerance=()
if [ -n "${STEPS:-}" ]; then
    scenes=200
    few_steps=(--steps "$STEPS")
    few_train_steps=(--train.max_steps "$STEPS" --train.evaluate_every "$STEPS")
    tolerance=(--tolerance 1)  # what has hardly learned anything rounds badly to bf16
fi

# recipe RECIPE CONFIG FOLDER [OPTIONS]: run a recipe to its end, from where it stopped
recipe() {
    [ -f "$3/adapter/blip2ft.json" ] && return
    local resume=false
    [ -f "$3/config.yaml" ] && resume=true
    python "recipes/$1.py" --config "recipes/pretrain/$2.yaml" --output "$3" \
        --data.stream.sources "[{source: '$out/shards/*.tar'}]" \
        --train.resume "$resume" "${few_train_steps[@]}" "${@:4}"
}

# assemble FOLDER OPTIONS: put a start together, once
assemble() {
    [ -e "$1" ] || blip2ft assemble --out "$1" "${@:2}"
}

# export_run RUN FOLDER: merge a run, once
export_run() {
    [ -e "$2" ] || blip2ft export "$1" --out "$2" --dtype bf16 "${tolerance[@]}"
}

# Pictures: what is trained on comes as shards, as web data does. Every other scene is another order
# of the one before, and shards are small, so that many of a batch of 128 have such a twin in it:
# the negatives by which matching learns left from right.
python scripts/make_scenes.py --out data/scenes
python scripts/make_scenes.py --out "$out/scenes" --styles openmoji --seed 1 --twins \
    --train "$scenes" --validation 1 --test 1
blip2ft shard "$out/scenes/openmoji/train.parquet" --out "$out/shards" --size 64

# Parts that the paper takes ready-made.
python scripts/make_tiny_vision.py "$out/vision" --scenes "$scenes" "${few_steps[@]}"
python scripts/make_tiny_bert.py "$out/bert" "${few_steps[@]}"
python scripts/make_tiny_language.py "$out/opt" --kind opt "${few_steps[@]}"
python scripts/make_tiny_language.py "$out/t5" --kind t5 "${few_steps[@]}"

# Stage 1: represent images by text.
qformer=(--queries 12 --cross-attention-every 1 --feature-size 64)
assemble "$out/stage1-start" --vision "$out/vision" --bert "$out/bert" "${qformer[@]}"
recipe retrieval stage1_tiny "$out/stage1" --model.name "$out/stage1-start"
export_run "$out/stage1" "$out/stage1-model"

# Stage 2: speak to a frozen language model.
for language in opt t5; do
    assemble "$out/stage2-$language-start" \
        --stage1 "$out/stage1-model" --language "$out/$language"
    recipe caption stage2_tiny "$out/stage2-$language" \
        --model.name "$out/stage2-$language-start"
    export_run "$out/stage2-$language" "$out/stage2-$language-model"
done

# The paper's figure 5 in small: stage 2 without stage 1, from the same BERT, for as many steps.
assemble "$out/no-stage1-start" --vision "$out/vision" --bert "$out/bert" "${qformer[@]}" \
    --language "$out/opt"
recipe caption stage2_tiny "$out/no-stage1" --model.name "$out/no-stage1-start"

python scripts/gather_tiny_metrics.py "$out" "$out/metrics.json"
if [ -z "${STEPS:-}" ]; then
    cp "$out/stage1-model"/* "$out/metrics.json" data/tiny-retriever/
    cp "$out/stage2-opt-model"/* "$out/metrics.json" data/tiny-blip2/
    sed -i "s|\"$PWD/|\"|" data/tiny-*/blip2ft.json  # where they were made is nobody's business
fi
