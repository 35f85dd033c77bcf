"""Plot stage 2 with and without stage 1, from the metrics of the embedded model: figure 5 in small.

python scripts/plot_stage1.py data/tiny-blip2/metrics.json docs/stage1.svg
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib
from matplotlib import pyplot

LINES = {"stage2-opt": "after stage 1", "no-stage1": "without stage 1"}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("metrics", type=Path, help="metrics.json of data/tiny-blip2")
    parser.add_argument("out", type=Path, help="picture to write, .svg or .png")
    options = parser.parse_args()
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "blip2ft"  # the same picture for the same numbers
    metrics = json.loads(options.metrics.read_text(encoding="utf-8"))
    figure, axes = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
    for run, label in LINES.items():
        curve = metrics[run]["curve"]
        steps = [int(step) for step in curve]
        right = [100 * scores["exact_match"] for scores in curve.values()]
        axes.plot(steps, right, marker="o", markersize=4, label=label)
    axes.set_xlabel("steps of stage 2")
    axes.set_ylabel("captions right to the letter, %")
    axes.set_ylim(0, 100)
    axes.grid(alpha=0.3)
    axes.legend()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out, metadata={"Date": None} if options.out.suffix == ".svg" else None)
    print(options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
