"""Samples that couldn't be read: counted and logged as training comes by them, up to a limit."""

import logging
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from blip2ft.data.broken import Broken
from blip2ft.training.run import append_line, drop_lines_after, read_lines

FILE = "broken.jsonl"
TOLD = 10  # samples named on the console; of further ones every hundredth is

logger = logging.getLogger(__name__)


class BrokenLog:
    """Lines of broken.jsonl: the step that a sample was meant for, where it was, and what is wrong.

    Each process counts its own; a run that goes on counts what the log has, shared out evenly.

    max_broken: the share of samples, from 0 to 1, above which the run stops.
    """

    def __init__(
        self, run: Path, accelerator: Accelerator, *, max_broken: float, batch_size: int
    ) -> None:
        if not 0 <= max_broken <= 1:
            raise ValueError(f"max_broken is {max_broken}: allowed is a share from 0 to 1")
        self.path, self.accelerator = run / FILE, accelerator
        self.max_broken, self.batch_size = max_broken, batch_size
        self.broken, self.asked = 0.0, 0.0
        self.told: set[str] = set()

    def watch(
        self, batches: Iterable[dict[str, Any]], *, first_step: int, accumulation: int
    ) -> Iterator[dict[str, Any]]:
        """The batches of `Apart` without what is broken, which is logged when a batch is asked for.

        Lines of steps after `first_step` are dropped first; every process must call, as the loader
        of a run begins.

        Raises ValueError, at a batch, where more than `max_broken` of all samples are broken.
        """
        begun = iter(batches)
        logged = [row for row in read_lines(self.path) if row["step"] <= first_step]
        processes = self.accelerator.num_processes
        self.broken = len(logged) / processes
        self.told = {row["origin"] for row in logged}
        self.asked = first_step * self.batch_size / processes
        self.accelerator.wait_for_everyone()  # all have read
        if self.accelerator.is_main_process:
            drop_lines_after(self.path, first_step)
        self.accelerator.wait_for_everyone()
        return self._watch(begun, first_step, accumulation)

    def _watch(
        self, batches: Iterator[dict[str, Any]], first_step: int, accumulation: int
    ) -> Iterator[dict[str, Any]]:
        for number, batch in enumerate(batches):
            self.asked += batch.pop("asked")
            for sample in batch.pop("broken"):
                self.broken += 1
                line = {"step": first_step + number // accumulation + 1, "origin": sample.origin}
                append_line(self.path, line | {"reason": sample.reason})
                self._tell(sample)
            if self.broken > allowed(self.asked, self.max_broken):
                raise ValueError(
                    f"{self.broken:.0f} of {self.asked:.0f} samples can't be read, more than "
                    f"the share of {self.max_broken:g} that may; {self.path} names them. Mend the "
                    "data, or raise data.max_bad_images, of a stream data.stream.max_broken"
                )
            yield batch

    def _tell(self, sample: Broken) -> None:
        """Each once, in whichever epoch it comes again; of many some."""
        if sample.origin in self.told:
            return
        self.told.add(sample.origin)
        if len(self.told) <= TOLD or not len(self.told) % 100:
            logger.warning("left out: %s: %s", sample.origin, sample.reason)


def allowed(asked: float, max_broken: float) -> float:
    """How many of `asked` samples may be broken before the share is surely above `max_broken`.

    Three standard deviations and three samples more than the share, so that a few among the first
    don't stop a run, but all of the first do; none at all where the share is 0.
    """
    expected = asked * max_broken
    return expected + 3 * math.sqrt(expected) + 3 if max_broken else 0.0
