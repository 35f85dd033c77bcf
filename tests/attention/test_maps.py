"""Maps against their definitions."""

import importlib.util

import pytest
import torch
from torch import Tensor
from transformers import Blip2ForImageTextRetrieval
from transformers.models.blip_2 import modeling_blip_2

from blip2ft.attention.maps import Weighed, cross_attention, itm_gradcam, likelihood_gradcam
from blip2ft.attention.recording import on_grid
from blip2ft.models.adapters import attach_lora, merge_lora
from blip2ft.models.load import load_captioner
from blip2ft.models.parts import set_trainable


def weighed_of(looking, model=None) -> Weighed:
    """Grad-CAM of both texts, by a model of the kind of `looking`'s."""
    model = model or looking.model
    if isinstance(model, Blip2ForImageTextRetrieval):
        return itm_gradcam(model, looking.pixels, *looking.text)
    return likelihood_gradcam(model, looking.batch())


@torch.no_grad()
def by_definition(model, run) -> Tensor:
    """softmax(q k / sqrt(d)) over all image tokens of what each layer is given: (B, L, h, Q, S)."""
    found = []

    def compute(module, args, kwargs, output):
        image = kwargs["encoder_hidden_states"] if "encoder_hidden_states" in kwargs else args[2]
        states = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        heads = module.num_attention_heads
        query = module.query(states).unflatten(-1, (heads, -1))
        key = module.key(image).unflatten(-1, (heads, -1))
        scores = torch.einsum("bqhd,bshd->bhqs", query, key) / query.shape[-1] ** 0.5
        found.append(scores.softmax(-1))

    layers = [layer for layer in model.qformer.encoder.layer if layer.has_cross_attention]
    hooks = [
        layer.crossattention.attention.register_forward_hook(compute, with_kwargs=True)
        for layer in layers
    ]
    run()
    for hook in hooks:
        hook.remove()
    return torch.stack(found, 1)


def test_attention_is_what_its_definition_says(looking):
    maps = []

    def run():
        maps.append(cross_attention(looking.model, looking.pixels, text=looking.text))

    expected = by_definition(looking.model, run)
    torch.testing.assert_close(maps[0], expected[..., 1:].unflatten(-1, (2, 2)))
    torch.testing.assert_close(maps[0].sum((-1, -2)), 1 - expected[..., 0])


@torch.no_grad()
def test_attention_is_that_of_the_stock_forward(weighing):
    """Of a retriever while it matches, of a captioner while it writes."""
    expected = by_definition(weighing.model, lambda: stock_scores(weighing))
    torch.testing.assert_close(
        weighed_of(weighing).attention, expected[..., 1:].unflatten(-1, (2, 2))
    )


@torch.no_grad()
def stock_scores(looking) -> Tensor:
    """What the gradients are of, as stock computes it: matching logits, or log-likelihoods (B,)."""
    model = looking.model
    if isinstance(model, Blip2ForImageTextRetrieval):
        ids, mask = looking.text
        found = Blip2ForImageTextRetrieval.forward(
            model,
            pixel_values=looking.pixels.to(model.dtype),
            input_ids=ids,
            attention_mask=mask,
            use_image_text_matching_head=True,
        )
        return found.logits_per_image[:, 1]
    batch = looking.batch()
    batch["pixel_values"] = batch["pixel_values"].to(model.dtype)
    labels = batch.pop("labels")
    logits = model(**batch).logits
    if "decoder_input_ids" not in batch:
        logits, labels = logits[:, :-1], labels[:, 1:]
    said = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return torch.where(labels >= 0, said, 0).sum(1)


