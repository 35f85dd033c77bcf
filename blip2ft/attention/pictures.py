"""Maps drawn over their image, alone and on sheets with a legend."""

import textwrap
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image

from blip2ft.attention.look import Look

# Perceptually uniform, and read alike by those who see red and green as one.
COLOURS = "viridis"
OPACITY = 0.6
EVEN = "times that of an even look"
MOST = "and how many times that of an even look its highest patch has"
DIAGNOSTIC = (
    "A diagnostic: attention weighed by gradients (Grad-CAM). It tells what the score hangs on in "
    "one step of the computation, and is no explanation of it."
)
SHOWN = 240  # characters of a text on a sheet
DPI = 100


def overlay(image: Image.Image, heat: ArrayLike, *, top: float | None = None) -> Image.Image:
    """A map (H, W) in colours over its image, an RGB image of the image's size.

    The map is stretched to the image: the model sees it squashed to a square, so that a patch of a
    wide image is wide. Dark blue is 0, yellow is `top` and more.

    image: upright RGB, as `open_image` gives it. heat: an array or a tensor, finite, from 0 on.
    top: None is the map's largest value.

    Raises ValueError for anything else than such a map.
    """
    values = np.asarray(heat, dtype=np.float32)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"a map is two-dimensional, height and width; this one is {values.shape}")
    if not np.isfinite(values).all() or values.min() < 0:
        raise ValueError("a map holds finite numbers from 0 on; this one holds others")
    top = float(values.max()) if top is None else top
    shares = values / top if top > 0 else values
    stretched = Image.fromarray(shares).resize(image.size, Image.Resampling.BILINEAR)
    colours = colormaps[COLOURS](np.asarray(stretched), bytes=True)[..., :3]
    grey = image.convert("L").convert("RGB")  # its own colours would mix with those of the map
    return Image.blend(grey, Image.fromarray(colours), OPACITY)


def draw_attention(seen: Look) -> Image.Image:
    """The image, and beside it where the queries look on average."""
    even = seen.map * seen.map.size
    image = _scaled(seen.image, 480)
    cells = [("image", image), ("all queries, heads and layers", overlay(image, even))]
    return sheet(cells, 2, float(even.max()), EVEN, _about(seen, "Cross-attention of the queries"))


def draw_text(seen: Look) -> Image.Image:
    """The image, and beside it what of the attention speaks for the text.

    Raises ValueError where no text was weighed.
    """
    if seen.text_map is None:
        raise ValueError("no text was weighed in this look; give one to a model that weighs it")
    image = _scaled(seen.image, 480)
    cells = [("image", image), ("speaks for the text", overlay(image, seen.text_map))]
    text = f"{_about(seen, 'What speaks for the text')}\n{DIAGNOSTIC}"
    return sheet(cells, 2, 1.0, "share of the most", text)


def draw_queries(seen: Look) -> Image.Image:
    """Each query's map, the mean over heads and layers."""
    image = _scaled(seen.image, 160)
    maps = seen.attention.mean((0, 1))
    cells = [_cell(image, heat, f"query {number}") for number, heat in enumerate(maps)]
    # about as wide as high
    columns = round((len(cells) * image.height / image.width) ** 0.5)
    columns = min(max(columns, 1), len(cells))
    about = _about(seen, f"Each query, mean over heads and layers, {MOST}")
    return sheet(cells, columns, 1.0, "share of the map's most", about)


def draw_layers(seen: Look) -> Image.Image:
    """Each layer's heads in a row, the mean over queries."""
    image = _scaled(seen.image, 120)
    maps = seen.attention.mean(2)
    cells = [
        _cell(image, heat, f"layer {layer} head {head}")
        for layer, heads in zip(seen.layers, maps, strict=True)
        for head, heat in enumerate(heads)
    ]
    about = _about(seen, f"Each layer and head, mean over queries, {MOST}")
    return sheet(cells, maps.shape[1], 1.0, "share of the map's most", about)


def sheet(
    cells: Sequence[tuple[str, Image.Image]], columns: int, top: float, unit: str, about: str
) -> Image.Image:
    """Labelled pictures of one size in rows, with a legend of the colours and a text below.

    top, unit: what the legend's colours reach, and in what.
    """
    label, gap, legend = 16, 8, 90  # pixels
    width, height = cells[0][1].size
    width = max(width, 6 * max(len(name) for name, _ in cells))
    rows = -(-len(cells) // columns)
    inner = columns * (width + gap), rows * (height + label + gap)
    lines = _wrapped(about, (inner[0] + legend) // 7)
    foot = 16 * len(lines) + 2 * gap
    size = inner[0] + legend + gap, max(inner[1], 110) + foot
    figure = Figure(figsize=(size[0] / DPI, size[1] / DPI), dpi=DPI)
    canvas = FigureCanvasAgg(figure)
    written: dict[str, Any] = {"fontsize": 7.5, "parse_math": False, "va": "top"}
    page = Image.new("RGB", size, "white")
    for number, (name, picture) in enumerate(cells):
        left = gap + number % columns * (width + gap)
        above = gap + number // columns * (height + label + gap)
        figure.text(left / size[0], 1 - above / size[1], name, **written)
        page.paste(picture, (left, above + label))
    figure.figimage(np.asarray(page), zorder=-1)
    bar_height = max(inner[1], 110) - label - 2 * gap
    box = (inner[0] + 2 * gap, foot + gap, 12, bar_height)
    x, y, wide, high = (v / s for v, s in zip(box, size * 2, strict=True))
    axes = figure.add_axes((x, y, wide, high))
    bar = figure.colorbar(ScalarMappable(Normalize(0, top or 1.0), COLOURS), cax=axes)
    bar.ax.tick_params(labelsize=7)
    bar.set_label(unit, fontsize=7.5)
    figure.text(gap / size[0], (foot - gap) / size[1], "\n".join(lines), linespacing=1.4, **written)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # drawn as a box
        canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def _cell(image: Image.Image, heat: np.ndarray, name: str) -> tuple[str, Image.Image]:
    """With how much more than an even look its most is, as each has colours of its own."""
    return f"{name}: {heat.max() * heat.size:.1f}x", overlay(image, heat)


def _about(seen: Look, what: str) -> str:
    if seen.text is None:
        return f"{what}."
    text = " ".join(seen.text.split())
    text = f'{what}: "{text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"}"'
    return text if seen.score is None else f"{text} ({seen.scored} {seen.score:.2g})"


def _wrapped(text: str, width: int) -> list[str]:
    return [line for part in text.splitlines() for line in textwrap.wrap(part, max(width, 20))]


def _scaled(image: Image.Image, side: int) -> Image.Image:
    """The image with its longer side `side` pixels long."""
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)
