"""The one training loop: it knows a task's loss, count and evaluation, and never names a task."""

import logging
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from blip2ft.errors import Interrupted, plain_message
from blip2ft.models.parts import set_train_mode
from blip2ft.training.checkpoint import load_checkpoint, remove_old, save_checkpoint
from blip2ft.training.preflight import name_nonfinite_part
from blip2ft.training.run import append_line, drop_lines_after

logger = logging.getLogger(__name__)

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Milestones:
    """When, in steps, to evaluate, to save and to log, and what to keep."""

    evaluate_every: int
    checkpoint_every: int
    log_every: int = 10
    keep_checkpoints: int = 2
    best_metric: str = "cider"


def train(
    *,
    accelerator: Accelerator,
    run: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    batches: Callable[[int, int], DataLoader],
    accumulation: int,
    steps: int,
    loss: Callable[[nn.Module, Batch], Tensor],
    count: Callable[[Batch], int],
    evaluate: Callable[[int], Mapping[str, float]],
    milestones: Milestones,
    max_grad_norm: float | None = 1.0,
    resume_from: Path | None = None,
) -> int:
    """Train for `steps` optimizer steps; return the one with the best metric.

    model, optimizer: as `accelerator.prepare` returned them; schedule: not prepared.
    batches(first, last): a loader of the micro-batches of those steps, `accumulation` a step.
    loss(model, batch): the sum of the batch's losses; count(batch): how many they are. The
      gradient is that of the mean over the whole step, all processes and micro-batches, so that
      how a batch is split changes nothing.
    evaluate(step): scores on the validation split; called on every process.

    Raises Interrupted after Ctrl-C or SIGTERM, with the state saved, and ValueError for a loss
    that isn't finite, naming the part that it comes from, or a gradient that isn't.
    """
    step, best, best_step = 0, -math.inf, 0
    checkpoints = run / "checkpoints"
    if resume_from is not None:
        state = load_checkpoint(
            resume_from,
            accelerator=accelerator,
            model=model,
            optimizer=optimizer,
            schedule=schedule,
        )
        step, best_step = state["step"], state["best_step"]
        best = state["best"] if best_step else best
        if accelerator.is_main_process:
            for name in ("log.jsonl", "metrics.jsonl"):
                drop_lines_after(run / name, step)

    def save() -> Path:
        state = {"step": step, "best_step": best_step, "best": best if best_step else None}
        path = save_checkpoint(
            checkpoints,
            accelerator=accelerator,
            model=model,
            optimizer=optimizer,
            schedule=schedule,
            state=state,
        )
        if accelerator.is_main_process:
            remove_old(checkpoints, milestones.keep_checkpoints, best_step)
        return path

    bar = tqdm(total=steps, initial=step, desc="train", disable=not accelerator.is_main_process)
    log = _Log(run / "log.jsonl", milestones.log_every, accelerator, bar)
    micro_batches = _without_end(batches(step, steps))
    set_train_mode(accelerator.unwrap_model(model))
    with bar, _Signals() as signals:
        while step < steps:
            broken, step_batches = None, []
            try:
                step_batches = [next(micro_batches) for _ in range(accumulation)]
            except ValueError as error:
                broken = error
            except RuntimeError:
                # a signal to the whole group ends the workers as well
                if not signals.received:
                    raise
            # one process's signal or broken sample stops all, at the same step
            stop = signals.received or broken is not None
            local = torch.tensor([sum(map(count, step_batches)), stop], device=accelerator.device)
            total, stop = accelerator.reduce(local, "sum").tolist()
            if stop:
                saved = save()
                if broken is not None:
                    raise ValueError(
                        f"{plain_message(broken)} (The state is saved in {saved}: mend the data "
                        "and go on with --train.resume true.)"
                    ) from broken
                raise Interrupted(saved, signals.number)

            step_loss = torch.zeros((), device=accelerator.device)
            for i, batch in enumerate(step_batches):
                batch = {k: v.to(accelerator.device, non_blocking=True) for k, v in batch.items()}
                last = i == len(step_batches) - 1
                # processes exchange gradients at the last micro-batch only
                with nullcontext() if last else accelerator.no_sync(model):
                    # gradients are averaged over processes, hence their number
                    scaled = loss(model, batch) * (accelerator.num_processes / total)
                    accelerator.backward(scaled)
                step_loss += scaled.detach()
            mean_loss = float(accelerator.reduce(step_loss, "mean"))
            if not math.isfinite(mean_loss):
                where = _where_nonfinite(accelerator, model, step_batches, loss)
                raise ValueError(f"step {step + 1}: the loss is {mean_loss}; {where}")
            norm = None
            if max_grad_norm is not None:
                norm = accelerator.clip_grad_norm_(model.parameters(), max_grad_norm)
                # under fp16 the scaler leaves such a step out and goes on
                if accelerator.scaler is None and not math.isfinite(norm):
                    raise ValueError(
                        f"step {step + 1}: the loss is {mean_loss:.4f}, but the gradient's norm is "
                        f"{float(norm)}; lower optimizer.lr, or set model.precision to fp32"
                    )
            rate = max(group["lr"] for group in optimizer.param_groups)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step += 1
            samples = sum(len(next(iter(batch.values()))) for batch in step_batches)
            log.step(step, mean_loss, rate, norm, samples * accelerator.num_processes)

            if step % milestones.evaluate_every == 0 or step == steps:
                scores = evaluate(step)
                set_train_mode(accelerator.unwrap_model(model))
                if milestones.best_metric not in scores:
                    raise ValueError(
                        f"train.best_metric is {milestones.best_metric!r}, which the evaluation "
                        f"doesn't give; allowed are {', '.join(scores)}"
                    )
                if best_step == 0 or scores[milestones.best_metric] > best:
                    best, best_step = scores[milestones.best_metric], step
                    save()
            if step % milestones.checkpoint_every == 0 or step == steps:
                save()
    return best_step


