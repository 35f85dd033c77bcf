"""Images that look the same, found among very many.

An image is known by its face, a picture of 9 x 8 pixels: our perceptual hash. Two look the same
where these pixels hardly differ, and make the same pattern. Bits, as the package ImageHash computes
them, say less: of drawings on plain ground most are equal, or noise. The search compares 24 numbers
an image by products of matrices, of images that differ much in the main direction not even these,
and then the faces of those that come near. It is exact, but where more than 100 come near to one
image, as frames of a film do: see `first_alike`.
"""

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np

MEAN = 6.0  # mean difference of two faces that are the same, in levels of 255
MOST = 32  # and of each pixel
LIKENESS = 0.9  # correlation of their pixels: small things on like ground aren't the same
NUMBERS = 24  # of each image that are compared first
BLOCK = 1024  # images compared at once with as many others
PAIRS = 1 << 15  # pairs whose faces are in memory at once
COMPARED = 100  # images that come near, with which one is compared in full

Choose = Callable[[np.ndarray, np.ndarray], np.ndarray]


def alike_pairs(
    faces: np.ndarray, waiting: np.ndarray | None = None, choose: Choose | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The pairs that look the same, each once, as two arrays of numbers, in portions.

    faces: (N, 216) uint8; waiting: (N,) bool, the images of which pairs are still looked for, all
    without it; choose: which pairs are compared in full, as a mask, all without it. It is given
    their smaller and their larger numbers, in a block the nearest first, and may change `waiting`.
    """
    # of faces that differ by so much in all, no more than that in any few directions
    reach = math.sqrt(MEAN * MOST * faces.shape[1]) * 1.001
    few = main_directions(faces)
    order = np.argsort(few[:, 0], kind="stable")
    few = few[order]
    patterns = patterns_of(faces)
    squares = (few**2).sum(axis=1)
    for start in range(0, len(few), BLOCK):
        rows = slice(start, start + BLOCK)
        last = int(np.searchsorted(few[:, 0], few[rows, 0].max() + reach, side="right"))
        for begin in range(start, last, BLOCK):
            columns = slice(begin, min(begin + BLOCK, last))
            apart = squares[rows, None] + squares[columns] - 2 * few[rows] @ few[columns].T
            near = apart <= reach**2
            if waiting is not None:
                near &= waiting[order[rows], None] | waiting[order[columns]]
            first, second = np.nonzero(near)
            once = first + start < second + begin
            first, second = first[once], second[once]
            nearest = np.argsort(apart[first, second])
            one, other = order[first[nearest] + start], order[second[nearest] + begin]
            one, other = np.minimum(one, other), np.maximum(one, other)
            if choose is not None:
                chosen = choose(one, other)
                one, other = one[chosen], other[chosen]
            yield from _same(faces, patterns, one, other)


def main_directions(faces: np.ndarray) -> np.ndarray:
    """Faces by the directions in which they differ most, the first first: (N, 24) float32.

    Distances in them are at most those of the faces.
    """
    centred = faces.astype(np.float32)
    centred -= centred.mean(axis=0)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    return centred @ vectors[:, ::-1][:, :NUMBERS]


def patterns_of(faces: np.ndarray) -> np.ndarray:
    """Faces without their mean colour, and of length 1: (N, 216) float32; plain ones are 0.

    The product of two is their correlation.
    """
    centred = faces.reshape(len(faces), -1, 3).astype(np.float32)
    centred -= centred.mean(axis=1, keepdims=True)
    flat = centred.reshape(len(faces), -1)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1.0)


def _same(
    faces: np.ndarray, patterns: np.ndarray, first: np.ndarray, second: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for start in range(0, len(first), PAIRS):
        one, other = first[start : start + PAIRS], second[start : start + PAIRS]
        apart = np.abs(faces[one].astype(np.int16) - faces[other])
        same = (apart.max(axis=1) <= MOST) & (apart.mean(axis=1) <= MEAN)
        one, other = one[same], other[same]
        same = np.einsum("pi,pi->p", patterns[one], patterns[other]) >= LIKENESS
        if same.any():
            yield one[same], other[same]


def first_alike(
    faces: np.ndarray,
    inside: Mapping[str, np.ndarray],
    across: Mapping[str, tuple[str, str]],
) -> dict[str, np.ndarray]:
    """For each image the first that looks the same, or -1: (N,) int64 under each name.

    inside: by name, which images are of a group, (N,) bool; in it, one is looked for among those
    before it. across: by name, of which group one is looked for, and in which other.

    Under each name, an image is compared in full with no more than `COMPARED` that come near, by
    and large the nearest: it is the first of these, and beyond them one may be missed.
    """
    count = len(faces)
    searches = {name: (member, member) for name, member in inside.items()}
    searches |= {name: (inside[of], inside[among]) for name, (of, among) in across.items()}
    found = {name: np.full(count, count, np.int64) for name in searches}
    left = {name: np.where(of, COMPARED, 0) for name, (of, _) in searches.items()}
    waiting = np.ones(count, bool)

    def asking(one: np.ndarray, other: np.ndarray) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Under each name, the pairs (by place) in it, and which of the two is looked for one."""
        for name, (of, among) in searches.items():
            ways = [(other, one)] if name in inside else [(other, one), (one, other)]
            for seeker, partner in ways:
                places = np.flatnonzero(of[seeker] & among[partner])
                yield name, places, seeker[places]

    def choose(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        chosen = np.zeros(len(one), bool)
        for name, places, seeker in asking(one, other):
            kept = _turn(seeker) < left[name][seeker]
            chosen[places[kept]] = True
            left[name] -= np.bincount(seeker[kept], minlength=count)
        waiting[:] = np.any([some > 0 for some in left.values()], axis=0)
        return chosen

    for one, other in alike_pairs(faces, waiting, choose):
        for name, places, seeker in asking(one, other):
            np.minimum.at(found[name], seeker, (one + other)[places] - seeker)
    return {name: np.where(first == count, -1, first) for name, first in found.items()}


def _turn(numbers: np.ndarray) -> np.ndarray:
    """How often each number was there before: [5, 7, 5, 5] gives [0, 0, 1, 2]."""
    order = np.argsort(numbers, kind="stable")
    ordered = numbers[order]
    turns = np.empty(len(numbers), np.int64)
    turns[order] = np.arange(len(numbers)) - np.searchsorted(ordered, ordered)
    return turns
