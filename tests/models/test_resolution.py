"""Position embeddings at another image size are those that stock transformers interpolates."""

import pytest
import torch
from transformers import Blip2ForConditionalGeneration, Blip2VisionConfig, Blip2VisionModel

from blip2ft.models.resolution import resize_image_input


@pytest.fixture
def model(opt_folder) -> Blip2ForConditionalGeneration:
    return Blip2ForConditionalGeneration.from_pretrained(opt_folder).eval()


def positions(model: Blip2ForConditionalGeneration) -> torch.nn.Parameter:
    return model.vision_model.embeddings.position_embedding


@pytest.mark.parametrize("size", [14, 42, 70])
@torch.no_grad()
def test_another_size_equals_stock_interpolation(model, size):
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    expected = model.vision_model(pixels, interpolate_pos_encoding=True)[0]
    resize_image_input(model, size)
    torch.testing.assert_close(model.vision_model(pixels)[0], expected, rtol=0, atol=1e-6)


def test_the_class_token_keeps_its_position(model):
    before = positions(model)[:, 0].clone()
    resize_image_input(model, 42)
    assert positions(model).shape == (1, 10, 32)
    assert torch.equal(positions(model)[:, 0], before)


def test_the_same_size_changes_nothing(model):
    before = positions(model)
    values = before.clone()
    resize_image_input(model, 28)
    assert positions(model) is before
    assert torch.equal(positions(model), values)


def test_the_config_is_changed_everywhere(model):
    resize_image_input(model, 42)
    embeddings = model.vision_model.embeddings
    assert model.config.vision_config.image_size == 42
    assert model.vision_model.config.image_size == 42
    assert (embeddings.image_size, embeddings.num_patches, embeddings.num_positions) == (42, 9, 10)


@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_and_trainability_are_kept(model, dtype, trains):
    exact = positions(model).detach().to(dtype).float()
    model.to(dtype)
    positions(model).requires_grad_(trains)
    resize_image_input(model, 42)
    assert isinstance(positions(model), torch.nn.Parameter)
    assert positions(model).dtype == dtype
    assert positions(model).requires_grad == trains
    # computed in fp32 and rounded once
    patches = exact[:, 1:].reshape(1, 2, 2, -1).permute(0, 3, 1, 2)
    patches = torch.nn.functional.interpolate(patches, (3, 3), mode="bicubic")
    expected = patches.permute(0, 2, 3, 1).reshape(1, 9, -1).to(dtype)
    assert torch.equal(positions(model)[:, 1:], expected)


def test_a_size_with_a_remainder_counts_whole_patches():
    # 30 px in patches of 14 are 2 x 2 patches, as at 28 px
    config = Blip2VisionConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=30,
        patch_size=14,
    )
    model = torch.nn.Module()
    model.vision_model = Blip2VisionModel(config)
    model.config = torch.nn.Module()
    model.config.vision_config = config
    before = positions(model).clone()
    resize_image_input(model, 28)
    torch.testing.assert_close(positions(model), before)
    assert config.image_size == 28


@pytest.mark.parametrize(("size", "near"), [(40, "28 and 42"), (5, "14 and 28"), (0, "14 and 28")])
def test_a_size_that_does_not_divide_is_refused(model, size, near):
    with pytest.raises(
        ValueError, match=rf"image size {size} doesn't divide into patches of 14.* are {near}"
    ):
        resize_image_input(model, size)


def test_a_negative_size_is_refused(model):
    with pytest.raises(ValueError, match="image size -14 doesn't divide into patches"):
        resize_image_input(model, -14)
