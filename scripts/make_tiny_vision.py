"""Make a ViT of 0.8 million parameters that knows the drawings of OpenMoji.

    python scripts/make_tiny_vision.py OUT

It stands for the image encoders that BLIP-2 takes ready-made. Each patch of a composed scene learns
to name the thing that it shows and where that thing is, or the colour of the ground. The colours of
scenes are mixed a little, so that shapes come to matter.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from scene_layout import SIDE
from scene_pictures import COLOURS, compose
from scene_things import draw_things, numbers
from tiny_training import fit, make_part, part_parser
from tiny_words import WHERE, where_alone
from torch import Tensor
from torch.nn import functional
from transformers import Blip2VisionConfig, Blip2VisionModel, BlipImageProcessorPil

IMAGE, PATCH = 64, 8  # pixels
# where a thing is: alone or among others, a row or column of PLACES; else a corner
SPOTS = [*WHERE, *(f"{row} {column}" for row in ("top", "bottom") for column in ("left", "right"))]
HIDDEN, HEADS, BATCH = 128, 4, 64
IGNORED = -100


class Scenes(NamedTuple):
    """N composed scenes: pixels (N, IMAGE, IMAGE, 3) bytes; of each patch what it shows and where
    that is, (N, (IMAGE / PATCH)^2) each."""

    pixels: Tensor
    patches: Tensor
    places: Tensor
    single: Tensor


def make_model() -> Blip2VisionModel:
    config = Blip2VisionConfig(
        hidden_size=HIDDEN,
        intermediate_size=4 * HIDDEN,
        num_hidden_layers=4,
        num_attention_heads=HEADS,
        image_size=IMAGE,
        patch_size=PATCH,
        initializer_range=0.02,
    )
    model = Blip2VisionModel(config)
    with torch.no_grad():
        model.embeddings.position_embedding[0, 1:] = grid_code(IMAGE // PATCH)
    return model


def grid_code(grid: int) -> Tensor:
    """Sines and cosines of row and column, grid^2 x HIDDEN: without them "left" is learned late."""
    waves = torch.arange(grid)[:, None] / 2 ** torch.linspace(0, 5, HIDDEN // 4)
    line = 0.5 * torch.cat([waves.sin(), waves.cos()], dim=1)
    rows, columns = line[:, None].expand(-1, grid, -1), line.expand(grid, -1, -1)
    return torch.cat([rows, columns], dim=-1).reshape(grid * grid, HIDDEN)


def compose_scenes(count: int, seed: int) -> Scenes:
    """OpenMoji scenes with the pairs of things of the training split."""
    rng = np.random.default_rng([seed, 33])
    pixels = np.empty((count, IMAGE, IMAGE, 3), dtype=np.uint8)
    patches, places, single = [], [], []
    for number in range(count):
        picture, fields = compose(draw_things("train", rng), "openmoji", rng)
        pixels[number] = picture.resize((IMAGE, IMAGE), Image.Resampling.BICUBIC)
        patches.append(patch_labels(fields))
        places.append(place_labels(fields))
        single.append(len(fields["things"]) == 1)
    shown, where = (torch.from_numpy(np.stack(each)) for each in (patches, places))
    return Scenes(torch.from_numpy(pixels), shown, where, torch.tensor(single))


def patch_labels(fields: dict[str, Any]) -> np.ndarray:
    """The thing at the centre of each patch, by its number in `things.json`, else the ground.

    The ground's colour is told where captions tell it, in scenes of one thing; it comes after the
    things' numbers.
    """
    ground = len(numbers()) + list(COLOURS).index(fields["background"])
    things = [numbers()[name] for name in fields["things"]]
    return _fill_boxes(fields, things, ground if len(things) == 1 else IGNORED)


def place_labels(fields: dict[str, Any]) -> np.ndarray:
    """Where the thing at the centre of each patch is, one of SPOTS; of the ground nothing.

    Left, right, top, bottom or middle among several; alone, where the caption says, if it does.
    """
    if len(fields["things"]) == 1:
        spots = [" ".join(word for word in where_alone(fields).split() if word in WHERE)]
    else:
        first, last = ("left", "right") if fields["relation"] == "left of" else ("top", "bottom")
        spots = [first, *["middle"] * (len(fields["things"]) - 2), last]
    places = [SPOTS.index(spot) if spot else IGNORED for spot in spots]
    return _fill_boxes(fields, places, IGNORED)


def _fill_boxes(fields: dict[str, Any], labels: list[int], elsewhere: int) -> np.ndarray:
    grid = IMAGE // PATCH
    centres = (np.arange(grid) + 0.5) * (SIDE / grid)
    filled = np.full((grid, grid), elsewhere)
    for label, (x0, y0, x1, y1) in zip(labels, fields["boxes"], strict=True):
        rows = (centres >= y0) & (centres < y1)
        columns = (centres >= x0) & (centres < x1)
        filled[np.ix_(rows, columns)] = label
    return filled.flatten()


def recolour(images: Tensor, strength: Tensor) -> Tensor:
    """Mix the colour channels of each image a little."""
    batch = images.shape[0]
    matrix = torch.eye(3) + strength[:, None, None] * torch.randn(batch, 3, 3)
    shift = strength[:, None] * torch.randn(batch, 3)
    return torch.einsum("bij,bjhw->bihw", matrix, images) + shift[:, :, None, None]


def make(out: Path, seed: int, steps: int, scenes: int) -> dict[str, Any]:
    """Train and save the image encoder and its processor; returns its metrics."""
    composed = compose_scenes(scenes, seed)
    processor = BlipImageProcessorPil(size={"height": IMAGE, "width": IMAGE})
    mean, std = torch.tensor(processor.image_mean), torch.tensor(processor.image_std)
    model = make_model()
    heads = torch.nn.ModuleDict(
        {
            "patch": torch.nn.Linear(HIDDEN, len(numbers()) + len(COLOURS)),
            "place": torch.nn.Linear(HIDDEN, len(SPOTS)),
        }
    )
    rng = np.random.default_rng([seed, 44])

    def losses() -> dict[str, Tensor]:
        chosen = torch.from_numpy(rng.integers(len(composed.pixels), size=BATCH))
        images = ((composed.pixels[chosen].float() / 255 - mean) / std).permute(0, 3, 1, 2)
        images = recolour(images, torch.where(composed.single[chosen], 0.05, 0.2))
        seen = model(images.contiguous()).last_hidden_state[:, 1:]
        labels = {"patch": composed.patches[chosen], "place": composed.places[chosen]}
        return {
            name: functional.cross_entropy(head(seen).flatten(0, 1), labels[name].flatten())
            for name, head in heads.items()
        }

    trained = [*model.parameters(), *heads.parameters()]
    found = fit(trained, losses, steps, 1e-3, "image encoder")
    model.save_pretrained(out)
    processor.save_pretrained(out)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"parameters": parameters, "scenes": scenes, **found}


def main() -> int:
    parser = part_parser(__doc__, 2500)
    parser.add_argument("--scenes", type=int, default=30000, help="to compose, default 30000")
    options = parser.parse_args()
    return make_part(options, lambda out: make(out, options.seed, options.steps, options.scenes))


if __name__ == "__main__":
    sys.exit(main())
