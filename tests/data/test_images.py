"""Every kind of image file opens as the RGB picture it shows, or says what is wrong with it."""

import io
import os
import pickle
import random
import re

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from transformers import BlipImageProcessorPil

from blip2ft.data.images import (
    EvalTransform,
    TrainTransform,
    open_image,
    random_crop,
    transforms_for,
)

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)


@pytest.fixture
def photo() -> Image.Image:
    """A smooth picture, 60 x 40, that no two corners of look alike."""
    x, y = np.meshgrid(np.linspace(0, 255, 60), np.linspace(0, 255, 40))
    return Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8))


def difference(image: Image.Image, other: Image.Image) -> float:
    """Mean absolute difference of two RGB images, in 0 to 255."""
    assert image.mode == other.mode == "RGB"
    assert image.size == other.size
    return float(np.abs(np.asarray(image, np.float32) - np.asarray(other, np.float32)).mean())


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("a.png", {}, 0),
        ("a.bmp", {}, 0),
        ("a.tiff", {}, 0),
        ("a.tiff", {"compression": "tiff_lzw"}, 0),
        ("a.webp", {"lossless": True}, 0),
        ("a.jpg", {"quality": 95}, 2),
        ("a.jpg", {"quality": 95, "progressive": True}, 2),
        ("a.webp", {"quality": 95}, 3),
        ("a.ppm", {}, 0),
        ("a.gif", {}, 12),
    ],
)
def test_a_file_opens_as_what_was_saved(photo, tmp_path, name, options, tolerance):
    photo.save(tmp_path / name, **options)
    assert difference(open_image(tmp_path / name), photo) <= tolerance


def test_bytes_strings_and_readers_open_like_paths(photo, tmp_path):
    class Reader:
        def read(self) -> bytes:
            return path.read_bytes()

    path = tmp_path / "a.png"
    photo.save(path)
    for source in (path, str(path), path.read_bytes(), Reader()):
        assert difference(open_image(source), photo) == 0


def test_the_result_needs_no_file_any_more(photo, tmp_path):
    photo.save(tmp_path / "a.png")
    image = open_image(tmp_path / "a.png")
    (tmp_path / "a.png").unlink()
    assert type(image) is Image.Image
    assert difference(pickle.loads(pickle.dumps(image)), photo) == 0


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tiff"])
def test_of_several_frames_the_first_is_taken(tmp_path, name):
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    assert difference(open_image(tmp_path / name), frames[0]) < 3


