"""Gather what each step of the embedded models' making measured into one file.

    python scripts/gather_tiny_metrics.py runs/tiny data/tiny-blip2/metrics.json

Run by make_tiny_blip2.sh at its end.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow.parquet
import yaml

PARTS = ("vision", "bert", "opt", "t5")
RUNS = ("stage1", "stage2-opt", "stage2-t5", "no-stage1")


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def gather_run(run: Path) -> dict[str, Any]:
    """Length, losses and scores of one run of a recipe; captions by the number of things."""
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    log, scores = read_lines(run / "log.jsonl"), read_lines(run / "metrics.jsonl")
    best = max(row["step"] for row in scores if row["split"] == "test")
    found: dict[str, Any] = {
        "steps": log[-1]["step"],
        "best_step": best,
        "batch_size": config["train"]["batch_size"],
        "lr": config["optimizer"]["lr"],
        "seed": config["seed"],
        "last_loss": round(log[-1]["loss"], 4),
    }
    for name, step in (("before", 0), ("after", best)):
        row = next(r for r in scores if r["split"] == "test" and r["step"] == step)
        found[name] = {k: round(v, 4) for k, v in row.items() if k not in ("step", "split")}
    if "cider" in found["after"]:
        found["right"] = count_right(run, config, best)
        found["curve"] = {
            row["step"]: {name: round(row[name], 4) for name in ("cider", "exact_match")}
            for row in scores
            if row["split"] == "validation"
        }
    return found


def count_right(run: Path, config: dict[str, Any], step: int) -> dict[str, float]:
    """How often a caption is one of its scene's true ones, by the number of things in the scene.

    Such a caption names every thing and the relation between them right.
    """
    scenes = pyarrow.parquet.read_table(config["data"]["test"]["source"], columns=["things"])
    things = scenes.column("things").to_pylist()
    rows = read_lines(run / "predictions" / f"test-{step:08d}.jsonl")
    right = defaultdict(list)
    for row, names in zip(rows, things, strict=True):
        right[len(names)].append(row["caption"] in row["references"])
    return {f"{n} things": round(sum(r) / len(r), 4) for n, r in sorted(right.items())}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, help="where make_tiny_blip2.sh keeps its steps")
    parser.add_argument("out", type=Path, help="file to write")
    options = parser.parse_args()
    missing = [n for n in (*PARTS, *RUNS) if not (options.runs / n).is_dir()]
    if missing:
        print(f"error: {options.runs} lacks {', '.join(missing)}: its making hasn't ended")
        return 2
    gathered = {
        name: json.loads((options.runs / name / "metrics.json").read_text(encoding="utf-8"))
        for name in PARTS
    }
    gathered |= {name: gather_run(options.runs / name) for name in RUNS}
    options.out.write_text(json.dumps(gathered, indent=2) + "\n", encoding="utf-8")
    print(f"{options.out}: metrics of {', '.join(gathered)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
