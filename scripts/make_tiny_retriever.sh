#!/usr/bin/env bash
# Make data/tiny-retriever, the stage-1 twin of data/tiny-blip2: about 30 minutes on 2 cores.
set -euo pipefail
cd "$(dirname "$0")/.."
source .venv/bin/activate
python scripts/make_tiny_retriever.py runs/tiny-retriever-start
python recipes/retrieval.py --config recipes/retrieval/tiny-start.yaml
blip2ft export runs/tiny-retriever --out data/tiny-retriever --dtype bf16
