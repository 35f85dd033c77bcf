"""CLIP's image encoder in BLIP-2: equal to transformers' CLIP, and never taken for stock's own."""

import copy
import json
from pathlib import Path

import pytest
import torch
from clip_folders import on_clip, randomize, tiny_clip, vision_of
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    Blip2VisionModel,
    InstructBlipForConditionalGeneration,
)

from blip2ft.data.batches import Sample, text_layout
from blip2ft.data.pairs import pair_layout
from blip2ft.models.adapters import lora_targets
from blip2ft.models.clip_vision import (
    CLIP_ACT,
    ClipCaptioner,
    ClipInstructBlip,
    ClipRetriever,
    ClipVisionModel,
    class_for,
    is_clip,
    who_loads,
)
from blip2ft.models.load import load_captioner, load_retriever
from blip2ft.models.parts import PARTS, checkpoint_gradients, part_of, set_train_mode, set_trainable
from blip2ft.models.resolution import resize_image_input
from blip2ft.models.retriever import Retriever
from blip2ft.models.vision_source import read_vision
from blip2ft.models.vqa import load_vqa
from blip2ft.training.optimizer import parameter_groups

FULL = dict.fromkeys(PARTS, "full")


@pytest.fixture(scope="module")
def captioner(opt_folder, tmp_path_factory) -> Path:
    return on_clip(opt_folder, tmp_path_factory.mktemp("clip") / "captioner")


@pytest.fixture(scope="module")
def retriever(retriever_folder, tmp_path_factory) -> Path:
    return on_clip(retriever_folder, tmp_path_factory.mktemp("clip") / "retriever")


def pixels(count: int, size: int) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def batch_of(model, processor):
    samples = [Sample(image, "the photo of", "a red apple") for image in pixels(2, 28)]
    return text_layout(model, processor, 8).collate(samples)


# What it computes.


@pytest.fixture(scope="module")
def clip():
    return tiny_clip()


def like(clip, folder, **options) -> ClipVisionModel:
    """`clip` without its last block, as saved and read again."""
    clip.save_pretrained(folder)
    source = read_vision(folder)
    model = class_for(Blip2VisionModel, source.config)._from_config(source.config, **options)
    randomize(model.post_layernorm)
    missing, unexpected = model.load_state_dict(
        {name: t for name, t in source.state.items() if not name.startswith("post")}, strict=False
    )
    assert not unexpected
    assert all(name.startswith("post_layernorm.") for name in missing)
    return model.eval()


def expected_features(clip, model, images, **options) -> torch.Tensor:
    states = vision_of(clip)(images, output_hidden_states=True, **options).hidden_states
    norm = model.post_layernorm
    return functional.layer_norm(states[-2], (32,), norm.weight, norm.bias, 1e-5)


SLOW = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.mark.parametrize("attention", ["eager", "sdpa", pytest.param("flex_attention", marks=SLOW)])
@pytest.mark.parametrize("count", [1, 3])
@torch.no_grad()
def test_it_computes_the_second_last_layer_of_clip(clip, tmp_path, attention, count):
    model = like(clip, tmp_path, attn_implementation=attention)
    assert isinstance(model, ClipVisionModel)
    found = model(pixels(count, 28)).last_hidden_state
    expected = expected_features(clip, model, pixels(count, 28))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [14, 42, 70])
@torch.no_grad()
def test_at_another_size_it_computes_what_clip_interpolates(clip, captioner, tmp_path, size):
    model, _ = load_captioner(captioner)
    model.vision_model.load_state_dict(like(clip, tmp_path).state_dict())
    images = pixels(2, size)
    expected = expected_features(
        clip, model.vision_model, images, interpolate_pos_encoding=size != 28
    )
    stocks = model.vision_model(images, interpolate_pos_encoding=True).last_hidden_state
    torch.testing.assert_close(stocks, expected, rtol=0, atol=1e-5)
    resize_image_input(model, size)
    found = model.vision_model(images).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_norm_and_activation_are_clips(clip, tmp_path):
    """Each of what stock lacks has an effect that the comparison above would show."""
    model = like(clip, tmp_path)
    before = model(pixels(1, 28)).last_hidden_state
    changed = copy.deepcopy(model)
    changed.embeddings.pre_layernorm.weight[0] += 1
    assert (changed(pixels(1, 28)).last_hidden_state - before).abs().max() > 1e-2
    for layer in model.encoder.layers:
        layer.mlp.activation_fn = torch.nn.GELU()
    assert (model(pixels(1, 28)).last_hidden_state - before).abs().max() > 1e-3


