"""The same image twice, or in two splits: by its bytes, and by its looks."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from blip2ft.audit.alike import first_alike
from blip2ft.audit.balance import SCORING
from blip2ft.audit.contents import Contents
from blip2ft.audit.findings import Finding
from blip2ft.audit.looks import Look, face_pixels

Origins = Mapping[str, Mapping[int, str]]  # by split, where each of its images is named first


def copy_findings(contents: Contents, looks: Sequence[Look]) -> Iterator[Finding]:
    """Copies within a split, and images that two splits share.

    looks: what was seen of each of the contents' images; those that can't be used are left out.
    """
    origins = first_origins(contents)
    same: dict[str, list[int]] = defaultdict(list)
    for number, look in enumerate(looks):
        if not look.fault:
            same[look.digest].append(number)
    shared = set()
    for numbers in same.values():
        for found in _same_content(contents, origins, numbers):
            if found.kind in ("leak", "shared"):
                shared.add((found.split, found.picture))
            yield found
    firsts = [numbers[0] for numbers in same.values()]
    # what is of one colour looks like much else, and is told of anyway
    faces = [n for n in firsts if not looks[n].blank]
    if len(faces) > 1:
        groups = {number: same[looks[number].digest] for number in faces}
        yield from _look_alike(contents, origins, looks, groups, shared)


def first_origins(contents: Contents) -> Origins:
    """By split, where each of its images is named first."""
    found: dict[str, dict[int, str]] = {name: {} for name in contents.splits}
    for name, items in contents.splits.items():
        for item in items:
            if item.picture is not None:
                found[name].setdefault(item.picture, item.origin)
    return found


def _same_content(
    contents: Contents, origins: Origins, numbers: Sequence[int]
) -> Iterator[Finding]:
    """What to say of images with the same bytes, of which there may be one in several splits."""
    inside = {
        split: here
        for split, named in origins.items()
        if (here := [number for number in numbers if number in named])
    }
    for split, here in inside.items():
        for number in here[1:]:
            yield _pair(contents, "duplicate", origins, split, number, split, here[0])
    splits = list(inside)
    for place, split in enumerate(splits):
        if split in SCORING and "train" in inside:
            yield _pair(
                contents, "leak", origins, split, inside[split][0], "train", inside["train"][0]
            )
        elif place and "train" not in (split, splits[0]):
            other = splits[0]
            yield _pair(
                contents, "shared", origins, split, inside[split][0], other, inside[other][0]
            )


def _look_alike(
    contents: Contents,
    origins: Origins,
    looks: Sequence[Look],
    groups: Mapping[int, Sequence[int]],
    shared: set[tuple[str, int | None]],
) -> Iterator[Finding]:
    """Images that look the same; groups: for the first of each content all that have it."""
    numbers = list(groups)
    faces = np.stack([face_pixels(looks[number]) for number in numbers])
    # for each split, one image of every content in it
    members = {
        split: [next((n for n in groups[number] if n in named), -1) for number in numbers]
        for split, named in origins.items()
    }
    inside = {split: np.array(found) >= 0 for split, found in members.items()}
    across = {
        f"{split} {other}": (split, other)
        for split in members
        for other in members
        if split in SCORING and other == "train"
    }
    found = first_alike(faces, inside, across)
    for name, firsts in found.items():
        split, among = across.get(name, (name, name))
        kind = "near-leak" if name in across else "near-duplicate"
        for place in np.flatnonzero(firsts >= 0):
            number, other = members[split][place], members[among][firsts[place]]
            if (split, number) not in shared or kind == "near-duplicate":
                yield _pair(contents, kind, origins, split, number, among, other)


def _pair(
    contents: Contents,
    kind: str,
    origins: Origins,
    split: str,
    number: int,
    among: str,
    other: int,
) -> Finding:
    beside = contents.pictures[other].name
    where = origins[among][other]
    told = f"{beside} ({where})" if beside != where else where
    return Finding(
        kind,
        split,
        origins[split][number],
        f"in {among}: {told}" if among != split else told,
        contents.pictures[number].name,
        picture=number,
        other=other,
    )
