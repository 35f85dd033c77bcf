"""Whether the map of a text lies on what the text names, of two drawings side by side.

    python scripts/bench/attention_pointing.py [--model data/tiny-blip2]

Scenes of two things that training never shows together; each is asked for its left thing, and for
its right one ("a banana"). A map points right if the named thing's half of the image has more of it
than the other half. One that the text doesn't change is right for one of the two, so chance is
50 %, and for both of a scene 0 %. "box" is how often the highest patch has its middle in the named
thing's box. The layers whose mean is taken are chosen on pairs of things of the validation split;
the figures are of pairs of the test split.

Intervals are Wilson's, 95 %.
"""

import argparse
import json
import sys
from collections.abc import Mapping
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

from blip2ft.attention.look import look  # noqa: E402
from blip2ft.models.load import load_captioner, load_retriever  # noqa: E402
from blip2ft.models.source import is_retriever, read_config  # noqa: E402

SIDES = ("left", "right")
Z = 1.959964  # of 95 %


@dataclass(frozen=True)
class Pointing:
    """Maps (scenes, 2, H, W) of both texts of some scenes, by the layers they are the mean of.

    attention, weighed: what `Look` has; blind: the attention of no text, the same for both.
    """

    attention: dict[str, np.ndarray]
    weighed: dict[str, np.ndarray]
    blind: np.ndarray


def draw_scenes(split: str, count: int, seed: int, style: str = "openmoji") -> list[Scene]:
    """Scenes of two things side by side, of pairs that only `split` shows."""
    rng = np.random.default_rng(seed)
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = compose(draw_things(split, rng, 2), style, rng)
        if scene[1]["relation"] == "left of":
            scenes.append(scene)
    return scenes


def point(model: Any, processor: Any, scenes: list[Scene], prompt: str = "") -> Pointing:
    """Look at each scene for its left and its right thing."""
    attention, weighed, blind = [], [], []
    for image, fields in scenes:
        texts = [with_article(thing) for thing in fields["things"]]
        seen = [look(model, processor, image, text, prompt=prompt) for text in texts]
        attention.append([s.attention.mean((1, 2)) for s in seen])
        weighed.append([s.weighed.mean((1, 2)) for s in seen if s.weighed is not None])
        blind.append([look(model, processor, image).map] * 2)
    layers = {str(layer): [n] for n, layer in enumerate(seen[0].layers)}
    choices = {"all": list(range(len(layers)))} | layers
    by_layer = np.stack(attention), np.stack(weighed)
    means = [{name: maps[:, :, c].mean(2) for name, c in choices.items()} for maps in by_layer]
    return Pointing(means[0], means[1], np.stack(blind))


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
    """The share that is right, and Wilson's interval of it."""
    n, p = right.size, float(right.mean())
    centre, spread = p + Z**2 / (2 * n), Z * np.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    low, high = (float((centre + sign * spread) / (1 + Z**2 / n)) for sign in (-1, 1))
    return {"rate": round(p, 4), "low": round(low, 4), "high": round(high, 4), "n": n}


def figures(maps: np.ndarray, scenes: list[Scene]) -> dict[str, dict[str, float]]:
    """Rates of one kind of map: of all texts, of each side, of both texts of a scene, of boxes."""
    right = is_right(maps)
    sides = {side: rate(right[:, number]) for number, side in enumerate(SIDES)}
    both, box = rate(np.all(right, axis=1)), rate(in_box(maps, scenes))
    return {"texts": rate(right), **sides, "both": both, "box": box}


def best_layers(maps: Mapping[str, np.ndarray]) -> str:
    """The layers whose mean points right most often; of equals the first."""
    return max(maps, key=lambda name: is_right(maps[name]).mean())


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
    parser.add_argument("--model", default=str(ROOT / "data" / "tiny-retriever"))
    parser.add_argument("--scenes", type=int, default=400)
    parser.add_argument("--style", choices=STYLES, default="openmoji")
    options = parser.parse_args()
    model, processor, prompt = load(options.model)
    chosen_on = draw_scenes("validation", options.scenes, 1, options.style)
    tried = point(model, processor, chosen_on, prompt)
    chosen = {"weighed": best_layers(tried.weighed), "attention": best_layers(tried.attention)}
    for name, maps in tried.weighed.items():
        plain = is_right(tried.attention[name]).mean()
        print(
            f"to choose: layers {name:>4}  weighed {is_right(maps).mean():.3f}  plain {plain:.3f}"
        )
    scenes = draw_scenes("test", options.scenes, 0, options.style)
    found = point(model, processor, scenes, prompt)
    kinds = {
        f"weighed, layers {chosen['weighed']}": found.weighed[chosen["weighed"]],
        f"attention, layers {chosen['attention']}": found.attention[chosen["attention"]],
        "attention, no text": found.blind,
    }
    result = {kind: figures(maps, scenes) for kind, maps in kinds.items()}
    for kind, rates in result.items():
        print(kind)
        for what, r in rates.items():
            print(f"  {what:<6} {r['rate']:.3f} ({r['low']:.3f} to {r['high']:.3f}, n {r['n']})")
    print(describe_machine(str(model.device)))
    print(json.dumps({"model": options.model, "chosen": chosen, "test": result}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
