"""The things of the scenes, which of them meet in which split, and what they are called."""

from __future__ import annotations

import functools
import json
from itertools import combinations
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
EMOJI = ROOT / "data" / "emoji"
COUNTS = (0.25, 0.65, 0.1)  # how often a scene shows one, two and three things


class SceneError(Exception):
    """What is wrong and what to do about it, for the person at the terminal."""


@functools.cache
def load_things() -> dict[str, dict[str, str]]:
    """`things.json` by name, in its order."""
    path = EMOJI / "things.json"
    if not path.is_file():
        raise SceneError(f"{path} is missing: run this from a complete checkout.")
    return {thing["name"]: thing for thing in json.loads(path.read_text(encoding="utf-8"))}


@functools.cache
def numbers() -> dict[str, int]:
    return {name: number for number, name in enumerate(load_things())}


def split_of_pair(first: str, second: str) -> str:
    """Which split may show these two things together."""
    return {0: "test", 5: "validation"}.get((numbers()[first] + numbers()[second]) % 10, "train")


def splits_of(things: list[str]) -> set[str]:
    """The splits of all pairs in a scene."""
    return {split_of_pair(a, b) for a, b in combinations(things, 2)}


def draw_things(split: str, rng: np.random.Generator, count: int | None = None) -> list[str]:
    """One to three different names that `split` may show together."""
    names = list(load_things())
    count = count or int(rng.choice((1, 2, 3), p=COUNTS))
    allowed = {split} if split == "train" else {split, "train"}
    while True:
        things = [names[i] for i in rng.choice(len(names), size=count, replace=False)]
        splits = splits_of(things)
        if count == 1 or (split in splits and splits <= allowed):
            return things
