"""A look's pictures and arrays, in a folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from blip2ft.attention.look import Look
from blip2ft.attention.pictures import (
    DIAGNOSTIC,
    draw_attention,
    draw_layers,
    draw_queries,
    draw_text,
)
from blip2ft.whole import check_free, whole_folder

AXES = ("layer", "head", "query", "row", "column")


def write_look(folder: Path, seen: Look, about: Mapping[str, Any]) -> None:
    """Write a look into a new folder, as a whole or not at all.

    attention.png, queries.png, layers.png, and text.png of a text that was weighed; attention.npz:
    the arrays, float32; attention.json: their shapes, axes and meaning, and `about`.

    Raises ValueError where `folder` is in use; it is never overwritten.
    """
    check_free(folder)
    pictures = {
        "attention": draw_attention(seen),
        "queries": draw_queries(seen),
        "layers": draw_layers(seen),
    }
    arrays = {
        "attention": (seen.attention, AXES, "share of a query's attention that a patch gets"),
        "map": (seen.map, AXES[3:], "its mean over layers, heads and queries"),
    }
    if seen.weighed is not None and seen.text_map is not None:
        pictures["text"] = draw_text(seen)
        meaning = "attention times the gradient of the text's score, where that is above 0"
        arrays["weighed"] = (seen.weighed, AXES, meaning)
        arrays["text_map"] = (seen.text_map, AXES[3:], f"its mean. {DIAGNOSTIC}")
    said = {
        **about,
        "size": list(seen.image.size),
        "grid": list(seen.map.shape),
        "layers": list(seen.layers),
        "text": seen.text,
        "score": seen.score,
        "scored": seen.scored,
        "arrays": {
            name: {"shape": list(array.shape), "axes": list(axes), "meaning": meaning}
            for name, (array, axes, meaning) in arrays.items()
        },
    }
    with whole_folder(folder) as partial:
        for name, picture in pictures.items():
            picture.save(partial / f"{name}.png", optimize=True)
        found: dict[str, Any] = {name: array for name, (array, *_) in arrays.items()}
        np.savez_compressed(partial / "attention.npz", **found)
        text = json.dumps(said, indent=2, ensure_ascii=False) + "\n"
        (partial / "attention.json").write_text(text, encoding="utf-8")
