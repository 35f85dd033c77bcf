"""The real loop on two processes, which are forked here, of a model of one layer."""

import multiprocessing
import os
import socket
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

import blip2ft.training.loop
from blip2ft.errors import Interrupted
from blip2ft.training.loop import train
from blip2ft.training.milestones import Milestones

Own = Callable[[int, Accelerator], dict[str, Any]]


def train_on_two(run: Path, own: Own) -> list[str]:
    """What ends 20 steps on each: kind and words of the error, of a signal with its number.

    own: arguments of `train` for the process of a number, such as other batches.
    """
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=_one, args=(rank, run, port, own)) for rank in (0, 1)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
        if process.is_alive():
            process.kill()
    assert [process.exitcode for process in both] == [0, 0]
    return [(run / f"told-{rank}").read_text() for rank in (0, 1)]


def _one(rank: int, run: Path, port: int, own: Own) -> None:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    os.environ |= dict(zip(names, map(str, (rank, rank, 2, "127.0.0.1", port)), strict=True))
    AcceleratorState._reset_state(True)
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    blip2ft.training.loop.set_train_mode = nn.Module.train  # of a model of one part
    model = nn.Sequential(OrderedDict(language_projection=nn.Linear(2, 1)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    model, optimizer = accelerator.prepare(model, optimizer)
    usual = {
        "batches": lambda first, last: iter([{"x": torch.ones(2, 2)}] * 20),
        "count": lambda batch: 2,
        "milestones": Milestones(99, 99, best_metric="score"),
    }
    try:
        train(
            accelerator=accelerator,
            run=run,
            model=model,
            optimizer=optimizer,
            schedule=schedule,
            accumulation=1,
            steps=20,
            loss=lambda model, batch: model(batch["x"]).sum(),
            evaluate=lambda step: {"score": 0.0},
            origins=lambda step: [],
            **usual | own(rank, accelerator),
        )
    except (ValueError, Interrupted) as error:
        number = f" {error.signal_number}" if isinstance(error, Interrupted) else ""
        (run / f"told-{rank}").write_text(f"{type(error).__name__}{number}: {error}")
    os._exit(0)  # not to end what the test's own process had begun
