"""Scenes drawn: things on a ground, with all that is true of them."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from PIL import Image
from scene_captions import describe
from scene_layout import SIDE, find_larger, place, place_name
from scene_things import EMOJI, SceneError, load_things

STYLES = ("openmoji", "noto")
COLOURS = {
    "white": (250, 250, 250),
    "gray": (165, 165, 168),
    "pink": (255, 185, 205),
    "yellow": (255, 240, 130),
    "orange": (255, 185, 95),
    "green": (165, 225, 150),
    "blue": (150, 200, 250),
    "purple": (200, 165, 240),
}
PATTERNS = ("plain", "gradient", "stripes", "speckle")

Scene = tuple[Image.Image, dict[str, Any]]


@functools.cache
def sprite(name: str, style: str, side: int) -> Image.Image:
    """The drawing of a thing, RGBA, its longer side `side` pixels."""
    path = EMOJI / style / load_things()[name]["file"]
    if not path.is_file():
        raise SceneError(f"{path} is missing: run this from a complete checkout.")
    drawing = Image.open(path).convert("RGBA")
    scale = side / max(drawing.size)
    size = (max(1, round(drawing.width * scale)), max(1, round(drawing.height * scale)))
    return drawing.resize(size, Image.Resampling.LANCZOS)


def paint_background(colour: str, pattern: str, rng: np.random.Generator) -> Image.Image:
    """A ground of one colour in lighter and darker shades."""
    base = np.array(COLOURS[colour], dtype=np.float32) + rng.integers(-6, 7, size=3)
    angle = rng.uniform(0, np.pi)
    ys, xs = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
    along = xs * np.cos(angle) + ys * np.sin(angle)
    if pattern == "plain":
        shade = np.zeros_like(along)
    elif pattern == "gradient":
        shade = (along - along.min()) / (along.max() - along.min()) * 40 - 28
    elif pattern == "stripes":
        width = rng.uniform(8, 24)
        shade = np.where(np.floor(along / width) % 2 == 0, 8.0, -16.0)
    else:
        coarse = rng.normal(0, 14, size=(SIDE // 8, SIDE // 8))
        shade = np.kron(coarse, np.ones((8, 8))) + rng.normal(0, 3, size=(SIDE, SIDE))
    pixels = base + shade[..., None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8), "RGB")


def compose(things: list[str], style: str, rng: np.random.Generator) -> Scene:
    """One scene: the picture, and its fields but for the id.

    things: one to three different names, drawn in this order from left to right or top to bottom.
    style: "openmoji" or "noto". The same `rng` state gives the same layout in either.
    """
    unknown = [name for name in things if name not in load_things()]
    if unknown or not 1 <= len(things) <= 3 or len(set(things)) < len(things):
        raise SceneError(
            f"things={things}: give one to three different names of data/emoji/things.json."
        )
    if style not in STYLES:
        raise SceneError(f"style={style!r}: choose one of {', '.join(STYLES)}.")
    cells, relation = place(len(things), rng)
    colour, pattern = str(rng.choice(list(COLOURS))), str(rng.choice(PATTERNS))
    picture = paint_background(colour, pattern, rng)
    boxes = []
    for name, cell in zip(things, cells, strict=True):
        drawing = sprite(name, style, cell.side)
        x = cell.x + (cell.side - drawing.width) // 2
        y = cell.y + (cell.side - drawing.height) // 2
        picture.paste(drawing, (x, y), drawing)
        boxes.append([x, y, x + drawing.width, y + drawing.height])
    return picture, {
        "captions": describe(things, relation, colour, place_name(cells[0])),
        "things": things,
        "relation": relation,
        "boxes": boxes,
        "larger": find_larger(things, cells),
        "background": colour,
        "pattern": pattern,
    }