def test_it_has_the_parameters_of_clip_and_no_more():
    """ViT-L/14 without its last block: the paper's, at full size and without weights."""
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}
    with torch.device("meta"):
        whole = tiny_clip_vision(**sizes, num_hidden_layers=24, image_size=224)
        last = sum(p.numel() for p in whole.encoder.layers[-1].parameters())
        config = AutoConfig.for_model("blip-2").vision_config
        for name, value in (sizes | {"num_hidden_layers": 23, "hidden_act": CLIP_ACT}).items():
            setattr(config, name, value)
        model = class_for(Blip2VisionModel, config)(config)
    counted = sum(p.numel() for p in model.parameters())
    assert counted == sum(p.numel() for p in whole.parameters()) - last == 290_583_552


def tiny_clip_vision(**sizes):
    from transformers import CLIPVisionConfig, CLIPVisionModel

    return CLIPVisionModel(CLIPVisionConfig(patch_size=14, **sizes))


# How a checkpoint says that it has it.


def test_the_loaders_find_it_in_the_config(captioner, retriever):
    model, _ = load_captioner(captioner)
    assert type(model) is ClipCaptioner
    assert isinstance(model, Blip2ForConditionalGeneration)
    model, _ = load_retriever(retriever)
    assert type(model) is ClipRetriever
    assert isinstance(model, Retriever)
    model, _ = load_vqa(captioner, stage1=retriever)
    assert type(model) is ClipInstructBlip
    assert isinstance(model, InstructBlipForConditionalGeneration)
    assert type(load_vqa(captioner, question_in_qformer=False)[0]) is ClipCaptioner


def test_other_checkpoints_stay_stocks(opt_folder, retriever_folder):
    assert type(load_captioner(opt_folder)[0]) is Blip2ForConditionalGeneration
    assert type(load_retriever(retriever_folder)[0]) is Retriever
    assert not is_clip(AutoConfig.from_pretrained(opt_folder))
    model, _ = load_vqa(opt_folder, stage1=retriever_folder)
    assert type(model) is InstructBlipForConditionalGeneration


def load_any(kind, captioner, retriever):
    if kind == "retriever":
        return load_retriever(retriever)
    return (
        load_captioner(captioner) if kind == "captioner" else load_vqa(captioner, stage1=retriever)
    )


LOADERS = {"captioner": load_captioner, "retriever": load_retriever, "vqa": load_vqa}


@pytest.mark.parametrize("kind", list(LOADERS))
@torch.no_grad()
def test_saved_it_comes_back_whole(kind, captioner, retriever, tmp_path):
    model, processor = load_any(kind, captioner, retriever)
    resize_image_input(model, 42)
    for parameter in model.parameters():  # what isn't saved must not come back by chance
        parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == [type(model).__name__]
    assert config["vision_config"]["hidden_act"] == "blip2ft.quick_gelu"
    again, _ = LOADERS[kind](tmp_path)
    assert type(again) is type(model)
    state = again.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    images = pixels(2, 42)
    assert torch.equal(again.vision_model(images)[0], model.vision_model(images)[0])


def test_a_retriever_on_clip_gives_head_and_text_branch(retriever, retriever_folder, opt_folder):
    model, _ = load_vqa(opt_folder, stage1=retriever)  # not on CLIP itself
    words, _ = load_retriever(retriever)
    assert torch.equal(
        model.qformer.embeddings.word_embeddings.weight, words.embeddings.word_embeddings.weight
    )
    from blip2ft.models.load import _load_itg_head

    plain, _ = load_retriever(retriever_folder)
    _load_itg_head(plain, str(retriever))
    assert torch.equal(plain.itg_head.transform.weight, words.itg_head.transform.weight)


def test_the_mark_is_in_every_copy_of_the_config(captioner):
    model, _ = load_captioner(captioner)
    for config in (
        model.config,
        copy.deepcopy(model.config),
        type(model.config).from_dict(model.config.to_dict()),
        model.vision_model.config,
        model.vision_model.encoder.layers[0].mlp.config,
    ):
        assert is_clip(config)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_takes_the_dtype_of_the_rest(retriever, dtype):
    model, _ = load_retriever(retriever, dtype=dtype)
    assert {p.dtype for p in model.vision_model.parameters()} == {dtype}
    built = ClipVisionModel._from_config(model.config.vision_config, dtype=dtype)
    assert {p.dtype for p in built.parameters()} == {dtype}