def test_the_picture_of_a_phone_with_two_in_one_file_is_the_first(tmp_path):
    frames = [Image.new("RGB", (64, 32), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=frames[1:])
    for hint, size in ((None, (64, 32)), (16, (32, 16))):
        opened = open_image(tmp_path / "a.jpg", size_hint=hint)
        assert difference(opened, Image.new("RGB", size, "red")) < 3


def test_cmyk_jpegs_have_their_colours(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    assert difference(open_image(tmp_path / "a.jpg"), Image.new("RGB", (16, 16), "red")) < 6


@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
@pytest.mark.parametrize("top", [65535, 30000])
def test_16_bits_are_scaled_not_clipped(tmp_path, name, top):
    values = np.linspace(0, top, 256).astype(np.uint16)[None].repeat(4, axis=0)
    Image.fromarray(values).save(tmp_path / name)
    with Image.open(tmp_path / name) as raw:
        assert raw.mode == "I;16"
    grey = np.asarray(open_image(tmp_path / name))
    assert np.array_equal(grey, np.round(values / 257).astype(np.uint8)[..., None].repeat(3, -1))


def test_big_endian_16_bits_are_scaled(tmp_path):
    values = np.linspace(0, 65535, 64).astype(">u2")[None].repeat(4, axis=0)
    image = Image.frombytes("I;16B", (64, 4), values.tobytes())
    image.save(tmp_path / "a.tiff")
    grey = np.asarray(open_image(tmp_path / "a.tiff"))[..., 0]
    assert np.array_equal(grey, np.round(values / 257))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 257, 65535]], np.int32), [0, 1, 255]),  # 16 bits in 32
        (np.array([[-100, 0, 100]], np.int32), [0, 128, 255]),  # unknown range: stretched
        (np.array([[0, 1_000_000, 2_000_000]], np.int32), [0, 128, 255]),
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
        (np.array([[0, 0.1, 0.2]], np.float32), [0, 26, 51]),
        (np.array([[0, 500, 1000]], np.float32), [0, 128, 255]),
        (np.array([[np.nan, 0.5, 1]], np.float32), [0, 128, 255]),
        (np.array([[-7, -7, -7]], np.int32), [0, 0, 0]),
    ],
)
def test_32_bit_and_float_images_are_scaled(tmp_path, values, expected):
    Image.fromarray(values).save(tmp_path / "a.tiff")
    assert np.asarray(open_image(tmp_path / "a.tiff"))[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("RGBA", "png"), ("RGBA", "webp"), ("RGBA", "tiff"), ("LA", "png"), ("LA", "tiff")],
)
def test_transparency_lies_on_white(tmp_path, mode, suffix):
    black = (0, 0, 0) if mode == "RGBA" else (0,)
    image = Image.new(mode, (30, 10), (*black, 255))
    image.paste((*black, 0), (10, 0, 20, 10))
    image.paste((*black, 128), (20, 0, 30, 10))
    image.save(tmp_path / f"a.{suffix}", lossless=True)  # a WebP option; others ignore it
    opened = open_image(tmp_path / f"a.{suffix}")
    pixels = [opened.getpixel((x, 5)) for x in (5, 15, 25)]
    assert pixels[:2] == [(0, 0, 0), (255, 255, 255)]
    assert pixels[2] == pytest.approx((127, 127, 127), abs=1)


def test_a_palette_keeps_its_colours(tmp_path):
    image = Image.new("P", (10, 10), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.png").getpixel((0, 0)) == (0, 0, 255)


@pytest.mark.parametrize(
    ("name", "transparency"), [("a.png", 1), ("a.png", b"\xff\x00"), ("a.gif", 1)]
)
def test_a_transparent_palette_lies_on_white(tmp_path, name, transparency):
    image = Image.new("P", (20, 10), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(1, (10, 0, 20, 10))
    image.save(tmp_path / name, transparency=transparency)
    opened = open_image(tmp_path / name)
    assert opened.getpixel((2, 2)) == (255, 0, 0)
    assert opened.getpixel((18, 2)) == (255, 255, 255)


@pytest.mark.parametrize(("mode", "colour", "key"), [("RGB", "red", (255, 0, 0)), ("L", 7, 7)])
def test_a_transparent_colour_lies_on_white(tmp_path, mode, colour, key):
    Image.new(mode, (4, 4), colour).save(tmp_path / "a.png", transparency=key)
    assert open_image(tmp_path / "a.png").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["1", "L"])
def test_black_and_white_and_grey_become_rgb(tmp_path, mode):
    Image.new(mode, (8, 8), 255).save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.png").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, suffix, orientation):
    """The stored picture is turned as a camera would; opened, red is at the top left again."""
    upright = Image.new("RGB", (32, 16), "blue")
    upright.paste("red", (0, 0, 16, 8))
    turns = Image.Transpose
    undo = {
        2: turns.FLIP_LEFT_RIGHT,
        3: turns.ROTATE_180,
        4: turns.FLIP_TOP_BOTTOM,
        5: turns.TRANSPOSE,
        6: turns.ROTATE_90,
        7: turns.TRANSVERSE,
        8: turns.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / f"a.{suffix}", exif=exif, quality=95)
    assert difference(open_image(tmp_path / f"a.{suffix}"), upright) < 6


def test_damaged_exif_does_not_matter(photo, tmp_path):
    for exif in (b"Exif\x00\x00II*\x00", b"Exif\x00\x00garbage garbage", b"Exif\x00\x00"):
        photo.save(tmp_path / "a.jpg", exif=exif, quality=95)
        assert difference(open_image(tmp_path / "a.jpg"), photo) < 3


def test_an_icc_profile_changes_nothing(photo, tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    photo.save(tmp_path / "a.png", icc_profile=profile)
    assert difference(open_image(tmp_path / "a.png"), photo) == 0


@pytest.mark.parametrize(
    ("hint", "size"), [(None, (800, 600)), (300, (400, 300)), (301, (800, 600)), (75, (100, 75))]
)
def test_jpegs_decode_smaller_but_not_below_the_hint(tmp_path, hint, size):
    Image.new("RGB", (800, 600), "green").save(tmp_path / "a.jpg")
    assert open_image(tmp_path / "a.jpg", size_hint=hint).size == size


def test_other_formats_ignore_the_size_hint(photo, tmp_path):
    photo.save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.png", size_hint=8).size == photo.size


def test_a_missing_file_is_named_with_its_origin(tmp_path):
    path = tmp_path / "a.jpg"
    message = re.escape(f"{path} (named in captions.csv:12): no such image file. Correct the path")
    with pytest.raises(ValueError, match=message):
        open_image(path, origin="captions.csv:12")


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a folder, not an image. Name a file"):
        open_image(tmp_path)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match=r"a\.jpg: neither a file nor a folder\. Name an image"):
        open_image(tmp_path / "a.jpg")


def test_a_file_that_may_not_be_read_is_refused(photo, tmp_path, monkeypatch):
    def refuse(*arguments: object) -> None:
        raise PermissionError

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(ValueError, match=r"not allowed to read it. Change its permissions"):
        open_image(tmp_path / "a.png")


def test_a_file_behind_a_file_or_a_broken_disk_is_refused(photo, tmp_path):
    photo.save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"b\.png: can't be read \(Not a directory\)"):
        open_image(tmp_path / "a.png" / "b.png")


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "a.jpg").touch()
    with pytest.raises(ValueError, match=r"a\.jpg: the image file is empty\. Fetch it again"):
        open_image(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match=r"an image of x.parquet: row 3: the image file is empty"):
        open_image(b"", origin="x.parquet: row 3")


