#!/usr/bin/env bash
# Format, lint, types and tests; further words go to pytest (bash scripts/test.sh -m slow).
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh "[dev]"

ruff format --check .
ruff check .
mypy
python scripts/make_scenes.py --out data/scenes
pytest -n auto --dist loadfile "$@"