def test_it_is_built_without_memory(captioner):
    config = AutoConfig.from_pretrained(captioner)
    with torch.device("meta"):
        model = class_for(Blip2ForConditionalGeneration, config)(config)
    assert {p.device.type for p in model.parameters()} == {"meta"}


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@torch.no_grad()
def test_it_can_be_quantised(wide_folder, tmp_path, kind):
    pytest.importorskip("bitsandbytes")
    folder = on_clip(wide_folder, tmp_path / "wide")
    model, processor = load_captioner(folder, quantize={"vision": kind})
    linear = [m for m in model.vision_model.modules() if isinstance(m, torch.nn.Linear)]
    quantised = {"nf4": "Linear4bit", "int8": "Linear8bitLt"}[kind]
    assert {type(m).__name__ for m in linear} == {quantised}
    exact, _ = load_captioner(folder)
    norm = model.vision_model.embeddings.pre_layernorm
    assert torch.equal(norm.weight, exact.vision_model.embeddings.pre_layernorm.weight)
    found, expected = (m.vision_model(pixels(2, 28))[0] for m in (model, exact))
    assert 0 < (found - expected).norm() < 0.3 * expected.norm()
    assert model(**batch_of(model, processor)).loss.isfinite()


# What stock transformers does with it: the same beside blip2ft as alone, as nothing is registered.


@pytest.mark.parametrize(
    "stock", [AutoModel, AutoModelForImageTextToText, Blip2ForConditionalGeneration]
)
def test_stock_transformers_refuses_it(stock, captioner):
    load_captioner(captioner)
    with pytest.raises(KeyError, match=r"blip2ft\.quick_gelu"):
        stock.from_pretrained(captioner)
    with pytest.raises(KeyError, match=r"blip2ft\.quick_gelu"):
        Blip2ForConditionalGeneration(AutoConfig.from_pretrained(captioner))


def test_stock_classes_of_other_tasks_refuse_it(captioner, retriever, tmp_path):
    with pytest.raises(KeyError, match=r"blip2ft\.quick_gelu"):
        Blip2ForImageTextRetrieval.from_pretrained(retriever)
    model, _ = load_vqa(captioner, stage1=retriever)
    model.save_pretrained(tmp_path)
    with pytest.raises(KeyError, match=r"blip2ft\.quick_gelu"):
        InstructBlipForConditionalGeneration.from_pretrained(tmp_path)
    model.vision_model.save_pretrained(tmp_path / "vision")
    with pytest.raises(KeyError, match=r"blip2ft\.quick_gelu"):
        Blip2VisionModel.from_pretrained(tmp_path / "vision")


def test_an_activation_that_nobody_has_is_refused(captioner):
    config = AutoConfig.from_pretrained(captioner)
    config.vision_config.hidden_act = "blip2ft.none"
    with pytest.raises(KeyError, match="none"):
        ClipCaptioner(config)
    assert config.vision_config.hidden_act == "blip2ft.none"


def test_what_loads_it_is_said(captioner, retriever, opt_folder):
    refused = "stock transformers can't, as its image encoder is CLIP's"
    model, _ = load_vqa(captioner, stage1=retriever)
    for config, loader in (
        (AutoConfig.from_pretrained(captioner), "load_captioner"),
        (AutoConfig.from_pretrained(retriever), "load_retriever"),
        (model.config, "load_vqa"),
    ):
        assert who_loads(config) == f"blip2ft.{loader} loads it, {refused}"
    assert who_loads(AutoConfig.from_pretrained(opt_folder)) == "stock transformers loads it"


# How it trains.


def test_the_norm_is_one_of_the_embeddings(captioner):
    model, _ = load_captioner(captioner)
    set_trainable(model, FULL)
    groups = parameter_groups(model, lr=1.0, weight_decay=0.05, vision_layer_decay=0.5)
    norm = model.vision_model.embeddings.pre_layernorm
    for parameter in (norm.weight, norm.bias):
        (group,) = [g for g in groups if any(p is parameter for p in g["params"])]
        assert (group["part"], group["lr"], group["weight_decay"]) == ("vision", 0.5**3, 0.0)
    count = sum(len(group["params"]) for group in groups)
    assert count == len(list(model.parameters()))


def test_lora_takes_the_layers_that_it_takes_of_stock(captioner, opt_folder):
    lora = {"vision": "lora", "language": "lora"}
    found, expected = (lora_targets(load_captioner(f)[0], lora) for f in (captioner, opt_folder))
    assert found == expected
    assert any(part_of(name) == "vision" for name in found)


def test_checkpointing_gradients_changes_none(captioner):
    gradients = []
    for parts in ((), ("vision",)):
        model, processor = load_captioner(captioner)
        set_trainable(model, FULL)
        set_train_mode(model)
        checkpoint_gradients(model, parts)
        model.language_model.eval()
        model.qformer.eval()
        model(**batch_of(model, processor)).loss.backward()
        gradients.append({n: p.grad for n, p in model.vision_model.named_parameters()})
    assert all(gradient.abs().max() > 0 for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_a_retriever_on_clip_learns(retriever):
    model, processor = load_retriever(retriever)
    set_trainable(model, {**FULL, "language": "frozen"})
    ids, mask = pair_layout(model, processor, max_tokens=8).pad([[2, 5, 10, 3], [2, 6, 11, 3]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(5):
        loss = model(pixels(2, 28), ids, mask).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
