"""The loss lines of a run: to log.jsonl, the trackers and the progress bar."""

import logging
import math
import time
from pathlib import Path

from accelerate import Accelerator
from tqdm import tqdm

from blip2ft.training.run import append_line

logger = logging.getLogger(__name__)

PAUSE = 60.0  # seconds between lines where there is no bar, as in a scheduler's file
STARVED = 0.2  # a fifth: the step would be a quarter longer than it has to be


class Log:
    """A line every so many steps; its speed is that of the steps alone.

    What lies between `step` and the next `begin`, evaluations and checkpoints, isn't counted.
    `waiting` is the share of the steps' time in which the main process waited for its batches;
    from `STARVED` on it is told with what can be done.
    """

    def __init__(self, path: Path, every: int, accelerator: Accelerator, bar: tqdm) -> None:
        self.path, self.every, self.accelerator, self.bar = path, every, accelerator, bar
        self.samples, self.seconds, self.waited, self.since = 0, 0.0, 0.0, 0.0
        self.told = False
        self.said = time.perf_counter()

    def begin(self) -> None:
        """A step begins: its batches are waited for."""
        self.since = time.perf_counter()

    def loaded(self) -> None:
        """The step has its batches."""
        self.waited += time.perf_counter() - self.since

    def step(self, step: int, loss: float, rate: float, norm: float, samples: int) -> float:
        """A step has ended, after so many seconds; samples: those of all processes."""
        took = time.perf_counter() - self.since
        self.seconds += took
        self.samples += samples
        self.bar.update()
        if step % self.every and step != self.bar.total:
            return took
        speed, waiting = self.samples / self.seconds, self.waited / self.seconds
        self.samples, self.seconds, self.waited = 0, 0.0, 0.0
        values = {"loss": loss, "lr": rate, "images_per_second": round(speed, 2)}
        values |= {"waiting": round(waiting, 3), "grad_norm": norm}
        if self.accelerator.is_main_process:
            # JSON has no NaN
            kept = {name: v if math.isfinite(v) else None for name, v in values.items()}
            append_line(self.path, {"step": step, **kept})
        self.accelerator.log(values, step=step)
        told = f"loss {loss:.3f}, lr {rate:.1e}, {speed:.1f} images/s"
        self.bar.set_postfix_str(told)
        main = self.accelerator.is_main_process
        if main and self.bar.disable and time.perf_counter() - self.said > PAUSE:
            self.said = time.perf_counter()
            logger.info("step %d of %d: %s", step, self.bar.total, told)
        # the first line has the workers' start in it
        if main and waiting > STARVED and step > self.every and not self.told:
            self.told = True
            self.bar.clear()
            logger.warning(
                "%.0f %% of the time goes by waiting for images: raise data.workers, where there "
                "are cores for them, or keep smaller image files",
                100 * waiting,
            )
        return took
