"""LoRA on parts: what trains, what is saved, what comes back, what merging changes."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Blip2ForConditionalGeneration, PreTrainedModel

from blip2ft.data.batches import Sample, text_layout
from blip2ft.models.adapters import (
    attach_lora,
    describe_training,
    load_trained,
    lora_targets,
    merge_lora,
    read_description,
    save_trained,
    trainable_state,
)
from blip2ft.models.identity import Base, identify
from blip2ft.models.load import load_captioner
from blip2ft.models.parts import PARTS, part_of, set_trainable
from blip2ft.tasks.caption import caption_loss

ALL_LORA = dict.fromkeys(PARTS, "lora")
OPTIONS = [{}, {"dora": True}, {"rslora": True}, {"init": "pissa", "dora": True}]
MIXED = {"vision": "lora", "qformer": "full", "projection": "full", "language": "lora"}


def load(folder: Path) -> Blip2ForConditionalGeneration:
    return Blip2ForConditionalGeneration.from_pretrained(folder).eval()


def batch_for(folder: Path) -> dict[str, Tensor]:
    model, processor = load_captioner(folder)
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    captions = ("a red apple", "a cat and a dog on the left")
    samples = [Sample(p, "a photo of", c) for p, c in zip(pixels, captions, strict=True)]
    return text_layout(model, processor, 16).collate(samples)


@torch.no_grad()
def logits(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    return model(**inputs).logits


def train_by_chance(model: PreTrainedModel) -> None:
    """Move every tensor that trains, so that an adapter changes the answers."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in trainable_state(model).values():
            tensor += 0.05 * torch.randn(tensor.shape, generator=generator)


def trained(folder: Path, parts: dict[str, str], **options) -> tuple[PreTrainedModel, object]:
    model = load(folder)
    torch.manual_seed(0)
    lora = attach_lora(model, parts, r=4, alpha=8, **options)
    set_trainable(model, parts)
    train_by_chance(model)
    return model.eval(), lora


def describe(folder: Path) -> dict:
    return describe_training("caption", identify(str(folder)), image_size=28)


# What trains.


@pytest.mark.parametrize("part", list(PARTS))
def test_only_the_lora_of_the_part_trains(model_folder, part):
    model = load(model_folder)
    batch = batch_for(model_folder)
    attach_lora(model, {part: "lora"}, r=2)
    set_trainable(model, {part: "lora"})
    caption_loss(model, batch).backward()
    changed = {name for name, p in model.named_parameters() if p.grad is not None}
    assert changed == set(trainable_state(model))
    assert changed
    for name in changed:
        assert ".lora_" in name
        assert part_of(name) == part


def test_every_part_can_be_adapted_at_once(model_folder):
    model = load(model_folder)
    attach_lora(model, ALL_LORA, r=2)
    set_trainable(model, ALL_LORA)
    names = list(trainable_state(model))
    assert {part_of(name) for name in names} == set(PARTS)
    assert all(".lora_" in name for name in names)


def test_every_linear_layer_but_the_output_head_is_a_target(model_folder):
    model = load(model_folder)
    linear = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert set(lora_targets(model, ALL_LORA)) == linear - {"language_model.lm_head"}


def test_a_fresh_lora_changes_no_answer(model_folder):
    model, batch = load(model_folder), batch_for(model_folder)
    expected = logits(model, batch)
    attach_lora(model, ALL_LORA)
    torch.testing.assert_close(logits(model.eval(), batch), expected)


def test_query_tokens_train_with_a_full_qformer(model_folder):
    model, batch = load(model_folder), batch_for(model_folder)
    parts = {"qformer": "full", "language": "lora"}
    attach_lora(model, parts)
    set_trainable(model, parts)
    caption_loss(model, batch).backward()
    assert model.query_tokens.grad.abs().sum() > 0


def test_the_model_stays_of_its_stock_class(model_folder):
    model = load(model_folder)
    attach_lora(model, ALL_LORA)
    assert type(model) is Blip2ForConditionalGeneration


def test_no_lora_is_attached_where_no_part_asks(opt_folder):
    model = load(opt_folder)
    assert attach_lora(model, {"vision": "full"}) is None
    assert not any("lora" in name for name, _ in model.named_parameters())


