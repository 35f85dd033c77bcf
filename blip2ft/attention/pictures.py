"""Maps drawn over their image."""

import numpy as np
from matplotlib import colormaps
from numpy.typing import ArrayLike
from PIL import Image

# Perceptually uniform, and read alike by those who see red and green as one.
COLOURS = "viridis"
OPACITY = 0.6


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
