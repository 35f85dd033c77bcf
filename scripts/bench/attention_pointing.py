"""How often the map of a text lies on what the text names, of two drawings side by side.

    python scripts/bench/attention_pointing.py [--model data/tiny-blip2]

Scenes of two things that training never shows together; a model looks at each for its left thing,
and for its right one ("a banana"). A map points right if the named thing's half of the image has
more of it than the other half. One that the text doesn't change is right for one of the two, so
chance is 50 %, and for both texts of a scene 0 %. "box" is how often the highest patch has its
middle in the named thing's box. All maps are means over heads and queries, and unless a layer is
named over the layers, as `blip2ft attend` draws them.

Intervals are Wilson's, 95 %, of the number of scenes: the two texts of one aren't independent.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe_machine

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from scene_captions import with_article  # noqa: E402
from scene_layout import SIDE  # noqa: E402
from scene_pictures import STYLES, Scene, compose  # noqa: E402
from scene_things import draw_things  # noqa: E402

from blip2ft.attention.look import Look, look  # noqa: E402
from blip2ft.attention.pictures import overlay, sheet  # noqa: E402
from blip2ft.models.load import load_captioner, load_retriever  # noqa: E402
from blip2ft.models.source import is_retriever, read_config  # noqa: E402

Z = 1.959964  # of 95 %


@dataclass(frozen=True)
class Pointing:
    """Maps of both texts of some scenes.

    weighed, attention: (scenes, 2, L, H, W), what `Look` has; blind: (scenes, 2, H, W), the
    attention without a text, the same for both.
    """

    layers: tuple[int, ...]
    weighed: np.ndarray
    attention: np.ndarray
    blind: np.ndarray


def draw_scenes(count: int, style: str = "openmoji") -> list[Scene]:
    """Scenes of two things side by side, of pairs that only the test split shows."""
    rng = np.random.default_rng(0)
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = compose(draw_things("test", rng, 2), style, rng)
        if scene[1]["relation"] == "left of":
            scenes.append(scene)
    return scenes


def look_for_both(model: Any, processor: Any, scene: Scene, prompt: str) -> list[Look]:
    """A look for the left thing, and one for the right thing."""
    image, fields = scene
    texts = [with_article(thing) for thing in fields["things"]]
    return [look(model, processor, image, text, prompt=prompt) for text in texts]


def point(model: Any, processor: Any, scenes: list[Scene], prompt: str) -> Pointing:
    weighed, attention, blind = [], [], []
    for scene in scenes:
        seen = look_for_both(model, processor, scene, prompt)
        weighed.append([s.weighed.mean((1, 2)) for s in seen if s.weighed is not None])
        attention.append([s.attention.mean((1, 2)) for s in seen])
        blind.append([look(model, processor, scene[0]).map] * 2)
    return Pointing(seen[0].layers, np.stack(weighed), np.stack(attention), np.stack(blind))


def is_right(maps: np.ndarray) -> np.ndarray:
    """Whether the named thing's half has more of a map: (scenes, 2, H, W) -> (scenes, 2) bool.

    The middle column of an odd number is neither's.
    """
    half = maps.shape[-1] // 2
    left, right = maps[..., :half].sum((-1, -2)), maps[..., -half:].sum((-1, -2))
    return np.stack([left[:, 0] > right[:, 0], right[:, 1] > left[:, 1]], axis=1)


def in_box(maps: np.ndarray, scenes: list[Scene]) -> np.ndarray:
    """Whether the middle of the highest patch is in the named thing's box: (scenes, 2) bool."""
    rows, columns = maps.shape[-2:]
    found = []
    for pair, (_, fields) in zip(maps, scenes, strict=True):
        for heat, (x0, y0, x1, y1) in zip(pair, fields["boxes"], strict=True):
            row, column = divmod(int(heat.argmax()), columns)
            x, y = (column + 0.5) / columns * SIDE, (row + 0.5) / rows * SIDE
            found.append(x0 <= x < x1 and y0 <= y < y1)
    return np.array(found).reshape(-1, 2)


def rate(right: np.ndarray) -> dict[str, float]:
    """The share that is right, and Wilson's interval of it; a row is one scene."""
    n, p = len(right), float(right.mean())
    centre, spread = p + Z**2 / (2 * n), Z * np.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    low, high = (float((centre + sign * spread) / (1 + Z**2 / n)) for sign in (-1, 1))
    return {"rate": round(p, 4), "low": round(low, 4), "high": round(high, 4)}


def figures(maps: np.ndarray, scenes: list[Scene]) -> dict[str, dict[str, float]]:
    """Rates of one kind of map: of all texts, of each side, of both texts of a scene, of boxes."""
    right = is_right(maps)
    return {
        "texts": rate(right),
        "left": rate(right[:, 0]),
        "right": rate(right[:, 1]),
        "both": rate(np.all(right, axis=1, keepdims=True)),
        "box": rate(in_box(maps, scenes)),
    }


def results(found: Pointing, scenes: list[Scene]) -> dict[str, dict[str, dict[str, float]]]:
    """Rates of every kind of map, by its name."""
    kinds = {
        "weighed": found.weighed.mean(2),
        "attention": found.attention.mean(2),
        "no text": found.blind,
    }
    for number, layer in enumerate(found.layers):
        kinds[f"weighed, layer {layer}"] = found.weighed[:, :, number]
    return {kind: figures(maps, scenes) for kind, maps in kinds.items()}


def draw(path: Path, model: Any, processor: Any, scene: Scene, prompt: str) -> None:
    """A scene, and what of the attention speaks for either of its things."""
    image = scene[0].resize((300, 300))
    cells = [("image", image)]
    for seen in look_for_both(model, processor, scene, prompt):
        assert seen.text_map is not None
        cells.append((f"{seen.text} ({seen.score:.2g})", overlay(image, seen.text_map)))
    about = "What of the attention speaks for a text; in brackets its score."
    sheet(cells, len(cells), 1.0, "share of the most", about).save(path, optimize=True)


def load(name: str) -> tuple[Any, Any, str]:
    """Model, processor and the prompt that it was tuned with."""
    if is_retriever(read_config(name)):
        model, processor = load_retriever(name, objectives={"itc": 1.0, "itm": 1.0})
        return model, processor, ""
    described = Path(name) / "blip2ft.json"
    prompt = json.loads(described.read_text())["prompt"] if described.is_file() else "a photo of"
    return *load_captioner(name), prompt


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="data/tiny-retriever")
    parser.add_argument("--scenes", type=int, default=400)
    parser.add_argument("--style", choices=STYLES, default="openmoji")
    parser.add_argument("--picture", type=Path, metavar="PNG", help="draw the first scene instead")
    options = parser.parse_args()
    model, processor, prompt = load(options.model)
    if options.picture:
        draw(options.picture, model, processor, draw_scenes(1, options.style)[0], prompt)
        return
    scenes = draw_scenes(options.scenes, options.style)
    result = results(point(model, processor, scenes, prompt), scenes)
    for kind, rates in result.items():
        print(kind)
        for what, r in rates.items():
            print(f"  {what:<6} {r['rate']:.3f} ({r['low']:.3f} to {r['high']:.3f})")
    print(describe_machine(str(model.device)))
    said = {"model": options.model, "style": options.style, "scenes": len(scenes)}
    print(json.dumps({**said, "rates": result}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