# Saving and loading.


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("parts", [ALL_LORA, MIXED], ids=["all lora", "mixed"])
def test_a_loaded_adapter_gives_the_same_answers(model_folder, tmp_path, parts, options):
    batch = batch_for(model_folder)
    model, lora = trained(model_folder, parts, **options)
    expected = logits(model, batch)
    assert not torch.allclose(expected, logits(load(model_folder), batch), atol=1e-2)
    save_trained(model, tmp_path, lora, describe(model_folder))
    again = load(model_folder)
    load_trained(again, tmp_path)
    assert torch.equal(logits(again.eval(), batch), expected)


def test_an_adapter_takes_the_place_of_one_before_and_of_nothing_else(opt_folder, tmp_path):
    model, lora = trained(opt_folder, {"language": "lora"})
    for _ in range(2):
        save_trained(model, tmp_path / "adapter", lora, describe(opt_folder))
        (tmp_path / "adapter" / ".tmpX").write_text("left by a kill")
    save_trained(model, tmp_path / "adapter", lora, describe(opt_folder))
    assert not (tmp_path / "adapter" / ".tmpX").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"mine is in use and is not overwritten"):
        save_trained(model, tmp_path / "mine", lora, describe(opt_folder))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_fully_trained_parts_alone_come_back(model_folder, tmp_path):
    batch = batch_for(model_folder)
    model, lora = trained(model_folder, {"qformer": "full", "projection": "full"})
    assert lora is None
    save_trained(model, tmp_path, lora, describe(model_folder))
    assert {path.name for path in tmp_path.iterdir()} == {"trained.safetensors", "blip2ft.json"}
    names = load_file(tmp_path / "trained.safetensors")
    assert "query_tokens" in names
    assert {part_of(name) for name in names} == {"qformer", "projection"}
    again = load(model_folder)
    load_trained(again, tmp_path)
    assert torch.equal(logits(again, batch), logits(model, batch))


def test_a_fully_trained_language_model_with_tied_weights_comes_back(opt_folder, tmp_path):
    batch = batch_for(opt_folder)
    model, lora = trained(opt_folder, {"language": "full"})
    save_trained(model, tmp_path, lora, describe(opt_folder))
    again = load(opt_folder)
    load_trained(again, tmp_path)
    assert torch.equal(logits(again, batch), logits(model, batch))


def test_a_loaded_adapter_can_train_on(opt_folder, tmp_path):
    model, lora = trained(opt_folder, MIXED)
    save_trained(model, tmp_path, lora, describe(opt_folder))
    again = load(opt_folder)
    load_trained(again, tmp_path)
    set_trainable(again, MIXED)
    expected, state = trainable_state(model), trainable_state(again)
    assert set(state) == set(expected)
    for name, tensor in state.items():
        assert torch.equal(tensor, expected[name]), name


# peft itself asks transformers by an old name
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_plain_peft_reads_the_lora(model_folder, tmp_path):
    batch = batch_for(model_folder)
    model, lora = trained(model_folder, ALL_LORA)
    save_trained(model, tmp_path, lora, describe(model_folder))
    stock = PeftModel.from_pretrained(load(model_folder), str(tmp_path)).eval()
    torch.testing.assert_close(logits(stock, batch), logits(model, batch), rtol=0, atol=1e-6)


def test_the_adapter_names_its_base(opt_folder, tmp_path):
    description = describe_training("caption", Base("some/model", "v2", "ab"), prompt="a")
    model, lora = trained(opt_folder, ALL_LORA)
    save_trained(model, tmp_path, lora, description)
    assert read_description(tmp_path) == {
        "task": "caption",
        "base": "some/model",
        "revision": "v2",
        "base_digest": "ab",
        "prompt": "a",
    }
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "some/model"
    assert config["revision"] == "v2"


# Merging.


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("parts", [ALL_LORA, MIXED], ids=["all lora", "mixed"])
def test_a_merged_model_is_stock_and_answers_the_same(model_folder, tmp_path, parts, options):
    batch = batch_for(model_folder)
    model, _ = trained(model_folder, parts, **options)
    expected = logits(model, batch)
    merge_lora(model)
    torch.testing.assert_close(logits(model, batch), expected, rtol=1e-5, atol=2e-5)
    assert {n for n, _ in model.named_parameters()} == {
        n for n, _ in load(model_folder).named_parameters()
    }
    assert {type(m) for m in model.modules()} == {type(m) for m in load(model_folder).modules()}
    model.save_pretrained(tmp_path)
    again = Blip2ForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again, batch), logits(model, batch))


def test_merging_without_adapters_changes_nothing(opt_folder):
    model, batch = load(opt_folder), batch_for(opt_folder)
    expected = logits(model, batch)
    merge_lora(model)
    assert torch.equal(logits(model, batch), expected)


