"""The real loop on a tiny model and a few photos; by itself, one process of several.

torchrun --standalone --nproc_per_node 2 tests/training/small_run.py MODEL PHOTOS RUN STEPS
"""

import os
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from blip2ft.data.batches import text_layout
from blip2ft.data.images import transforms_for
from blip2ft.data.loading import load_batches
from blip2ft.data.order import Order
from blip2ft.data.records import read_records
from blip2ft.models.load import load_captioner
from blip2ft.models.parts import set_trainable
from blip2ft.tasks.caption import caption_loss, caption_pairs, count_labels
from blip2ft.training.checkpoint import save_checkpoint
from blip2ft.training.loop import train
from blip2ft.training.milestones import Milestones
from blip2ft.training.optimizer import make_optimizer, make_schedule
from blip2ft.training.resources import Meter
from blip2ft.training.run import append_line
from blip2ft.training.stored import list_checkpoints

PAPER = {"vision": "full", "qformer": "full", "projection": "full", "language": "frozen"}


def turn_off_dropout(model: nn.Module) -> None:
    """Some modules keep dropout as a module, others as a number."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def small_run(
    model_folder: Path,
    photos: Path,
    run: Path,
    *,
    steps: int = 3,
    batch_size: int = 8,
    micro: int = 8,
    workers: int = 0,
    adamw: bool = True,
    kind: str = "adamw",
    dropout: bool = True,
    loss: Callable = caption_loss,
    evaluate: Callable = lambda step: {"cider": float(step)},
    prepare: Callable | None = None,
    watch: Callable = lambda model: None,
    best_metric: str = "cider",
    every: int = 2,
    keep: int = 9,
    max_nonfinite: int = 0,
    resume_from: Path | None = None,
    meter: Meter | None = None,
) -> tuple[nn.Module, int]:
    """Train as the recipe does; return the model and the best step.

    adamw: else plain SGD, under which rounding stays rounding: Adam makes a whole step of it where
    the gradient is zero but for rounding, as for the keys' biases.
    """
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(1 + accelerator.process_index)
    model, processor = load_captioner(model_folder)
    set_trainable(model, PAPER)
    if not dropout:
        turn_off_dropout(model)
    watch(model)
    layout = text_layout(model, processor)
    augment, _ = transforms_for(processor.image_processor, scale=(0.5, 1.0), flip=True)
    samples = caption_pairs(read_records(photos / "captions.csv"), augment, "a photo of", 0)
    order = Order(len(samples), batch_size, seed=0)
    world = accelerator.num_processes
    print(f"process {accelerator.process_index} of {world}")

    def batches(first: int, last: int) -> DataLoader:
        keys = order.micro_batches(
            first, last, rank=accelerator.process_index, world_size=world, size=micro
        )
        return load_batches(samples, keys, layout.collate, workers=workers)

    def origins(step: int) -> list[list[str]]:
        keys = order.micro_batches(
            step, step + 1, rank=accelerator.process_index, world_size=world, size=micro
        )
        return [[samples.origin(key) for key in some] for some in keys]

    if adamw:
        optimizer = make_optimizer(model, lr=1e-3, kind=kind)
    else:
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    schedule = make_schedule(optimizer, steps=6, warmup_steps=2, lr=1e-3)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    run.mkdir(parents=True, exist_ok=True)
    best = train(
        accelerator=accelerator,
        run=run,
        model=prepared,
        optimizer=optimizer,
        schedule=schedule,
        batches=batches,
        accumulation=order.accumulation(world, micro),
        steps=steps,
        loss=loss,
        count=count_labels,
        evaluate=evaluate,
        origins=origins,
        milestones=Milestones(every, every, 1, keep, best_metric, max_nonfinite),
        prepare=prepare,
        resume_from=resume_from,
        meter=meter,
    )
    save_checkpoint(
        run / "end",
        accelerator=accelerator,
        model=prepared,
        optimizer=optimizer,
        schedule=schedule,
        state={"step": steps},
    )
    return model, best


def remembering(path: Path) -> Callable:
    """`caption_loss`, which leaves a line for each batch: its samples, as the model sees them."""

    def loss(model: nn.Module, batch: dict) -> torch.Tensor:
        pixels = [sha256(image.numpy().tobytes()).hexdigest() for image in batch["pixel_values"]]
        append_line(path, {"seen": pixels})
        return caption_loss(model, batch)

    return loss


if __name__ == "__main__":
    torch.set_num_threads(1)
    model_folder, photos, run = map(Path, sys.argv[1:4])
    found = list_checkpoints(run / "checkpoints")
    small_run(
        model_folder,
        photos,
        run,
        steps=int(sys.argv[4]),
        micro=2,
        adamw=False,
        dropout=False,
        loss=remembering(run / f"seen-{os.environ['RANK']}.jsonl"),
        resume_from=found[-1] if found else None,
    )
