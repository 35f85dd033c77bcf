"""What a run keeps as it goes: checkpoints, how far it is, its best step, and why it stopped."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from blip2ft.errors import Interrupted
from blip2ft.training.background import Writer
from blip2ft.training.checkpoint import (
    load_checkpoint,
    random_state,
    save_checkpoint,
    set_random_state,
)
from blip2ft.training.milestones import Milestones, check_metric
from blip2ft.training.resources import Meter
from blip2ft.training.run import note_stop
from blip2ft.training.signals import Signals, StopNow
from blip2ft.training.stored import best_whole, checkpoint_of, remove_old, rewrite_state


@dataclass
class Progress:
    """What a checkpoint says of the run.

    evaluated: the last step with its evaluation done, and score what that gave; nonfinite: steps
    that were left out.
    """

    step: int = 0
    evaluated: int = 0
    best_step: int = 0
    best: float | None = None
    score: float | None = None
    nonfinite: int = 0


class Keeper:
    """Saves, evaluates and stops a run; every process calls alike.

    trained: model, optimizer and schedule, as `save_checkpoint` takes them; signals, writer:
    entered; meter: what the run has spent is saved with it.
    """

    def __init__(
        self,
        run: Path,
        milestones: Milestones,
        accelerator: Accelerator,
        trained: Mapping[str, Any],
        signals: Signals,
        writer: Writer,
        meter: Meter | None = None,
    ) -> None:
        self.run, self.checkpoints = run, run / "checkpoints"
        self.milestones, self.accelerator, self.trained = milestones, accelerator, trained
        self.signals, self.writer, self.meter = signals, writer, meter
        self.progress = Progress()

    def resume(self, checkpoint: Path) -> None:
        """Put everything back as it was at a checkpoint."""
        state = load_checkpoint(checkpoint, accelerator=self.accelerator, **self.trained)
        self.progress = progress = Progress(**state)
        kept = best_whole(self.checkpoints, progress.best_step, progress.best, self.accelerator)
        progress.best_step, progress.best = kept

    def save(self) -> Path:
        """Begin to save the run at its step; what was begun before is waited for."""
        keep = (self.milestones.keep_checkpoints, self.progress.best_step)
        if self.meter is not None:
            self.meter.save(self.progress.step)
        return save_checkpoint(
            self.checkpoints,
            accelerator=self.accelerator,
            **self.trained,
            state=asdict(self.progress),
            writer=self.writer,
            then=partial(remove_old, self.checkpoints, *keep),
        )

    def save_and_wait(self) -> Path:
        """Save, and return when all is written; ValueError on all where it can't be."""
        saved = self.save()
        self.writer.settle(self.accelerator)
        return saved

    def stopped(self, number: int) -> Interrupted:
        """What to raise for the signal `number`, at a step that is saved."""
        saved = checkpoint_of(self.checkpoints, self.progress.step)
        if self.accelerator.is_main_process:
            note_stop(self.run, saved, number)
        return Interrupted(saved, number)

    def stop_if_told(self) -> None:
        """Stop all for a signal that one of them got, after a step that is saved or being saved."""
        local = torch.tensor([self.signals.received], device=self.accelerator.device)
        if number := int(self.accelerator.gather(local).max()):
            self.writer.settle(self.accelerator)
            raise self.stopped(number)

    def reach(self, steps: int, evaluate: Callable[[int], Mapping[str, float]]) -> None:
        """Do what is due behind a step of a run of so many `steps`: save, evaluate.

        What an evaluation draws at random is put back. Raises Interrupted where a signal came.
        """
        step, milestones = self.progress.step, self.milestones
        due = step % milestones.evaluate_every == 0 or step == steps
        due = due and step > self.progress.evaluated
        if due or step % milestones.checkpoint_every == 0:
            self.save()
        if not due:
            return
        self.stop_if_told()
        state = random_state()
        try:
            with self.signals.at_once():
                scores = evaluate(step)
        except (Exception, StopNow) as error:
            if self.signals.received:  # to the whole group: it ended the evaluation's workers too
                self.writer.check()
                raise self.stopped(self.signals.received) from error
            raise
        set_random_state(state)
        self._note(scores)

    def end(self) -> int:
        """Wait until all is written; the best step of those that can be read, 0 if none was due.

        Raises ValueError where none can be, and Interrupted for a last signal.
        """
        self.writer.settle(self.accelerator)
        self.stop_if_told()
        progress = self.progress
        best, _ = best_whole(self.checkpoints, progress.best_step, progress.best, self.accelerator)
        if progress.best_step and not best:
            raise ValueError(
                f"no checkpoint in {self.checkpoints} is whole, so the run has no result"
            )
        return best

    def _note(self, scores: Mapping[str, float]) -> None:
        """Let the checkpoint of this step know its evaluation."""
        progress, metric = self.progress, self.milestones.best_metric
        check_metric(metric, scores)
        progress.score, progress.evaluated = scores[metric], progress.step
        if progress.best is None or progress.score > progress.best:
            progress.best, progress.best_step = progress.score, progress.step
        if self.meter is not None:
            self.meter.save(progress.step)  # with the evaluation
        self.writer.wait()
        if self.accelerator.is_main_process and not self.writer.failed:
            rewrite_state(checkpoint_of(self.checkpoints, progress.step), asdict(progress))
            remove_old(self.checkpoints, self.milestones.keep_checkpoints, progress.best_step)