def test_an_adapter_that_is_not_finite_is_not_merged(opt_folder):
    model, _ = trained(opt_folder, {"language": "lora"})
    with torch.no_grad():
        next(iter(trainable_state(model).values())).fill_(float("nan"))
    with pytest.raises(ValueError, match=r"NaNs detected in the merged weights"):
        merge_lora(model)


# Errors.


def test_a_part_without_linear_layers_is_refused(opt_folder):
    model = load(opt_folder)
    model.language_projection = torch.nn.LayerNorm(4)
    with pytest.raises(
        ValueError, match=r"part 'projection' is set to lora but has no linear layer; use full"
    ):
        attach_lora(model, {"projection": "lora"})
    del model.language_projection
    with pytest.raises(ValueError, match=r"parts\.projection is lora, but a \w+ has no such part"):
        attach_lora(model, {"projection": "lora"})


@pytest.mark.parametrize("r", [0, -1])
def test_a_rank_below_one_is_refused(opt_folder, r):
    with pytest.raises(ValueError, match=rf"lora\.r is {r}: the rank must be at least 1"):
        attach_lora(load(opt_folder), ALL_LORA, r=r)


def test_a_folder_that_holds_no_trained_weights_is_refused(opt_folder, tmp_path):
    with pytest.raises(
        ValueError, match=r"has no blip2ft\.json, so it holds no weights .*runs/NAME/adapter"
    ):
        load_trained(load(opt_folder), tmp_path)


def test_full_weights_of_another_model_are_named_and_change_nothing(opt_folder, tmp_path):
    model, lora = trained(opt_folder, MIXED)
    save_trained(model, tmp_path, lora, describe(opt_folder))
    state = load_file(tmp_path / "trained.safetensors")
    other = load(opt_folder)
    expected = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    for key, tensor, have in (
        ("query_tokens", torch.zeros(1, 8, 24), r"\(1, 4, 24\)"),
        ("qformer.zzz", torch.zeros(2), "nothing of that name"),
    ):
        save_file(state | {key: tensor}, tmp_path / "trained.safetensors", {"format": "pt"})
        with pytest.raises(
            ValueError,
            match=rf"trained\.safetensors doesn't fit .*: {key} is \(.*model has {have}; "
            r"it was trained on '.*' at 28 px",
        ):
            load_trained(other, tmp_path)
        assert_unchanged(other, expected)


@pytest.mark.parametrize("fault", ["shape", "surplus", "missing", "foreign layer"])
def test_a_lora_of_another_model_is_named_and_changes_nothing(opt_folder, tmp_path, fault):
    model, lora = trained(opt_folder, MIXED)
    save_trained(model, tmp_path, lora, describe(opt_folder))
    path = tmp_path / "adapter_model.safetensors"
    state = load_file(path)
    key = "base_model.model.language_model.model.decoder.layers.1.fc1.lora_A.weight"
    if fault == "shape":
        state[key] = torch.zeros(4, 7)
    elif fault == "surplus":
        state[key.replace("layers.1", "layers.9")] = torch.zeros(4, 32)
    elif fault == "missing":
        del state[key]
    else:
        config = json.loads((tmp_path / "adapter_config.json").read_text())
        config["target_modules"].append("language_model.model.decoder.layers.9.fc1")
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        state[key.replace("layers.1", "layers.9")] = torch.zeros(4, 32)
    save_file(state, path, {"format": "pt"})
    other = load(opt_folder)
    expected = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    layer = 1 if fault in ("shape", "missing") else 9
    with pytest.raises(
        ValueError,
        match=rf"adapter_model\.safetensors doesn't fit the model: .*layers\.{layer}\.fc1\.lora_A"
        r".* is .*, the model has .*; it was trained on '.*' at 28 px",
    ):
        load_trained(other, tmp_path)
    assert_unchanged(other, expected)


def test_a_lora_of_another_family_is_named(opt_folder, t5_folder, tmp_path):
    model, lora = trained(opt_folder, {"language": "lora"})
    save_trained(model, tmp_path, lora, describe(opt_folder))
    other = load(t5_folder)
    expected = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(
        ValueError,
        match=r"adapter_model\.safetensors doesn't fit the model: it has none of the lay",
    ):
        load_trained(other, tmp_path)
    assert_unchanged(other, expected)


def assert_unchanged(model: PreTrainedModel, expected: dict[str, Tensor]) -> None:
    state = model.state_dict()
    assert set(state) == set(expected)
    for name, tensor in state.items():
        assert torch.equal(tensor, expected[name]), name
