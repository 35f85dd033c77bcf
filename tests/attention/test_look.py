"""What a model looks at, of an image as it is opened and a text as it is typed."""

import numpy as np
import pytest
from PIL import Image

from blip2ft.attention.look import look, most_at
from blip2ft.attention.maps import cross_attention, itm_gradcam, likelihood_gradcam
from blip2ft.data.images import transforms_for, upright_rgb


def photo(width: int = 60, height: int = 40) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def pixels_of(looking, image: Image.Image):
    return transforms_for(looking.processor.image_processor)[1](image)[None]


def test_without_a_text_it_is_the_cross_attention(looking_of):
    looking = looking_of("opt")
    seen = look(looking.model, looking.processor, photo())
    expected = cross_attention(looking.model, pixels_of(looking, photo()))[0]
    np.testing.assert_array_equal(seen.attention, expected.numpy())
    np.testing.assert_allclose(seen.map, expected.mean((0, 1, 2)).numpy(), rtol=1e-6)
    assert seen.layers == (0,)
    assert (seen.text, seen.score, seen.weighed, seen.text_map) == (None, None, None, None)


def test_a_retriever_weighs_a_match(looking_of):
    looking = looking_of("retriever")
    seen = look(looking.model, looking.processor, photo(), "a red apple")
    text = [tensor[:1, :5] for tensor in looking.text]  # the shorter of the two
    found = itm_gradcam(looking.model, pixels_of(looking, photo()), *text)
    np.testing.assert_allclose(seen.weighed, found.weighed[0].numpy(), rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(seen.text_map, seen.weighed.mean((0, 1, 2)))
    assert seen.score == pytest.approx(float(found.scores))
    assert seen.scored == "probability of a match"


@pytest.mark.parametrize("kind", ["opt", "t5"])
def test_a_captioner_weighs_the_words_without_their_end(kind, looking_of):
    """So a part of a caption can be asked for."""
    looking = looking_of(kind)
    seen = look(looking.model, looking.processor, photo(), "a red apple", prompt="a photo of")
    looking.pixels = pixels_of(looking, photo())
    batch = looking.batch(["a red apple"])
    whole = likelihood_gradcam(looking.model, batch)
    last = int((batch["labels"][0] != -100).nonzero().max())
    batch["labels"][0, last] = -100
    part = likelihood_gradcam(looking.model, batch)
    np.testing.assert_allclose(seen.weighed, part.weighed[0].numpy(), rtol=1e-5, atol=1e-9)
    assert not np.allclose(seen.weighed, whole.weighed[0].numpy())
    assert seen.score == pytest.approx(float(part.scores))


def test_a_question_moves_the_look_and_is_not_weighed(looking_of):
    looking = looking_of("vqa")
    asked = {"prompt": "the {} on"}
    first, second = (
        look(looking.model, looking.processor, photo(), text, **asked) for text in ("cat", "car")
    )
    assert first.weighed is None
    assert first.score is None
    assert not np.allclose(first.attention, second.attention)
    plain = look(looking.model, looking.processor, photo(), "the cat on")
    np.testing.assert_array_equal(plain.attention, first.attention)  # the template is filled


def test_a_turned_photo_is_looked_at_upright(looking_of):
    """Of one that says in its Exif data that it lies on its side."""
    looking = looking_of("opt")
    upright = photo(40, 60)
    lying = upright.transpose(Image.Transpose.ROTATE_90)
    lying.getexif()[274] = 6
    seen = look(looking.model, looking.processor, lying)
    assert seen.image.size == (40, 60)
    assert seen.image.tobytes() == upright_rgb(upright).tobytes()
    expected = look(looking.model, looking.processor, upright)
    np.testing.assert_array_equal(seen.attention, expected.attention)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_any_kind_of_image_is_looked_at(mode, looking_of):
    looking = looking_of("opt")
    seen = look(looking.model, looking.processor, photo().convert(mode))
    assert seen.image.mode == "RGB"
    assert np.isfinite(seen.attention).all()


@pytest.mark.parametrize("kind", ["opt", "t5", "retriever", "vqa"])
@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_text_is_refused(kind, text, looking_of):
    looking = looking_of(kind)
    with pytest.raises(ValueError, match="points at nothing; leave it out, or give words"):
        look(looking.model, looking.processor, photo(), text)


def test_texts_that_are_too_long_are_refused_and_not_cut(looking_of):
    captioner, retriever = looking_of("opt"), looking_of("retriever")
    long = "a dog and " * 12
    with pytest.raises(ValueError, match="has 38 tokens and the model reads 32; shorten it"):
        look(retriever.model, retriever.processor, photo(), long)
    with pytest.raises(ValueError, match="more than 63 tokens; shorten it"):
        look(captioner.model, captioner.processor, photo(), long * 3, prompt="a photo of")


def test_questions_that_the_queries_do_not_read_are_refused(looking_of):
    captioner, asker = looking_of("opt"), looking_of("vqa")
    with pytest.raises(ValueError, match="changes nothing in where it looks; leave the text out"):
        look(captioner.model, captioner.processor, photo(), "a cat", prompt="the {}")
    with pytest.raises(ValueError, match="give a question as text"):
        look(asker.model, asker.processor, photo())


def test_where_a_map_is_highest_is_told_in_per_cent():
    heat = np.zeros((4, 5))
    heat[3, 0] = 1
    assert most_at(heat) == "10 % across, 88 % down"
