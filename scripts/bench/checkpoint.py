"""How long a training step waits for a checkpoint: written in the background, and at once.

    python scripts/bench/checkpoint.py --megabytes 500

Both write the same trained weights and AdamW's averages, with checksums, flushed to the disk. Of
the background's, `waits` is until the next step may begin, and `slows` is by how much longer the
steps take while it is written, together. `ratio` is the peer's wait over ours, `with_slowing` over
both of ours.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from machine import describe_machine
from torch import nn

from blip2ft.training.background import Writer
from blip2ft.training.checkpoint import save_checkpoint
from blip2ft.training.optimizer import make_schedule
from blip2ft.training.stored import REST, WEIGHTS, damage_of

WIDTH = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=500, help="of weights and averages")
    parser.add_argument("--rows", type=int, default=256, help="of a step's batch")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on the disk that is meant; default: /tmp")
    options = parser.parse_args()

    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    torch.manual_seed(0)
    layers = max(1, round(options.megabytes * 1e6 / (3 * 4 * WIDTH * WIDTH)))
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers)))
    model.to(accelerator.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    schedule = make_schedule(optimizer, steps=10**6, warmup_steps=1, lr=1e-5)
    rows = torch.randn(options.rows, WIDTH, device=accelerator.device)
    trained = {
        "accelerator": accelerator,
        "model": model,
        "optimizer": optimizer,
        "schedule": schedule,
    }

    def step() -> float:
        start = time.perf_counter()
        model(rows).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    step()
    results: dict[str, list[float]] = {"peer": [], "waits": [], "slows": [], "written": []}
    for number in range(options.repeats):
        with tempfile.TemporaryDirectory(dir=options.folder) as folder, Writer() as writer:
            alone = min(step() for _ in range(3))
            start = time.perf_counter()
            at_once = save_checkpoint(Path(folder, "at-once"), **trained, state={"step": number})
            results["peer"].append(time.perf_counter() - start)
            start = time.perf_counter()
            behind = save_checkpoint(
                Path(folder, "behind"), **trained, state={"step": number}, writer=writer
            )
            results["waits"].append(time.perf_counter() - start)
            taken = []
            while writer.thread is not None and writer.thread.is_alive():
                taken.append(step())
            results["written"].append(time.perf_counter() - start)
            results["slows"].append(sum(taken) - alone * len(taken))
            assert not damage_of(at_once)
            assert not damage_of(behind)
            same = (at_once / WEIGHTS).read_bytes() == (behind / WEIGHTS).read_bytes()
            same = same and (at_once / REST).read_bytes() == (behind / REST).read_bytes()
            assert same, "the steps that ran meanwhile changed what was saved"
    medians = {name: sorted(values)[len(values) // 2] for name, values in results.items()}
    print(f"weights and averages: {layers * 3 * 4 * WIDTH * WIDTH / 1e6:.0f} MB")
    print(f"a step alone: {alone:.2f} s")
    print(f"written at once: the step waits {medians['peer']:.2f} s")
    print(
        f"in the background: it waits {medians['waits']:.2f} s, and those of the "
        f"{medians['written']:.2f} s of writing take {medians['slows']:.2f} s longer together"
    )
    print(describe_machine(accelerator.device.type))
    both = medians["waits"] + max(0.0, medians["slows"])
    ratios = {"ratio": medians["peer"] / medians["waits"], "with_slowing": medians["peer"] / both}
    result = ratios | {"max_difference": 0, **medians}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