class _Log:
    """Loss lines: to log.jsonl, the trackers and the progress bar."""

    def __init__(self, path: Path, every: int, accelerator: Accelerator, bar: tqdm) -> None:
        self.path, self.every, self.accelerator, self.bar = path, every, accelerator, bar
        self.samples, self.since = 0, time.perf_counter()

    def step(self, step: int, loss: float, rate: float, norm: Tensor | None, samples: int) -> None:
        self.samples += samples
        self.bar.update()
        if step % self.every and step != self.bar.total:
            return
        now = time.perf_counter()
        speed = self.samples / (now - self.since)
        self.samples, self.since = 0, now
        values = {"loss": loss, "lr": rate, "images_per_second": round(speed, 2)}
        if norm is not None:
            values["grad_norm"] = float(norm)
        if self.accelerator.is_main_process:
            append_line(self.path, {"step": step, **values})
        self.accelerator.log(values, step=step)
        self.bar.set_postfix_str(f"loss {loss:.3f}, lr {rate:.1e}, {speed:.1f} images/s")


class _Signals:
    """Remember Ctrl-C and SIGTERM until the step is done; a second one quits at once."""

    def __init__(self) -> None:
        self.received, self.number = 0, signal.SIGINT

    def __enter__(self) -> "_Signals":
        self.old = {n: signal.signal(n, self._handle) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.old.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received, self.number = 1, signal.Signals(number)
        logger.warning("stopping after this step; once more to quit without saving")


def _where_nonfinite(
    accelerator: Accelerator,
    model: nn.Module,
    batches: Sequence[Batch],
    loss: Callable[[nn.Module, Batch], Tensor],
) -> str:
    bare = accelerator.unwrap_model(model)
    for batch in batches:
        on_device = {key: value.to(accelerator.device) for key, value in batch.items()}
        where = name_nonfinite_part(bare, lambda m, b=on_device: loss(m, b), accelerator)  # type: ignore[misc]
        if where:
            return where
    return "another process's batch did it, or dropout made the difference"


def _without_end(loader: DataLoader) -> Iterator[Any]:
    yield from loader
    raise RuntimeError("the loader ended before the run did")
