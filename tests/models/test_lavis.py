"""The original's names and tensors become transformers' and come back bit for bit."""

from pathlib import Path

import pytest
import torch
from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2ForImageTextRetrieval

from blip2ft.models.lavis import (
    COPIES,
    POSITION_IDS,
    biased_keys,
    check_copies,
    encoder_of,
    family_of,
    lavis_name,
    to_lavis,
    to_transformers,
    transformers_name,
)

GOLDEN = Path(__file__).parents[1] / "golden"
FAMILIES = {"stage1_a": "stage1", "stage1_c": "stage1", "caption_opt_a": "opt"}


def load(name: str) -> dict[str, torch.Tensor]:
    return torch.load(GOLDEN / name / "lavis.pth", weights_only=True)["model"]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


@pytest.mark.parametrize(("name", "family"), FAMILIES.items())
def test_the_round_trip_is_bit_for_bit(name, family):
    original = load(name)
    assert family_of(original) == family
    assert same(to_lavis(to_transformers(original, family), family, positions=64), original)


def test_half_precision_layers_of_a_mixed_checkpoint_stay_so():
    original = load("stage1_a")
    for name, tensor in original.items():  # LAVIS eva_vit.py, convert_weights_to_fp16
        if name.startswith("visual_encoder.blocks") and tensor.dim() == 2:
            original[name] = tensor.half()
    mapped = to_transformers(original, "stage1")
    assert mapped["vision_model.encoder.layers.0.mlp.fc1.weight"].dtype == torch.float16
    assert same(to_lavis(mapped, "stage1", positions=64), original)


@pytest.mark.parametrize(
    ("name", "stock"),
    [
        ("stage1_a", Blip2ForImageTextRetrieval),
        ("caption_opt_a", Blip2ForConditionalGeneration),
    ],
)
def test_the_names_are_those_of_the_stock_class(name, stock):
    with torch.device("meta"):
        expected = stock(Blip2Config.from_pretrained(GOLDEN / name)).state_dict()
    mapped = to_transformers(load(name), FAMILIES[name])
    extras = {key for key in mapped if key.startswith(("itg_head.", "temperature"))}
    assert len(extras) == (6 if stock is Blip2ForImageTextRetrieval else 0)
    shapes = {key: tensor.shape for key, tensor in mapped.items() if key not in extras}
    kept = {k: t.shape for k, t in expected.items() if not k.startswith("language_model.")}
    assert shapes == kept


def test_key_biases_are_zeros_between_those_of_queries_and_values():
    original = load("stage1_a")
    bias = to_transformers(original, "stage1")["vision_model.encoder.layers.1.self_attn.qkv.bias"]
    assert torch.equal(bias[:64], original["visual_encoder.blocks.1.attn.q_bias"])
    assert not bias[64:128].any()
    assert torch.equal(bias[128:], original["visual_encoder.blocks.1.attn.v_bias"])


def test_key_biases_that_training_moved_are_named():
    mapped = to_transformers(load("stage1_a"), "stage1")
    assert biased_keys(mapped) == []
    name = "vision_model.encoder.layers.2.self_attn.qkv.bias"
    mapped[name] = torch.ones_like(mapped[name])
    assert biased_keys(mapped) == [name]


def test_a_query_bias_without_its_value_bias_gives_none():
    original = load("stage1_a")
    del original["visual_encoder.blocks.1.attn.v_bias"]
    mapped = to_transformers(original, "stage1")
    assert "vision_model.encoder.layers.1.self_attn.qkv.bias" not in mapped
    assert "vision_model.encoder.layers.0.self_attn.qkv.bias" in mapped


def test_names_that_the_original_gives_twice_share_memory():
    mapped = to_lavis(to_transformers(load("stage1_a"), "stage1"), "stage1", positions=64)
    for name, source in COPIES.items():
        assert mapped[name].data_ptr() == mapped[source].data_ptr()


@pytest.mark.parametrize("family", ["opt", "t5"])
def test_projection_and_language_model_are_named_by_family(family):
    for theirs, ours in (
        (f"{family}_proj.bias", "language_projection.bias"),
        (f"{family}_model.lm_head.weight", "language_model.lm_head.weight"),
    ):
        assert transformers_name(theirs, family) == ours
        assert lavis_name(ours, family) == theirs


