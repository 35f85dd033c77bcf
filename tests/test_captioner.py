"""Captions in one call: any kind of image, any batch size, always in order."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from blip2ft.captioner import caption, default_device
from blip2ft.models.load import load_captioner

SHORT = {"num_beams": 2, "max_new_tokens": 4}


@pytest.fixture(scope="module", params=["opt", "t5"])
def captioner(request):
    """Both families, with a projection so strong that each image gets words of its own."""
    model, processor = load_captioner(request.getfixturevalue(f"{request.param}_folder"))
    with torch.no_grad():
        model.language_projection.weight.mul_(100)
    return model, processor


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> list[Path]:
    """Five plain images, each of another colour."""
    folder = tmp_path_factory.mktemp("images")
    colours = ["black", "white", "red", "lime", "blue"]
    for colour in colours:
        Image.new("RGB", (30, 20), colour).save(folder / f"{colour}.png")
    return [folder / f"{colour}.png" for colour in colours]


@pytest.fixture(scope="module")
def alone(captioner, images) -> list[str]:
    """What each image gets when it is asked alone."""
    captions = [caption(*captioner, [image], **SHORT)[0] for image in images]
    assert len(set(captions)) > 2  # else the tests below would see no order
    return captions


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_a_batch_gives_what_one_at_a_time_gives(captioner, images, alone, batch_size):
    assert caption(*captioner, images, batch_size=batch_size, **SHORT) == alone


def test_the_order_is_the_given_one(captioner, images, alone):
    answers = caption(*captioner, images[::-1] + images[:1], batch_size=4, **SHORT)
    assert answers == alone[::-1] + alone[:1]


def test_every_kind_of_image_may_be_mixed(captioner, images, alone):
    with Image.open(images[3]) as opened:
        mixed = [images[0], str(images[1]), images[2].read_bytes(), opened, Image.open(images[4])]
        assert caption(*captioner, mixed, **SHORT) == alone
        mixed[4].close()


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "CMYK"])
def test_pillow_images_of_any_mode_are_taken(captioner, mode):
    assert len(caption(*captioner, [Image.new(mode, (9, 9))], **SHORT)) == 1


def clear_drawing(path: Path) -> None:
    drawing = Image.new("RGBA", (20, 30), (255, 0, 0, 0))
    drawing.paste((0, 0, 255, 255), (0, 0, 20, 10))
    drawing.save(path)


def turned_photo(path: Path) -> None:
    photo, exif = Image.new("RGB", (20, 30), "red"), Image.Exif()
    photo.paste("blue", (0, 0, 20, 10))
    exif[0x0112] = 6
    photo.save(path, exif=exif)


def deep_scan(path: Path) -> None:
    Image.fromarray(np.linspace(0, 65535, 600).astype(np.uint16).reshape(20, 30)).save(path)


@pytest.mark.parametrize("draw", [clear_drawing, turned_photo, deep_scan])
def test_an_opened_image_is_seen_as_its_file_is(captioner, tmp_path, draw):
    model, processor = captioner
    path, seen = tmp_path / "image.png", []
    draw(path)
    hook = model.vision_model.embeddings.patch_embedding.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0])
    )
    with Image.open(path) as opened:
        caption(model, processor, [opened, path], **SHORT)
    hook.remove()
    torch.testing.assert_close(seen[0][0], seen[0][1])


def test_no_image_gives_no_caption(captioner):
    assert caption(*captioner, []) == []


def test_the_prompt_counts(captioner, images):
    question = "Question: what is it? Answer:"
    asked = caption(*captioner, images, prompt=question, **SHORT)
    assert asked == [caption(*captioner, [i], prompt=question, **SHORT)[0] for i in images]
    assert not any(question in answer for answer in asked)
    assert len(caption(*captioner, images[:2], prompt="", **SHORT)) == 2


def test_options_reach_generate(captioner, images):
    tokenizer = captioner[1].tokenizer
    for longest in (1, 5):
        answer = caption(*captioner, images[:1], num_beams=1, max_new_tokens=longest)[0]
        # a byte that is no letter is decoded to a sign of three bytes
        assert len(tokenizer(answer, add_special_tokens=False)["input_ids"]) <= longest * 3
    with pytest.raises(ValueError, match="nonsense"):
        caption(*captioner, images[:1], nonsense=3)


def test_a_bf16_model_captions(opt_folder, images):
    model, processor = load_captioner(opt_folder, dtype=torch.bfloat16)
    assert len(caption(model, processor, images[:2], **SHORT)) == 2


def test_a_broken_image_is_named(captioner, images, photo_folder, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes((photo_folder / "photo0.jpg").read_bytes()[:400])
    with pytest.raises(ValueError, match=r"broken\.jpg: the image is damaged or cut short"):
        caption(*captioner, [images[0], broken])
    with pytest.raises(ValueError, match=r"gone\.png: no such image file"):
        caption(*captioner, [str(tmp_path / "gone.png")])
    with pytest.raises(ValueError, match="an image: not an image that can be read"):
        caption(*captioner, [b"some text that is no image"])


def test_the_default_device_is_there():
    assert torch.zeros(1, device=default_device()).sum() == 0
