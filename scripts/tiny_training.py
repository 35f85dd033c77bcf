"""How the parts of the embedded models train: one optimizer, one cycle, one line of report."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from blip2ft.whole import whole_folder


def fit(
    parameters: Iterable[nn.Parameter],
    losses: Callable[[], dict[str, Tensor]],
    steps: int,
    rate: float,
    name: str,
) -> dict[str, float]:
    """Minimise the sum of `losses()` for `steps` steps of AdamW; returns the last 100's means."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.squeeze().ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in trained if p.squeeze().ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.1)
    start, sums, count = time.perf_counter(), dict[str, float](), 0
    for number in range(steps):
        found = losses()
        torch.stack(list(found.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if number % 100 == 0:
            sums, count = dict.fromkeys(found, 0.0), 0
        sums, count = {key: sums[key] + value.item() for key, value in found.items()}, count + 1
        if (number + 1) % 100 == 0 or number + 1 == steps:
            told = "  ".join(f"{key} {value / count:.3f}" for key, value in sums.items())
            seconds = time.perf_counter() - start
            print(f"{name} {number + 1}/{steps}  {told}  {seconds:.0f} s", flush=True)
    return {f"{key}_loss": round(value / count, 4) for key, value in sums.items()}


def part_parser(description: str | None, steps: int) -> argparse.ArgumentParser:
    """The arguments of every script that makes a part."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=steps, help=f"default {steps}")
    return parser


def make_part(options: argparse.Namespace, make: Callable[[Path], dict[str, Any]]) -> int:
    """Make the folder `options.out`, unless it is there; it is there whole or not at all.

    make(out): trains the part, saves it in `out` and returns its metrics, which go to metrics.json
    there.
    """
    if options.out.exists():
        made = json.loads((options.out / "metrics.json").read_text(encoding="utf-8"))
        if (made["seed"], made["steps"]) != (options.seed, options.steps):
            print(
                f"error: {options.out} was made with seed {made['seed']} and {made['steps']} "
                "steps; remove it, or choose another folder",
                file=sys.stderr,
            )
            return 2
        print(f"{options.out} is there already")
        return 0
    if options.steps < 1 or options.seed < 0:
        print("error: --steps must be at least 1, --seed at least 0", file=sys.stderr)
        return 2
    torch.manual_seed(options.seed)
    start = time.perf_counter()
    try:
        with whole_folder(options.out) as partial:
            metrics = {"seed": options.seed, "steps": options.steps, **make(partial)}
            metrics["seconds"] = round(time.perf_counter() - start)
            text = json.dumps(metrics, indent=2) + "\n"
            (partial / "metrics.json").write_text(text, encoding="utf-8")
    except KeyboardInterrupt:
        print("\ninterrupted; nothing was written", file=sys.stderr)
        return 130
    print(text, end="")
    return 0