def test_what_is_weighed_is_attention_times_its_gradient_by_finite_differences(
    weighing, monkeypatch
):
    model = weighing.model.double()
    found = weighed_of(weighing)
    nudge = {"layer": None, "at": (0, 0, 0, 0), "by": 0.0}
    stock = modeling_blip_2.eager_attention_forward

    def nudged(module, query, key, value, *args, **kwargs):
        output, weights = stock(module, query, key, value, *args, **kwargs)
        if module is nudge["layer"]:
            b, head, q, s = nudge["at"]
            output[b, q, head] += nudge["by"] * value[b, head, s]
        return output, weights

    monkeypatch.setattr(modeling_blip_2, "eager_attention_forward", nudged)
    model.qformer.set_attn_implementation("eager")
    nudge["layer"] = model.qformer.encoder.layer[0].crossattention.attention
    gradients = []
    for b, head, q, patch in [(0, 0, 0, 0), (0, 1, 3, 2), (1, 0, 2, 3), (1, 1, 1, 1), (0, 1, 0, 3)]:
        nudge["at"] = b, head, q, 1 + patch
        scores = []
        for nudge["by"] in (1e-3, -1e-3):
            scores.append(stock_scores(weighing)[b])
        gradient = float(scores[0] - scores[1]) / 2e-3
        gradients.append(gradient)
        row, column = divmod(patch, 2)
        share = float(found.attention[b, 0, head, q, row, column])
        expected = share * max(gradient, 0)
        # T5's norms compute in fp32 all the same
        assert float(found.weighed[b, 0, head, q, row, column]) == pytest.approx(expected, rel=1e-2)
    assert min(gradients) < 0 < max(gradients)  # both ways were tried


def test_scores_are_those_of_stock(weighing):
    found = weighed_of(weighing)
    expected = stock_scores(weighing)
    if weighing.text is not None:
        ids, mask = weighing.text
        given = {"pixel_values": weighing.pixels, "input_ids": ids, "attention_mask": mask}
        both = Blip2ForImageTextRetrieval.forward(
            weighing.model, **given, use_image_text_matching_head=True
        )
        torch.testing.assert_close(found.scores, both.logits_per_image.softmax(-1)[:, 1])
    else:
        tokens = (weighing.batch()["labels"] != -100).sum(1)
        torch.testing.assert_close(found.scores, (expected / tokens).exp())


def test_an_image_has_the_same_map_alone_and_beside_others(weighing):
    both = weighed_of(weighing)
    weighing.pixels = weighing.pixels[1:]
    if weighing.text is not None:
        weighing.text = tuple(tensor[1:] for tensor in weighing.text)
        alone = itm_gradcam(weighing.model, weighing.pixels, *weighing.text)
    else:
        alone = likelihood_gradcam(weighing.model, weighing.batch(["the cat on the left of a dog"]))
    for whole, part in zip(both, alone, strict=True):
        torch.testing.assert_close(whole[1:], part)


def test_another_text_is_weighed_otherwise(weighing):
    weighing.pixels = weighing.pixels[:1].expand(2, -1, -1, -1)
    found = weighed_of(weighing)
    assert (found.weighed >= 0).all()
    assert not torch.allclose(found.weighed[0], found.weighed[1])


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_a_look_leaves_the_model_as_it_was(weighing, implementation):
    model = weighing.model
    parts = dict.fromkeys(("vision", "qformer", "projection"), "full")
    if weighing.text is None:
        parts["language"] = "frozen"
    set_trainable(model, parts)
    model.qformer.set_attn_implementation(implementation)
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    before = stock_scores(weighing)
    weighed_of(weighing)
    with pytest.raises(ValueError, match="resize"):
        cross_attention(model, weighing.pixels[..., :14])
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.qformer.config._attn_implementation == implementation
    torch.testing.assert_close(stock_scores(weighing), before, rtol=0, atol=0)
    hooks = [module._forward_hooks for module in model.qformer.modules()]
    assert not any(hooks)


def test_a_lora_looks_as_the_model_that_it_is_merged_into(weighing):
    model = weighing.model
    plain = weighed_of(weighing)
    attach_lora(model, {"vision": "lora", "qformer": "lora"}, r=2)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.1)
    with pytest.raises(ValueError, match="dropout"):
        weighed_of(weighing)
    model.eval()
    adapted = weighed_of(weighing)
    merge_lora(model)
    merged = weighed_of(weighing)
    for ours, theirs, without in zip(adapted, merged, plain, strict=True):
        torch.testing.assert_close(ours, theirs)
        assert not torch.allclose(ours, without, rtol=1e-2)


