"""The loss lines of a run: to log.jsonl, the trackers and the progress bar."""

import time
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from blip2ft.training.run import append_line


class Log:
    """A line every so many steps; its speed is that of the steps alone.

    What lies between `step` and the next `begin`, evaluations and checkpoints, isn't counted.
    """

    def __init__(self, path: Path, every: int, accelerator: Accelerator, bar: tqdm) -> None:
        self.path, self.every, self.accelerator, self.bar = path, every, accelerator, bar
        self.samples, self.seconds, self.since = 0, 0.0, 0.0

    def begin(self) -> None:
        """A step begins: its batches are waited for."""
        self.since = time.perf_counter()

    def step(self, step: int, loss: float, rate: float, norm: Tensor | None, samples: int) -> None:
        """A step has ended; samples: those of all processes."""
        self.seconds += time.perf_counter() - self.since
        self.samples += samples
        self.bar.update()
        if step % self.every and step != self.bar.total:
            return
        speed = self.samples / self.seconds
        self.samples, self.seconds = 0, 0.0
        values = {"loss": loss, "lr": rate, "images_per_second": round(speed, 2)}
        if norm is not None:
            values["grad_norm"] = float(norm)
        if self.accelerator.is_main_process:
            append_line(self.path, {"step": step, **values})
        self.accelerator.log(values, step=step)
        self.bar.set_postfix_str(f"loss {loss:.3f}, lr {rate:.1e}, {speed:.1f} images/s")
