"""What training takes its samples from, and the share of each step that a process loads."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch.utils.data import Dataset

from blip2ft.counted import counted
from blip2ft.data.broken import Apart, Broken, NeverEmpty
from blip2ft.data.entries import BadRows
from blip2ft.data.loading import load_batches
from blip2ft.data.order import Key, Order
from blip2ft.data.questions import Question, read_questions
from blip2ft.data.records import Record, read_records
from blip2ft.data.same_shards import check_same
from blip2ft.data.stream import Stream, open_stream
from blip2ft.training.broken import BrokenLog
from blip2ft.whole import write_text

STREAM, SAMPLES = "stream.json", "samples.json"  # in a run's folder
AROUND = 16  # samples that are tried in the place of a broken one


def open_training(
    train: Mapping[str, Any] | None, stream: Mapping[str, Any] | None, *, skip: bool = False
) -> Sequence[Record] | Stream:
    """The records of `train`, read with `read_records`, or the shards of `stream`.

    skip: images that aren't there are no error yet: they are left out like others that can't be
      read.

    Raises ValueError unless exactly one of them is given, and what the readers raise.
    """
    if (train is None) == (stream is None):
        given = "both" if train is not None else "neither"
        raise ValueError(
            f"data.train and data.stream are {given} given: training takes one of them, records "
            "that are listed (data.train.source) or shards (data.stream.sources)"
        )
    if stream is None:
        with _images_alone(skip):
            return read_records(**train, check_images=not skip)  # type: ignore[arg-type]
    return open_stream(**{key: stream[key] for key in stream if key != "max_broken"})


def open_questions(sources: Iterable[Mapping[str, Any]], *, skip: bool = False) -> list[Question]:
    """The questions of all `sources`, read with `read_questions`; skip: as of `open_training`."""
    with _images_alone(skip):
        return [q for source in sources for q in read_questions(**source, check_images=not skip)]


@contextmanager
def _images_alone(skip: bool) -> Iterator[None]:
    """With `skip`, an error of rows says that they aren't left out."""
    try:
        yield
    except BadRows as error:
        if not skip:
            raise
        raise BadRows(
            f"{error}\ndata.on_bad_image skip leaves out images that can't be read, and no other "
            "rows: correct or remove these"
        ) from error


