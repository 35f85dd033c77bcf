"""All images looked at, by several processes, each decoding one at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch.utils.data import Dataset

from blip2ft.audit.looks import Look, look_at
from blip2ft.audit.reading import Picture
from blip2ft.data.loading import load_batches

AT_ONCE = 32  # images that a process looks at before it tells


@dataclass(frozen=True)
class _Pictures(Dataset):
    pictures: Sequence[Picture]

    def __getitem__(self, number: int) -> Look:
        return look_at(self.pictures[number].image)


def look_at_all(
    pictures: Sequence[Picture], numbers: Sequence[int], workers: int
) -> Iterator[tuple[list[int], list[Look]]]:
    """What is seen of the images of these numbers, a few at a time.

    workers: processes; 0 looks in this one. An image at which a process dies is a fault of its own,
    and the others are looked at all the same.
    """
    todo = list(numbers)
    at_once = AT_ONCE
    while todo:
        batches = [todo[i : i + at_once] for i in range(0, len(todo), at_once)]
        if at_once == 1:
            batches = batches[:AT_ONCE]
        done = 0
        try:
            few = workers if at_once > 1 else 1
            for looks in load_batches(_Pictures(pictures), batches, list, workers=few):
                yield batches[done], looks
                done += 1
        except RuntimeError as error:
            if "worker" not in str(error) or not workers:
                raise
            if at_once == 1:  # one process, one image: it is this one
                why = "the process that opened it died; is it damaged, or memory short?"
                yield batches[done], [Look("unreadable", why)]
                done += 1
            at_once = 1
        else:
            at_once = AT_ONCE
        todo = todo[sum(len(batch) for batch in batches[:done]) :]
