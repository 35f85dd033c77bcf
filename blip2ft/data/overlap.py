"""Images that two splits share, whose scores flatter."""

from collections.abc import Sequence
from pathlib import Path

from blip2ft.data.records import Record
from blip2ft.data.stream import Stream


def overlap_warning(
    train: Sequence[Record] | Stream, other: Sequence[Record], split: str
) -> str | None:
    """What to say of files that both splits name, with their number and one of them; else None.

    Images inside a data file, such as Parquet's or a shard, aren't compared.
    """
    if isinstance(train, Stream):
        return None
    learned = _files(train)
    shared = [path for path in _files(other) if path in learned]
    if not shared:
        return None
    return (
        f"warning: {len(shared)} of the {len(other)} {split} images are training images too, such "
        f"as {shared[0]}: scores on them flatter; give each image to one split"
    )


def _files(records: Sequence[Record]) -> dict[Path, None]:
    return {r.image.resolve(): None for r in records if isinstance(r.image, Path)}
