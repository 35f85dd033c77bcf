"""Features in the place of pixels: the same losses, gradients and answers, bit for bit."""

import copy
import io

import pytest
import torch
from clip_folders import on_clip
from torch import nn
from transformers import Blip2Config, Blip2ForConditionalGeneration

from blip2ft.data.batches import Sample, text_layout
from blip2ft.data.pairs import Pair, pair_layout
from blip2ft.features.level import QUERIES, VISION
from blip2ft.features.serve import (
    compute_features,
    features_digest,
    features_shape,
    serve_features,
    set_tower_aside,
)
from blip2ft.features.store import row_bytes
from blip2ft.models.adapters import attach_lora
from blip2ft.models.load import load_captioner, load_retriever
from blip2ft.models.parts import checkpoint_gradients, set_train_mode, set_trainable
from blip2ft.models.vqa import load_vqa
from blip2ft.tasks.caption import caption_loss, generate
from blip2ft.tasks.retrieval import retrieval_loss

FROZEN = {"vision": "frozen", "qformer": "frozen", "projection": "frozen", "language": "frozen"}
QFORMER = {**FROZEN, "qformer": "full", "projection": "full"}
LANGUAGE = {**FROZEN, "language": "full"}
TEXTS = ("a red apple", "a blue bird on the left", "a cat")
OPTIONS = {"num_beams": 2, "max_new_tokens": 4}


def pixels(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, 28, 28, generator=torch.Generator().manual_seed(1))


def samples(images: torch.Tensor) -> list[Sample]:
    return [Sample(image, "a photo of", text) for image, text in zip(images, TEXTS, strict=True)]