@dataclass(frozen=True)
class Feed:
    """Samples in their order, shared by the processes and cut into micro-batches.

    Args:
        samples: The training samples, by `Key`.
        order: Which comes when.
        collate: Makes a batch of samples.
        accelerator: Knows the processes.
        size: Samples that a process holds at once; what a step lacks is accumulated.
        workers: Processes that load, of each process.
        stream: Where the samples come from, if it is shards.
        max_broken: Samples that are `Broken` are left out, of all no more than this share; None
            where there are none, as an image that can't be read is an error.
        length: Of a sample's text, to pad less: see `Order.micro_batches`.
    """

    samples: Any
    order: Order
    collate: Callable[[Sequence[Any]], dict[str, Any]]
    accelerator: Accelerator
    size: int
    workers: int
    stream: Stream | None = None
    max_broken: float | None = None
    length: Callable[[Key], int] | None = None

    def steps(self, epochs: int, max_steps: int | None) -> int:
        """The length of the run: `epochs`, but at most `max_steps`; of a stream, exactly those.

        Raises ValueError where a source that isn't to repeat runs dry before.
        """
        if self.stream is not None and max_steps is not None:
            steps = max_steps
        else:
            steps = min(self.order.steps(epochs), max_steps or self.order.steps(epochs))
        if self.stream is not None:
            self.stream.check_supply(steps * self.order.batch_size, self.order.seed)
        return steps

    @property
    def accumulation(self) -> int:
        """Micro-batches of a process in one step; ValueError where a step can't be shared out."""
        return self.order.accumulation(self.accelerator.num_processes, self.size)

    def told(self, steps: int) -> str:
        """How the processes share a step, in words."""
        return (
            f"{counted(steps, 'step')} of {self.order.batch_size}: "
            f"{counted(self.accelerator.num_processes, 'process')} x "
            f"{counted(self.accumulation, 'micro-batch')} of {self.size}"
        )

    def first(self, count: int) -> list[Any]:
        """The first samples of the run that can be read."""
        found = (self.samples[key] for key in self.order.batch(0))
        readable = (sample for sample in found if not isinstance(sample, Broken))
        few = [sample for sample, _ in zip(readable, range(count), strict=False)]
        if not few:
            raise ValueError(
                "none of the first step's samples can be read; blip2ft check names what is wrong "
                "with each"
            )
        return few

    def origins(self, step: int) -> list[list[str]]:
        """Where this process's samples of global step `step`, from 0, come from, by micro-batch."""
        keys = self.order.micro_batches(
            step,
            step + 1,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            size=self.size,
            length=self.length,
        )
        return [[self.samples.origin(key) for key in some] for some in keys]

    def batches(self, run: Path, first: int, last: int) -> Iterator[dict[str, Any]]:
        """This process's micro-batches of steps `first` to before `last`; workers start now."""
        processes = self.accelerator.num_processes
        samples: Dataset = self.samples
        collate = self.collate
        keys = self.order.micro_batches(
            first,
            last,
            rank=self.accelerator.process_index,
            world_size=processes,
            size=self.size,
            length=self.length,
        )
        if self.stream is not None:
            self._check_stream(run, self.stream.description, first)
            keys = self.stream.fetch_ahead(keys, processes)
        else:
            self._check_samples(run, first)
        if self.max_broken is not None:
            nearby = self._next if self.stream is None else self.stream.nearby
            samples, collate = NeverEmpty(samples, nearby), Apart(collate)
        pinned = self.accelerator.device.type == "cuda"
        loader = load_batches(samples, keys, collate, workers=self.workers, pin_memory=pinned)
        if self.max_broken is None:
            return iter(loader)
        log = BrokenLog(
            run,
            self.accelerator,
            max_broken=self.max_broken,
            batch_size=self.order.batch_size,
        )
        return log.watch(loader, first_step=first, accumulation=self.accumulation)

    def _next(self, key: Key) -> Iterator[Key]:
        """What to try in the place of a sample that is broken: those after it."""
        for step in range(1, min(1 + AROUND, self.order.length)):
            yield Key(key.epoch, (key.sample + step) % self.order.length)

    def _check_samples(self, run: Path, first: int) -> None:
        """Keep how many samples there are, or check that a run that goes on has as many.

        Their order is one of so many: with one more or less, some would be lost and others come
        twice.
        """
        path, now = run / SAMPLES, self.order.length
        if first and path.is_file():
            then = json.loads(path.read_text(encoding="utf-8"))["samples"]
            if then != now:
                raise ValueError(
                    f"{run} was begun with {counted(then, 'training sample')}, and now there "
                    f"{'is' if now == 1 else 'are'} {now:,}: its order is one of those of before. "
                    "Go on with the rows of before (data.on_bad_image skip leaves out images that "
                    "can't be read), or begin another run with --output FOLDER"
                )
        elif self.accelerator.is_main_process:
            write_text(path, json.dumps({"samples": now}) + "\n")

    def _check_stream(self, run: Path, now: dict[str, Any], first: int) -> None:
        """Keep what the stream consists of, or check that a run that goes on has the same."""
        path = run / STREAM
        if first and path.is_file():
            check_same(json.loads(path.read_text(encoding="utf-8")), now, str(run))
        elif self.accelerator.is_main_process:
            write_text(path, json.dumps(now) + "\n")


def make_feed(
    source: Sequence[Any] | Stream,
    samples: Any,
    collate: Callable[[Sequence[Any]], dict[str, Any]],
    accelerator: Accelerator,
    *,
    batch_size: int,
    micro_batch_size: int,
    workers: int,
    seed: int,
    max_broken: float | None = None,
    length: Callable[[Key], int] | None = None,
) -> Feed:
    """The feed of the training samples made of `source`; see `Feed` and `Order`.

    max_broken: see `broken_share`.
    length: of a sample's text, where the samples of a step don't see each other; not of a stream,
      whose texts nobody knows before they are read.
    """
    sizes = (micro_batch_size, workers)
    if isinstance(source, Stream):
        order = source.order(batch_size, seed)
        return Feed(samples, order, collate, accelerator, *sizes, source, max_broken or 0.0)
    order = Order(len(samples), batch_size, seed)
    return Feed(samples, order, collate, accelerator, *sizes, max_broken=max_broken, length=length)


def broken_share(data: Mapping[str, Any]) -> float | None:
    """The share of samples that may be left out, as the `data` group of a run's settings says.

    None where an image that can't be read stops the run.
    """
    if data.get("stream") is not None:
        return data["stream"]["max_broken"]
    return data["max_bad_images"] if data["on_bad_image"] == "skip" else None


def size_of(source: Sequence[Record] | Stream, samples: Sized) -> str:
    """How much there is to learn from, in words."""
    if isinstance(source, Stream):
        return f"{counted(len(source), 'sample')} in {counted(len(source.sizes), 'shard')}"
    return f"{counted(len(source), 'image')}, {counted(len(samples), 'caption')}"