def test_what_is_no_image_shows_how_it_starts(tmp_path):
    (tmp_path / "a.jpg").write_text("<!DOCTYPE html><html>not found</html>")
    with pytest.raises(ValueError, match=r"not an image that can be read.*<!DOCTYPE html>"):
        open_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff", "gif", "bmp"])
@pytest.mark.parametrize("kept", [0.3, 0.6])
def test_a_truncated_file_is_refused(tmp_path, suffix, kept):
    buffer = io.BytesIO()
    noise(90, 70).save(buffer, {"jpg": "jpeg"}.get(suffix, suffix))
    data = buffer.getvalue()
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(data[: int(len(data) * kept)])
    message = rf"a\.{suffix} \(named in x\.csv:2\): (the image is damaged|not an image)"
    with pytest.raises(ValueError, match=message):
        open_image(path, origin="x.csv:2")


def test_damaged_bytes_never_raise_anything_else(tmp_path):
    generator = random.Random(0)
    for suffix in ("jpeg", "png", "webp", "tiff", "gif", "bmp"):
        buffer = io.BytesIO()
        noise(40, 30).save(buffer, suffix)
        for _ in range(60):
            data = bytearray(buffer.getvalue())
            for _ in range(5):
                data[generator.randrange(min(len(data), 400))] = generator.randrange(256)
            try:
                assert open_image(bytes(data)).mode == "RGB"
            except ValueError as error:
                assert "an image:" in str(error)  # noqa: PT017


@pytest.mark.parametrize("limit", [1500, 900])  # Pillow warns above once the limit, refuses twice
def test_a_decompression_bomb_is_refused(photo, tmp_path, monkeypatch, limit):
    photo.save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ValueError, match=r"too large .*2400 pixels.*MAX_IMAGE_PIXELS if you trust"):
        open_image(tmp_path / "a.png")