def gradients(model: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def same_steps(model, level, batch_of, loss) -> None:
    """Loss and gradients of pixels before, of pixels after and of features after."""
    set_train_mode(model)
    with torch.inference_mode():
        kept = compute_features(copy.deepcopy(model).eval(), level, pixels()).clone()
    found = []
    for i, images in enumerate((pixels(), pixels(), kept)):
        if i == 1:
            serve_features(model, level)
        torch.manual_seed(3)
        value = loss(model, batch_of(images))
        found.append((value.detach(), gradients(model, value)))
    (expected, wanted), *others = found
    assert wanted
    for value, gradient in others:
        assert torch.equal(value, expected)
        assert gradient.keys() == wanted.keys()
        assert all(torch.equal(g, wanted[name]) for name, g in gradient.items())


@pytest.mark.parametrize(("level", "parts"), [(VISION, QFORMER), (QUERIES, LANGUAGE)])
def test_captioning_is_the_same_to_the_bit(model_folder, level, parts):
    model, processor = load_captioner(model_folder)
    set_trainable(model, parts)
    layout = text_layout(model, processor, 16)
    same_steps(model, level, lambda images: layout.collate(samples(images)), caption_loss)


def test_checkpointed_and_with_lora_too(opt_folder):
    parts = {**QFORMER, "qformer": "lora", "language": "lora"}
    model, processor = load_captioner(opt_folder)
    attach_lora(model, parts, r=2)
    set_trainable(model, parts)
    checkpoint_gradients(model, ["vision", "qformer", "language"])
    layout = text_layout(model, processor, 16)
    same_steps(model, VISION, lambda images: layout.collate(samples(images)), caption_loss)


def test_on_clips_encoder(opt_folder, tmp_path):
    model, processor = load_captioner(on_clip(opt_folder, tmp_path / "clip"))
    set_trainable(model, QFORMER)
    layout = text_layout(model, processor, 16)
    same_steps(model, VISION, lambda images: layout.collate(samples(images)), caption_loss)


def test_under_bf16_with_a_frozen_tower_in_bf16(opt_folder):
    model, processor = load_captioner(opt_folder)
    set_trainable(model, QFORMER, torch.bfloat16)
    layout = text_layout(model, processor, 16)

    def loss(model, batch):
        with torch.autocast("cpu", torch.bfloat16):
            return caption_loss(model, batch)

    set_train_mode(model)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        kept = compute_features(copy.deepcopy(model).eval(), VISION, pixels()).clone()
    assert kept.dtype == torch.bfloat16
    torch.manual_seed(3)
    expected = loss(model, layout.collate(samples(pixels())))
    serve_features(model, VISION)
    torch.manual_seed(3)
    assert torch.equal(loss(model, layout.collate(samples(kept))), expected)


def test_retrieval_is_the_same_to_the_bit(retriever_folder):
    model, processor = load_retriever(
        retriever_folder, objectives={"itc": 1.0, "itm": 1.0, "itg": 1.0}
    )
    set_trainable(model, QFORMER)
    layout = pair_layout(model, processor, 16)

    def batch_of(images):
        pairs = zip(images, TEXTS, strict=True)
        return layout.collate([Pair(image, text, i) for i, (image, text) in enumerate(pairs)])

    same_steps(model, VISION, batch_of, retrieval_loss)


def test_questions_in_the_qformer_are_the_same_to_the_bit(opt_folder, retriever_folder):
    model, processor = load_vqa(opt_folder, question_in_qformer=True, stage1=retriever_folder)
    set_trainable(model, QFORMER)
    layout = text_layout(model, processor, 16)
    same_steps(model, VISION, lambda images: layout.collate(samples(images)), caption_loss)


@pytest.mark.parametrize("level", [VISION, QUERIES])
def test_answers_are_the_same(model_folder, level):
    model, processor = load_captioner(model_folder)
    layout = text_layout(model, processor, 16)
    with torch.inference_mode():
        kept = compute_features(model, level, pixels())
    expected = generate(model, layout, samples(pixels()), **OPTIONS)
    assert len(set(expected)) > 1
    serve_features(model, level)
    assert generate(model, layout, samples(pixels()), **OPTIONS) == expected
    assert generate(model, layout, samples(kept), **OPTIONS) == expected
    assert generate(model, layout, samples(kept.flip(0)), **OPTIONS) != expected


@pytest.mark.parametrize("level", [VISION, QUERIES])
def test_features_of_another_model_are_refused(opt_folder, level):
    model, processor = load_captioner(opt_folder)
    layout = text_layout(model, processor, 16)
    serve_features(model, level)
    batch = layout.collate(samples(torch.zeros(3, 7, 32)))
    with pytest.raises(ValueError, match=r"shape \(3, 7, 32\) are neither pixels"):
        caption_loss(model, batch)
    with pytest.raises(ValueError, match=r"shape \(3, 7, 32\) are neither pixels"):
        generate(model, layout, samples(torch.zeros(3, 7, 32)), **OPTIONS)


@pytest.mark.parametrize("level", [VISION, QUERIES])
def test_a_copy_serves_by_its_own_weights_and_saves_as_stock(opt_folder, tmp_path, level):
    model, _ = load_captioner(opt_folder)
    serve_features(model, level)
    model.save_pretrained(tmp_path)
    assert Blip2ForConditionalGeneration.from_pretrained(tmp_path)
    other = copy.deepcopy(model)
    for weight in (model.vision_model.post_layernorm.weight, model.language_projection.weight):
        nn.init.zeros_(weight)
    kept = compute_features(other, VISION, pixels())
    given = kept if level == VISION else pixels()
    zeros, values = (m.get_image_features(given, return_dict=True) for m in (model, other))
    assert values.pooler_output.std() > 0.01
    assert torch.equal(zeros.pooler_output[0, 0], model.language_projection.bias)
    torch.save(model.state_dict(), io.BytesIO())


DECIDING = {
    VISION: ["vision_model.embeddings.position_embedding", "vision_model.encoder.layers.1.mlp.fc2"],
    QUERIES: ["qformer.encoder.layer.0.crossattention", "query_tokens", "language_projection"],
}


@pytest.mark.parametrize("level", [VISION, QUERIES])
def test_the_digest_follows_what_the_features_depend_on(opt_folder, level):
    model, _ = load_captioner(opt_folder)
    seen = {features_digest(model, level)}
    deciding = DECIDING[VISION] + (DECIDING[QUERIES] if level == QUERIES else [])
    if level == QUERIES:
        deciding = [*deciding, "vision_model.post_layernorm"]
    for prefix in deciding:
        parameter = next(p for n, p in model.named_parameters() if n.startswith(prefix))
        parameter.data.view(-1)[0] += 1
        found = features_digest(model, level)
        assert found not in seen, prefix
        seen.add(found)
    others = ["language_model"] + ([*DECIDING[QUERIES], NORM] if level == VISION else [])
    for prefix in others:
        for name, parameter in model.named_parameters():
            if name.startswith(prefix):
                parameter.data += 1
        assert features_digest(model, level) == found, prefix
    model.config.vision_config.layer_norm_eps *= 10
    assert features_digest(model, level) != found


NORM = "vision_model.post_layernorm"


def test_both_classes_share_an_image_encoders_features(opt_folder, retriever_folder):
    blip2, _ = load_captioner(opt_folder)
    instruct, _ = load_vqa(opt_folder, question_in_qformer=True, stage1=retriever_folder)
    assert features_digest(blip2, VISION) == features_digest(instruct, VISION)


def test_a_quantised_encoder_has_features_of_its_own(wide_folder):
    full, _ = load_captioner(wide_folder)
    model, _ = load_captioner(wide_folder, quantize={"vision": "nf4"})
    assert features_digest(model, VISION) != features_digest(full, VISION)
    found = compute_features(model, VISION, pixels())
    expected = compute_features(full, VISION, pixels())
    assert not torch.equal(found, expected)
    whole = model.vision_model(pixels()).last_hidden_state
    serve_features(model, VISION)
    assert torch.equal(model.vision_model(found).last_hidden_state, whole)


def test_full_size_takes_what_arithmetic_says():
    """ViT-g at 364 px: 26 x 26 patches and the class token, 1408 wide."""
    with torch.device("meta"):
        config = Blip2Config(vision_config={"image_size": 364, "patch_size": 14})
        model = Blip2ForConditionalGeneration(config)
        states = model.vision_model.embeddings(torch.empty(1, 3, 364, 364))
    shape = features_shape(config, VISION)
    assert shape == tuple(states.shape[1:]) == (677, 1408)
    assert 120_000 * row_bytes(shape, "bf16") == 120_000 * 677 * 1408 * 2 == 228_771_840_000
    assert row_bytes(shape, "int8") == 677 * (1408 + 4 * 1408 // 64)
    assert features_shape(config, QUERIES) == (32, config.text_config.hidden_size)


def test_the_tower_goes_aside_and_a_quantised_one_stays(opt_folder, wide_folder, monkeypatch):
    model, _ = load_captioner(opt_folder)
    moved = []
    monkeypatch.setattr(nn.Module, "to", lambda module, device: moved.append((module, device)))
    set_tower_aside(model)
    assert moved == [(model.vision_model.encoder, "cpu")]
    quantised, _ = load_captioner(wide_folder, quantize={"vision": "nf4"})
    moved.clear()
    set_tower_aside(quantised)
    assert moved == []
