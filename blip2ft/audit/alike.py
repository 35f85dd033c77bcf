"""Images that look the same, found among very many.

An image is known by its face, a picture of 9 x 8 pixels: our perceptual hash. Two look the same
where these pixels hardly differ, and make the same pattern. Bits, as the package ImageHash computes
them, say less: of drawings on plain ground most are equal, or noise. The search is exact, and
compares 24 numbers an image by products of matrices, of images that differ much in the main
direction not even these: 100,000 take seconds.
"""

import math
from collections.abc import Iterator, Mapping

import numpy as np

MEAN = 6.0  # mean difference of two faces that are the same, in levels of 255
MOST = 32  # and of each pixel
LIKENESS = 0.9  # correlation of their pixels: small things on like ground aren't the same
NUMBERS = 24  # of each image that are compared first
BLOCK = 1024  # images compared at once with as many others
PAIRS = 1 << 15  # pairs whose faces are in memory at once


def alike_pairs(faces: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The pairs that look the same, each once, as two arrays of numbers, in portions.

    faces: (N, 216) uint8.
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
            first, second = np.nonzero(apart <= reach**2)
            first, second = first + start, second + begin
            once = first < second
            yield from _same(faces, patterns, order[first[once]], order[second[once]])


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
            yield np.minimum(one, other)[same], np.maximum(one, other)[same]


def first_alike(
    faces: np.ndarray,
    inside: Mapping[str, np.ndarray],
    across: Mapping[str, tuple[str, str]],
) -> dict[str, np.ndarray]:
    """For each image the first that looks the same, or -1: (N,) int64 under each name.

    inside: by name, which images are of a group, (N,) bool; in it, one is looked for among those
    before it. across: by name, of which group one is looked for, and in which other.
    """
    count = len(faces)
    found = {name: np.full(count, count, np.int64) for name in (*inside, *across)}
    for first, second in alike_pairs(faces):
        for name, member in inside.items():
            both = member[first] & member[second]
            np.minimum.at(found[name], second[both], first[both])
        for name, (of, among) in across.items():
            for one, other in ((first, second), (second, first)):
                both = inside[of][one] & inside[among][other]
                np.minimum.at(found[name], one[both], other[both])
    return {name: np.where(first == count, -1, first) for name, first in found.items()}
