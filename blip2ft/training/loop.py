"""The one training loop: it knows a task's loss, count and evaluation, and never names a task."""

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from blip2ft.bars import progress_bar
from blip2ft.errors import plain_message
from blip2ft.models.parts import set_train_mode
from blip2ft.training.background import Writer
from blip2ft.training.keeping import Keeper
from blip2ft.training.log import Log
from blip2ft.training.milestones import Milestones
from blip2ft.training.nonfinite import FILE as NONFINITE
from blip2ft.training.nonfinite import explain_step, last_finite, way_on
from blip2ft.training.optimizer import base_rate
from blip2ft.training.resources import Meter
from blip2ft.training.run import drop_lines_after
from blip2ft.training.sharded import whole_tensor
from blip2ft.training.signals import Signals
from blip2ft.training.watch import Watch

Batch = dict[str, Any]

logger = logging.getLogger(__name__)


def train(
    *,
    accelerator: Accelerator,
    run: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
    batches: Callable[[int, int], Iterator[Batch]],
    accumulation: int,
    steps: int,
    loss: Callable[[nn.Module, Batch], Tensor],
    count: Callable[[Batch], float],
    evaluate: Callable[[int], Mapping[str, float]],
    origins: Callable[[int], Sequence[Sequence[str]]],
    milestones: Milestones,
    prepare: Callable[[nn.Module, list[Batch]], list[Batch]] | None = None,
    max_grad_norm: float | None = 1.0,
    resume_from: Path | None = None,
    meter: Meter | None = None,
) -> int:
    """Train for `steps` optimizer steps; return the one with the best metric.

    model, optimizer: as `accelerator.prepare` returned them; schedule: not prepared.
    batches(first, last): the micro-batches of those steps, `accumulation` a step.
    loss(model, batch): the sum of the batch's losses; count(batch): how many they are. The
      gradient is that of the mean over the whole step, all processes and micro-batches, so that
      how a batch is split changes nothing.
    evaluate(step): scores on the validation split; called on every process, after a checkpoint is
      saved; what it draws at random is put back. One that failed is done again after a resume.
    origins(step): where the samples of this process come from in the step after `step`, of each of
      its micro-batches, for messages.
    prepare(model, batches): the micro-batches of a step, on the device, as the losses shall get
      them; called before the step's first forward, and after their losses are counted.
    meter: counts the steps' time and samples, and is saved with each checkpoint.

    Raises Interrupted after Ctrl-C, SIGTERM or SIGUSR1, and ValueError for what the loader fails
    with, both with the state saved; ValueError, a step later, for a checkpoint that can't be saved.
    A step whose loss or gradient isn't finite changes nothing, and is told and logged with the part
    and the samples that it comes from; ValueError for one more of them than
    `milestones.max_nonfinite`, with the state of before saved if the step before was finite. Under
    fp16 infinite gradients belong to its scaling, which leaves such steps out by itself: they are
    neither told nor counted.
    """
    bare = accelerator.unwrap_model(model)
    trained = {"model": model, "optimizer": optimizer, "schedule": schedule}
    signals, writer = Signals(), Writer()
    keeper = Keeper(run, milestones, accelerator, trained, signals, writer, meter)
    if resume_from is not None:
        keeper.resume(resume_from)
    progress = keeper.progress
    if accelerator.is_main_process:
        for name in ("log.jsonl", "metrics.jsonl", NONFINITE):
            drop_lines_after(run / name, progress.step)

    def evaluation(step: int) -> Mapping[str, float]:
        scores = evaluate(step)
        set_train_mode(bare)
        return scores

    def leave_out(batches: Sequence[Batch], mean_loss: float) -> None:
        told = explain_step(
            accelerator=accelerator,
            run=run,
            step=progress.step + 1,
            model=bare,
            batches=[_to_device(batch, accelerator.device) for batch in batches],
            loss=loss,
            mean_loss=mean_loss,
            samples=origins(progress.step),
        )
        optimizer.zero_grad()  # of shards, which a forward alone leaves gathered, not the model's
        if progress.nonfinite >= milestones.max_nonfinite:
            writer.settle(accelerator)  # what is being written is named too
            finite = last_finite(run, progress.step, accelerator)
            saved = keeper.save_and_wait() if finite and finite == progress.step else None
            before = f" Left out before it: {progress.nonfinite}." if progress.nonfinite else ""
            raise ValueError(f"{told}.{before} {way_on(keeper.checkpoints, finite, saved)}")
        progress.nonfinite += 1
        if accelerator.is_main_process:
            logger.warning("%s. The step is left out", told)

    watch = Watch(bare, accelerator)
    main = accelerator.is_main_process
    bar = progress_bar(total=steps, initial=progress.step, desc="train", hidden=not main)
    log = Log(run / "log.jsonl", milestones.log_every, accelerator, bar)
    # workers start here: torch sets its handler of their end before `Signals` takes it away
    micro_batches = _without_end(batches(progress.step, steps))
    set_train_mode(bare)
    with bar, signals, writer:
        if progress.step:
            keeper.reach(steps, evaluation)  # an evaluation that failed
        while progress.step < steps:
            log.begin()
            broken, step_batches = None, []
            try:
                step_batches = [next(micro_batches) for _ in range(accumulation)]
            except Exception as error:
                # a signal to the whole group ends the workers as well
                broken = None if signals.received else error
            log.loaded()
            # one process's signal, broken sample or failure to save stops all, at the same step
            local = [sum(map(count, step_batches)), signals.received, broken is not None]
            own = torch.tensor([[*map(float, local), writer.failed]], device=accelerator.device)
            total, number, broke, unsaved = _shared(accelerator.gather(own))
            if unsaved:
                writer.settle(accelerator)
            if number or broke:
                saved = keeper.save_and_wait()
                if broken is not None:
                    raise ValueError(_mend_and_go_on(broken, saved)) from broken
                if broke:
                    raise ValueError(
                        f"another process can't go on, and says why; the state is saved in {saved}"
                    )
                raise keeper.stopped(int(number))

            samples = sum(map(_rows, step_batches)) * accelerator.num_processes
            if prepare is not None:
                on_device = [_to_device(batch, accelerator.device) for batch in step_batches]
                step_batches = prepare(model, on_device)
            mean_loss = _backward(accelerator, model, step_batches, loss, total)
            norm, rate = math.nan, base_rate(optimizer)
            if math.isfinite(mean_loss):
                norm = _clip(accelerator, model, max_grad_norm)
            # fp16's scaler leaves a step with such a gradient out by itself
            if math.isfinite(norm) or (accelerator.scaler is not None and math.isfinite(mean_loss)):
                watch.gradients()
                optimizer.step()
                optimizer.zero_grad()
                watch.step(progress.step + 1, mean_loss)
            else:
                leave_out(step_batches, mean_loss)
            with warnings.catch_warnings():
                # of a step that was left out, the optimizer knows nothing
                warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler\.step")
                schedule.step()
            progress.step += 1
            seconds = log.step(progress.step, mean_loss, rate, norm, samples)
            if meter is not None:
                meter.trained(seconds, samples)
            keeper.reach(steps, evaluation)
        return keeper.end()


