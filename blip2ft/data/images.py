"""Open image files of every kind as RGB, and turn them to tensors: the paper's augmentation."""

import io
import math
import os
import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

# No EPS and the like: Pillow opens them by running other programs.
FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000", "PPM"]
ORIENTATION = 0x0112  # EXIF tag
UPRIGHT = {  # EXIF orientation -> what turns the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
CROP_TRIES = 10  # torchvision's RandomResizedCrop


class Readable(Protocol):
    """An image elsewhere than in a file of its own, such as `records.Row`."""

    def read(self) -> bytes:
        """The bytes of the image file."""
        ...


def open_image(
    source: str | Path | bytes | Readable, *, origin: str = "", size_hint: int | None = None
) -> Image.Image:
    """Open an image as RGB, upright, its first frame, transparency on white.

    16-bit and other deep images are scaled to 8 bits, not clipped. Colours aren't managed: an ICC
    profile changes nothing.

    Args:
        source: A file, its bytes, or something that reads them.
        origin: Where the image was named, for messages.
        size_hint: JPEGs may be decoded smaller (1/2, 1/4, 1/8), with both sides at least so long.

    Raises:
        ValueError: It can't be read, with the file, where it was named, and what to do.
    """
    where = str(source) if isinstance(source, str | Path) else "an image"
    if origin and origin != where:
        where += f" (named in {origin})" if isinstance(source, str | Path) else f" of {origin}"
    if isinstance(source, str | Path):
        try:
            if not (os.path.isfile(source) or os.path.isdir(source)) and os.path.exists(source):
                # a pipe, say, which would be waited for without end
                raise ValueError(f"{where}: neither a file nor a folder. Name an image file.")
            with open(source, "rb") as file:
                return _decode(file, where, size_hint)
        except FileNotFoundError as error:
            raise ValueError(
                f"{where}: no such image file. Correct the path, or set image_root."
            ) from error
        except IsADirectoryError as error:
            raise ValueError(f"{where}: a folder, not an image. Name a file in it.") from error
        except PermissionError as error:
            raise ValueError(f"{where}: not allowed to read it. Change its permissions.") from error
        except OSError as error:
            raise ValueError(
                f"{where}: can't be read ({error.strerror}). Correct the path, or check the disk."
            ) from error
    data = source if isinstance(source, bytes) else source.read()
    return _decode(io.BytesIO(data), where, size_hint)


def _decode(file: BinaryIO, where: str, size_hint: int | None) -> Image.Image:
    start = file.read(16)
    file.seek(0)
    if not start:
        raise ValueError(f"{where}: the image file is empty. Fetch it again, or remove it.")
    with warnings.catch_warnings():
        # Odd EXIF and the like warn for every image; what matters here raises.
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(file, formats=FORMATS) as image:
                if size_hint is not None:
                    image.draft(None, (size_hint, size_hint))  # does nothing but for JPEG
                image.load()
                return upright_rgb(image)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise ValueError(
                f"{where}: too large an image to be safe ({error}). Make it smaller, or raise "
                "PIL.Image.MAX_IMAGE_PIXELS if you trust it."
            ) from error
        except UnidentifiedImageError as error:
            raise ValueError(
                f"{where}: not an image that can be read (it starts with {start!r}). Convert it "
                f"to one of {', '.join(FORMATS)}, or fetch it again."
            ) from error
        except Exception as error:  # on damaged data, decoders raise whatever they stumble on
            raise ValueError(
                f"{where}: the image is damaged or cut short ({type(error).__name__}: {error}). "
                "Fetch it again, or remove it."
            ) from error


def upright_rgb(image: Image.Image) -> Image.Image:
    """An opened image of any mode as RGB: upright, deep ones scaled, transparency on white."""
    turn = UPRIGHT.get(orientation_of(image))
    rgb = _to_rgb(image)
    rgb = rgb if turn is None else rgb.transpose(turn)
    rgb.info = {}  # the orientation is used up: it must not turn the image again
    return rgb


def orientation_of(image: Image.Image) -> int:
    """An opened image's EXIF orientation, 1 to 8; 1 where there is none that can be read."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged EXIF in a good image
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """A new RGB image of any mode, without a hold on the file."""
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    """Deep grey values as uint8: 16 bits by their full range, floats of 0 to 1 by theirs.

    Others, whose range isn't known, from their smallest to their largest.
    """
    full = 1.0 if values.dtype.kind == "f" else 65535.0
    values = np.nan_to_num(values.astype(np.float64))
    low, high = float(values.min()), float(values.max())
    top = full
    if low < 0 or high > full:
        values, top = values - low, (high - low) or 1.0
    return np.round(values / top * 255).astype(np.uint8)


@dataclass(frozen=True)
class TrainTransform:
    """Random resized crop, flip and normalisation (paper, appendix).

    Args:
        size: Side of the square result, in pixels.
        mean: Of each channel, in 0 to 1.
        std: Of each channel.
        scale: Range of the crop's share of the image's area; None takes the whole image.
        ratio: Range of the crop's width over its height.
        flip: Flip half of the images left to right.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    scale: tuple[float, float] | None = (0.5, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True

    @property
    def size_hint(self) -> int:
        """For `open_image`: sides from which no crop but one of the fallback is enlarged."""
        if self.scale is None:
            return self.size
        return math.ceil(
            self.size / math.sqrt(self.scale[0] * min(self.ratio[0], 1 / self.ratio[1]))
        )

    def __call__(
        self, image: Image.Image, rng: np.random.Generator | random.Random
    ) -> torch.Tensor:
        """An RGB image as float32 (3, size, size); all that is random comes from `rng`."""
        if self.scale is not None:
            image = image.crop(random_crop(image.size, self.scale, self.ratio, rng))
        image = image.resize((self.size, self.size), Image.Resampling.BICUBIC)
        if self.flip and rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return to_tensor(image, self.mean, self.std)


@dataclass(frozen=True)
class EvalTransform:
    """Resize to a square and normalise, as transformers' BlipImageProcessorPil does.

    Args:
        size: Side of the square result, in pixels.
        mean: Of each channel, in 0 to 1.
        std: Of each channel.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def size_hint(self) -> None:
        """For `open_image`: decode at full size, so that results are transformers' own."""
        return None

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """An RGB image as float32 (3, size, size)."""
        image = image.resize((self.size, self.size), Image.Resampling.BICUBIC)
        return to_tensor(image, self.mean, self.std)


def transforms_for(
    image_processor: Any,
    *,
    scale: tuple[float, float] | None = (0.5, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: bool = True,
) -> tuple[TrainTransform, EvalTransform]:
    """Both transforms, with size, mean and std of a checkpoint's image processor.

    Raises:
        ValueError: The processor does something else than resize to a square by bicubic
            interpolation, divide by 255 and normalise.
    """
    size = image_processor.size
    height, width = size.get("height"), size.get("width")
    expected = {
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "resample": Image.Resampling.BICUBIC,
        "rescale_factor": 1 / 255,
    }
    other = {
        name: getattr(image_processor, name, value)
        for name, value in expected.items()
        if getattr(image_processor, name, value) != value
    }
    if height is None or height != width:
        other["size"] = dict(size)
    if getattr(image_processor, "do_center_crop", False):
        other["do_center_crop"] = True
    if other:
        raise ValueError(
            f"the image processor isn't one of BLIP-2: {other}. It has to resize to a square "
            "(size with equal height and width) by bicubic interpolation (resample 3), without "
            "centre crop, and to rescale and normalise. Correct its preprocessor_config.json."
        )
    mean, std = tuple(image_processor.image_mean), tuple(image_processor.image_std)
    train = TrainTransform(height, mean, std, scale=scale, ratio=ratio, flip=flip)
    return train, EvalTransform(height, mean, std)


def random_crop(
    size: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator | random.Random,
) -> tuple[int, int, int, int]:
    """A box (left, top, right, bottom) of random area and shape, as torchvision's
    RandomResizedCrop.get_params: after 10 tries that don't fit, the largest in the centre.
    """
    width, height = size
    log_ratio = (math.log(ratio[0]), math.log(ratio[1]))
    for _ in range(CROP_TRIES):
        area = width * height * rng.uniform(*scale)
        shape = math.exp(rng.uniform(*log_ratio))
        crop_width = round(math.sqrt(area * shape))
        crop_height = round(math.sqrt(area / shape))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int(rng.random() * (width - crop_width + 1))
            top = int(rng.random() * (height - crop_height + 1))
            return left, top, left + crop_width, top + crop_height
    shape = min(max(width / height, ratio[0]), ratio[1])
    crop_width = max(1, min(width, round(height * shape)))
    crop_height = max(1, min(height, round(width / shape)))
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height


def to_tensor(image: Image.Image, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """An RGB image (H, W) of 8 bits as normalised float32 (3, H, W)."""
    scaled = np.asarray(image, dtype=np.float32) / np.float32(255)
    normal = (scaled - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return torch.from_numpy(np.ascontiguousarray(normal.transpose(2, 0, 1)))