@pytest.mark.parametrize(
    "name",
    ["visual_encoder.head.weight", "Qformer.cls.seq_relationship.bias", "t5_proj.bias", "query"],
)
def test_foreign_tensors_have_no_name(name):
    assert transformers_name(name, "opt") is None
    with pytest.raises(ValueError, match=f"'{name}' is no tensor of opt checkpoints"):
        to_transformers({name: torch.zeros(1)}, "opt")
    with pytest.raises(ValueError, match="is no tensor of opt checkpoints"):
        to_lavis({name: torch.zeros(1)}, "opt", positions=64)


def test_two_versions_of_one_tensor_are_refused():
    for name, source in COPIES.items():
        original = load("stage1_a")
        check_copies(original, COPIES)
        original[name] = original[name] + 1
        with pytest.raises(ValueError, match=f"{name} and {source} are one tensor"):
            check_copies(original, COPIES)


def test_changed_positions_are_refused():
    positions = torch.arange(64).flip(0).unsqueeze(0)
    with pytest.raises(ValueError, match="position_ids isn't 0, 1, 2"):
        check_copies({POSITION_IDS: positions}, COPIES)


@pytest.mark.parametrize(
    ("name", "encoder"),
    [
        ("visual_encoder.class_embedding", "clip"),
        ("visual_encoder.ln_pre.weight", "clip"),
        ("visual_encoder.transformer.resblocks.0.ln_1.weight", "clip"),
        ("visual_encoder.blocks.0.norm1.weight", "eva"),
        ("visual_encoder.cls_token", "eva"),
        ("ln_vision.weight", None),
    ],
)
def test_the_image_encoder_is_told_by_any_of_its_names(name, encoder):
    assert encoder_of([name, "vision_proj.weight"]) == encoder


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("class_embedding", "embeddings.class_embedding"),
        ("positional_embedding", "embeddings.position_embedding"),
        ("conv1.weight", "embeddings.patch_embedding.weight"),
        ("ln_pre.bias", "embeddings.pre_layernorm.bias"),
        ("transformer.resblocks.20.ln_1.weight", "encoder.layers.20.layer_norm1.weight"),
        ("transformer.resblocks.20.ln_2.bias", "encoder.layers.20.layer_norm2.bias"),
        ("transformer.resblocks.3.mlp.c_fc.weight", "encoder.layers.3.mlp.fc1.weight"),
        ("transformer.resblocks.3.mlp.c_proj.bias", "encoder.layers.3.mlp.fc2.bias"),
        ("transformer.resblocks.3.attn.in_proj_weight", "encoder.layers.3.self_attn.qkv.weight"),
        ("transformer.resblocks.3.attn.in_proj_bias", "encoder.layers.3.self_attn.qkv.bias"),
        (
            "transformer.resblocks.3.attn.out_proj.bias",
            "encoder.layers.3.self_attn.projection.bias",
        ),
    ],
)
def test_vit_l_is_renamed_both_ways(theirs, ours):
    theirs, ours = f"visual_encoder.{theirs}", f"vision_model.{ours}"
    assert transformers_name(theirs, "t5") == ours
    assert lavis_name(ours, "t5", "clip") == theirs
    assert lavis_name(ours, "t5") != theirs


def test_embeddings_of_vit_l_keep_their_shapes():
    original = {
        "visual_encoder.class_embedding": torch.randn(6),
        "visual_encoder.positional_embedding": torch.randn(5, 6),
        "visual_encoder.transformer.resblocks.0.attn.in_proj_bias": torch.randn(18),
        POSITION_IDS: torch.arange(4).unsqueeze(0),
    }
    mapped = to_transformers(original, "stage1")
    assert mapped["vision_model.embeddings.class_embedding"].shape == (1, 1, 6)
    assert mapped["vision_model.embeddings.position_embedding"].shape == (1, 5, 6)
    assert same(to_lavis(mapped, "stage1", 4, "clip"), original)


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["llm_proj.weight"], "none"),
        (["opt_proj.weight", "t5_proj.weight"], "opt and t5"),
        (["opt_proj.weight", "itm_head.bias"], "stage1 and opt"),
    ],
)
def test_other_models_are_refused(names, found):
    with pytest.raises(ValueError, match=f"fits {found} of stage1, opt, t5, .* take a checkpoint"):
        family_of(names)
