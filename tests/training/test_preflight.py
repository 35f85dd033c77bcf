"""Before the first step: every way in which a run can't work is named."""

from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator

from blip2ft.data.batches import IGNORE, Sample, text_layout
from blip2ft.models.adapters import attach_lora
from blip2ft.models.load import load_captioner
from blip2ft.models.parts import set_trainable
from blip2ft.tasks.caption import caption_loss
from blip2ft.training.preflight import (
    check_image_tokens,
    check_labels,
    name_nonfinite_part,
    preflight,
)

PAPER = {"vision": "full", "qformer": "full", "projection": "full", "language": "frozen"}
LORA = {"vision": "lora", "qformer": "full", "projection": "full", "language": "lora"}


def samples(targets=("a red apple", "a cat")) -> list[Sample]:
    generator = torch.Generator().manual_seed(0)
    return [Sample(torch.randn(3, 28, 28, generator=generator), "a photo of", t) for t in targets]


def prepared(folder, parts=PAPER):
    model, processor = load_captioner(folder)
    attach_lora(model, parts)
    set_trainable(model, parts)
    return model, text_layout(model, processor)


def check(model, layout, loss=caption_loss, few=None, parts=PAPER) -> None:
    preflight(model, parts, layout, few or samples(), loss, Accelerator(cpu=True))


@pytest.mark.parametrize("parts", [PAPER, LORA], ids=["paper", "lora"])
def test_a_sound_model_passes_and_nothing_is_changed(model_folder, parts):
    model, layout = prepared(model_folder, parts)
    model.train()
    weights = {name: p.clone() for name, p in model.named_parameters()}
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    check(model, layout, parts=parts)
    assert torch.equal(torch.rand(3), expected)
    assert model.training
    for name, p in model.named_parameters():
        assert torch.equal(p, weights[name])
        assert p.grad is None


def test_one_sample_is_enough(model_folder):
    model, layout = prepared(model_folder)
    check(model, layout, few=samples(["a cat"]))


@pytest.mark.parametrize("number", [0, 3, 5])
def test_another_number_of_image_tokens_is_named(opt_folder, number):
    model, layout = prepared(opt_folder)
    wrong = replace(layout, num_query_tokens=number)
    with pytest.raises(ValueError, match=f"has {number} image tokens, the model has 4 queries"):
        check(model, wrong)


def test_another_image_token_is_named(opt_folder):
    model, layout = prepared(opt_folder)
    with pytest.raises(ValueError, match="has 0 image tokens, the model has 4 queries"):
        check(model, replace(layout, image_token_id=5))


def test_image_tokens_are_counted_in_every_row():
    ids = torch.tensor([[9, 9, 1, 2], [9, 1, 2, 3]])
    with pytest.raises(ValueError, match="has 1 image tokens, the model has 2 queries"):
        check_image_tokens(ids, 9, 2)
    check_image_tokens(ids[:1], 9, 2)


def test_labels_that_say_something_else_are_shown(model_folder):
    _, layout = prepared(model_folder)
    labels = layout.collate(samples())["labels"]
    with pytest.raises(ValueError, match="decode to 'a cat', the target is 'a red apple'"):
        check_labels(layout, samples(), labels.flip(0))


def test_labels_with_the_prompt_inside_are_refused(opt_folder):
    _, layout = prepared(opt_folder)
    batch = layout.collate(samples())
    ids = batch["input_ids"]
    labels = ids.masked_fill((ids == layout.image_token_id) | (ids == 1), IGNORE)
    with pytest.raises(ValueError, match="decode to 'a photo of a red apple'"):
        check_labels(layout, samples(), labels)


@pytest.mark.parametrize(
    "target", ["a cat  on the  left", "a\tred apple", " a cat\n", "a cat, a dog.", "a ﬁsh"]
)
def test_spaces_and_compatible_forms_are_no_reason_to_stop(model_folder, target):
    _, layout = prepared(model_folder)
    few = samples([target])
    check_labels(layout, few, layout.collate(few)["labels"])


def test_clean_up_of_spaces_by_the_tokenizer_is_no_reason_to_stop(opt_folder):
    _, layout = prepared(opt_folder)
    layout.tokenizer.clean_up_tokenization_spaces = True
    few = samples(["a cat , and a dog ."])
    check_labels(layout, few, layout.collate(few)["labels"])


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5])
def test_a_target_that_is_cut_passes(opt_folder, limit):
    _, layout = prepared(opt_folder)
    few = samples(["é ü a red apple on the left"])
    layout = replace(layout, max_target_tokens=limit)
    check_labels(layout, few, layout.collate(few)["labels"])


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("vision", "vision_model.encoder.layers.1.layer_norm2.weight"),
        ("qformer", "query_tokens"),
        ("qformer", "qformer.layernorm.bias"),
        ("projection", "language_projection.weight"),
        ("language", "language_model.model.decoder.layers.0.fc1.bias"),
    ],
)
def test_a_weight_that_is_nan_is_named(opt_folder, part, name):
    model, layout = prepared(opt_folder)
    with torch.no_grad():
        model.get_parameter(name).view(-1)[0] = float("nan")
    with pytest.raises(ValueError, match=f"part '{part}', whose weight {name} isn't finite: fet"):
        check(model, layout)


def test_an_overflow_with_finite_weights_is_named(opt_folder):
    model, layout = prepared(opt_folder)
    few = [replace(sample, pixel_values=sample.pixel_values * 1e39) for sample in samples()]
    with pytest.raises(ValueError, match=r"part 'vision' \(its weights are finite\)"):
        check(model, layout, few=few)


def test_a_loss_that_isnt_finite_by_itself_is_named(opt_folder):
    model, layout = prepared(opt_folder)
    with pytest.raises(ValueError, match="every part is finite, so it is the loss itself"):
        check(model, layout, loss=lambda m, batch: caption_loss(m, batch) * float("nan"))


def test_naming_a_part_leaves_no_hooks(opt_folder):
    model, layout = prepared(opt_folder)
    batch = layout.collate(samples())
    assert name_nonfinite_part(model, lambda m: caption_loss(m, batch), Accelerator(cpu=True)) == ""
    assert not any(module._forward_hooks for module in model.modules())


def test_a_zero_projection_keeps_the_image_out(model_folder):
    model, layout = prepared(model_folder)
    torch.nn.init.zeros_(model.language_projection.weight)
    with pytest.raises(ValueError, match="whatever the image; nothing of the image reaches"):
        check(model, layout)


@pytest.mark.parametrize("part", ["vision", "qformer"])
def test_a_part_that_the_gradient_doesnt_reach_is_named(opt_folder, part, monkeypatch):
    model, layout = prepared(opt_folder)
    module = {"vision": model.vision_model, "qformer": model.qformer}[part]
    parts = PAPER if part == "vision" else PAPER | {"vision": "frozen"}
    set_trainable(model, parts)
    monkeypatch.setattr(module, "forward", torch.no_grad()(module.forward))
    with pytest.raises(ValueError, match=f"part '{part}' shall train, but the gradient doesn't"):
        check(model, layout, parts=parts)


def test_a_frozen_part_that_was_left_trainable_is_named(opt_folder):
    model, layout = prepared(opt_folder)
    model.language_model.requires_grad_(True)
    with pytest.raises(ValueError, match="part 'language' shall be frozen, but the gradient"):
        check(model, layout)