def _shared(rows: Tensor) -> tuple[float, float, float, float]:
    """Of all processes' rows: the sum of the first column, and the largest of each other."""
    first, *others = rows.unbind(1)
    return (float(first.sum()), *(float(column.max()) for column in others))  # type: ignore[return-value]


def _backward(
    accelerator: Accelerator,
    model: nn.Module,
    batches: Sequence[Batch],
    loss: Callable[[nn.Module, Batch], Tensor],
    total: float,
) -> float:
    """The mean of the step's `total` losses over all processes; its gradient is left behind."""
    step_loss = torch.zeros((), device=accelerator.device)
    for i, batch in enumerate(batches):
        last = i == len(batches) - 1
        # processes exchange gradients at the last micro-batch only
        with nullcontext() if last else accelerator.no_sync(model):
            # gradients are averaged over processes, hence their number
            scaled = loss(model, _to_device(batch, accelerator.device))
            scaled = scaled * (accelerator.num_processes / total)
            accelerator.backward(scaled)
        step_loss += scaled.detach()
    return float(accelerator.reduce(step_loss, "mean"))


def _clip(accelerator: Accelerator, model: nn.Module, max_grad_norm: float | None) -> float:
    """The gradient's norm over all parameters, of before it is clipped."""
    most = math.inf if max_grad_norm is None else max_grad_norm
    return float(whole_tensor(accelerator.clip_grad_norm_(model.parameters(), most)))


def _to_device(batch: Batch, device: torch.device) -> Batch:
    return {
        key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for key, value in batch.items()
    }


def _rows(batch: Batch) -> int:
    return len(next(value for value in batch.values() if isinstance(value, Tensor)))


def _mend_and_go_on(broken: Exception, saved: Path) -> str:
    killed = str(broken).startswith("DataLoader worker")
    hint = "lower data.workers if memory ran out" if killed else "mend the data"
    return (
        f"{plain_message(broken)} (The state is saved in {saved}: {hint} and go on with --resume.)"
    )


def _without_end(batches: Iterator[Any]) -> Iterator[Any]:
    yield from batches
    raise RuntimeError("the loader ended before the run did")