def test_postscript_is_never_run(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(ValueError, match="not an image that can be read"):
        open_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("shape", [(60, 40), (33, 200), (7, 5), (64, 64)])
def test_evaluation_equals_transformers(shape):
    processor = BlipImageProcessorPil(size={"height": 64, "width": 64})
    _, transform = transforms_for(processor)
    image = noise(*shape)
    expected = processor(image, return_tensors="pt")["pixel_values"][0]
    result = transform(image)
    assert result.dtype == torch.float32
    assert result.is_contiguous()
    assert result.shape == (3, 64, 64)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)


def test_training_without_crop_and_flip_equals_evaluation(photo):
    train = TrainTransform(32, MEAN, STD, scale=None, flip=False)
    assert torch.equal(train(photo, random.Random(0)), EvalTransform(32, MEAN, STD)(photo))


@pytest.mark.parametrize("make", [random.Random, np.random.default_rng])
def test_the_generator_alone_decides(photo, make):
    transform = TrainTransform(32, MEAN, STD)
    first, again, other = (transform(photo, make(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_half_of_the_images_are_flipped(photo):
    transform = TrainTransform(16, MEAN, STD, scale=None)
    plain = EvalTransform(16, MEAN, STD)(photo)
    flipped = EvalTransform(16, MEAN, STD)(photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    rng = np.random.default_rng(0)
    results = [transform(photo, rng) for _ in range(200)]
    kinds = [torch.equal(result, plain) for result in results]
    assert all(kind or torch.equal(r, flipped) for kind, r in zip(kinds, results, strict=True))
    assert 70 < sum(kinds) < 130


def test_crops_have_the_areas_and_shapes_asked_for():
    rng = np.random.default_rng(0)
    boxes = [random_crop((640, 480), (0.5, 1.0), (3 / 4, 4 / 3), rng) for _ in range(500)]
    areas = np.array([(r - x) * (b - y) / (640 * 480) for x, y, r, b in boxes])
    shapes = np.array([(r - x) / (b - y) for x, y, r, b in boxes])
    assert all(0 <= x < r <= 640 and 0 <= y < b <= 480 for x, y, r, b in boxes)
    assert 0.495 < areas.min() < 0.55
    assert 0.9 < areas.max() <= 1
    assert shapes.min() > 0.74
    assert shapes.max() < 1.34


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((1000, 10), (493, 0, 506, 10)),
        ((10, 1000), (0, 493, 10, 506)),
        ((1, 1), (0, 0, 1, 1)),
        ((1, 500), (0, 249, 1, 250)),
    ],
)
def test_images_that_no_crop_fits_give_their_centre(size, box):
    assert random_crop(size, (0.9, 1.0), (3 / 4, 4 / 3), random.Random(0)) == box


def test_no_crop_of_a_hinted_jpeg_is_enlarged(tmp_path):
    transform = TrainTransform(64, MEAN, STD)
    side = transform.size_hint
    rng = random.Random(0)
    boxes = [random_crop((side, side), (0.5, 1.0), (3 / 4, 4 / 3), rng) for _ in range(500)]
    assert min(min(r - x, b - y) for x, y, r, b in boxes) >= 63
    assert TrainTransform(64, MEAN, STD, scale=None).size_hint == 64


def test_transforms_follow_the_processor_and_pickle():
    processor = BlipImageProcessorPil(
        size={"height": 48, "width": 48}, image_mean=list(MEAN), image_std=list(STD)
    )
    train, evaluate = transforms_for(processor, scale=None, flip=False)
    assert train == TrainTransform(48, MEAN, STD, scale=None, flip=False)
    assert evaluate == EvalTransform(48, MEAN, STD)
    assert pickle.loads(pickle.dumps((train, evaluate))) == (train, evaluate)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": {"height": 32, "width": 48}}, "'size'"),
        ({"size": {"shortest_edge": 32}}, "'size'"),
        ({"do_normalize": False}, "'do_normalize': False"),
        ({"resample": 2}, "'resample'"),
        ({"do_center_crop": True}, "'do_center_crop': True"),
    ],
)
def test_a_processor_that_works_otherwise_is_refused(settings, message):
    processor = BlipImageProcessorPil(**settings)
    with pytest.raises(ValueError, match=f"isn't one of BLIP-2.*{message}.*preprocessor_config"):
        transforms_for(processor)