def test_weights_in_bf16_give_maps_in_fp32(weighing):
    exact = weighed_of(weighing)
    rounded = weighed_of(weighing, weighing.model.to(torch.bfloat16))
    assert rounded.attention.dtype == rounded.weighed.dtype == torch.float32
    torch.testing.assert_close(rounded.attention, exact.attention, atol=0.05, rtol=0)


@pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs blip2ft[quantize]"
)
@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_quantised_model_looks_about_as_its_weights_do(kind, looking_of, wide_folder):
    """As what its bits stand for does; to 8 bits also its inputs are rounded."""
    from peft.utils.integrations import dequantize_module_weight

    looking = looking_of("opt")
    quantised, _ = load_captioner(wide_folder, quantize={"vision": kind, "language": kind})
    plain, _ = load_captioner(wide_folder)
    found = weighed_of(looking, quantised)
    exact = dict(plain.named_modules())
    for name, module in quantised.named_modules():
        if type(module).__name__ in ("Linear4bit", "Linear8bitLt"):
            with torch.no_grad():
                exact[name].weight.copy_(dequantize_module_weight(module))
    expected = weighed_of(looking, plain)
    close = {"nf4": 1e-4, "int8": 3e-2}[kind]
    torch.testing.assert_close(found.attention, expected.attention, atol=close, rtol=0)
    change = (found.weighed - expected.weighed).norm() / expected.weighed.norm()
    assert change < {"nf4": 1e-3, "int8": 0.1}[kind]


@torch.no_grad()
@pytest.mark.parametrize("side", [28, 42, 70])
def test_a_patch_lies_in_its_row_and_column_at_any_image_size(side, opt_folder):
    model, _ = load_captioner(opt_folder, image_size=side)
    grid = side // 14
    pixels = torch.zeros(1, 3, side, side)
    plain = model.vision_model.embeddings(pixels)
    for row, column in [(0, grid - 1), (grid - 1, 0), (1, 1)]:
        changed = pixels.clone()
        changed[:, :, row * 14 : row * 14 + 14, column * 14 : column * 14 + 14] = 1
        difference = (model.vision_model.embeddings(changed) - plain).norm(dim=-1)
        map_of = on_grid(model, changed, [difference[:, None, None]])
        assert map_of.shape == (1, 1, 1, 1, grid, grid)
        assert map_of.flatten().argmax() == row * grid + column
        assert (map_of > 0).sum() == 1
    maps = cross_attention(model, pixels)
    assert maps.shape == (1, 1, 2, 4, grid, grid)


def test_what_can_not_be_looked_at_is_refused(looking_of):
    captioner, retriever, asker = (looking_of(kind) for kind in ("opt", "retriever", "vqa"))
    pixels, text = retriever.pixels, retriever.text
    with pytest.raises(ValueError, match="Blip2ForConditionalGeneration has no matching head"):
        itm_gradcam(captioner.model, pixels, *text)
    with pytest.raises(ValueError, match="no likelihood; use itm_gradcam"):
        likelihood_gradcam(retriever.model, captioner.batch())
    with pytest.raises(ValueError, match="reads no text; leave text out"):
        cross_attention(captioner.model, pixels, text=text)
    with pytest.raises(ValueError, match="give it as text"):
        cross_attention(asker.model, pixels)
    with pytest.raises(ValueError, match=r"\(2, 3, 14, 28\): this model takes \(B, 3, 28, 28\)"):
        cross_attention(captioner.model, pixels[:, :, 14:])
    with pytest.raises(ValueError, match="this model takes"):
        likelihood_gradcam(captioner.model, {**captioner.batch(), "pixel_values": pixels[..., 1:]})
    captioner.model.train()
    with pytest.raises(ValueError, match=r"training mode, whose dropout changes maps; use .eval\("):
        cross_attention(captioner.model, pixels)
