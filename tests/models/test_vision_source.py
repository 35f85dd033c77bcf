"""An image encoder out of a BLIP-2, a CLIP or a file of the original."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from clip_folders import VISION, on_clip, tiny_clip, vision_of
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import (
    BertConfig,
    BertModel,
    Blip2VisionModel,
    CLIPTextModel,
    CLIPVisionModelWithProjection,
    OPTConfig,
    OPTForCausalLM,
    SiglipVisionConfig,
)

from blip2ft.convert import to_folder
from blip2ft.models.clip_vision import class_for, is_clip
from blip2ft.models.load import load_captioner, load_retriever
from blip2ft.models.vision_source import VisionSource, read_vision
from blip2ft.models.vqa import load_vqa

GOLDEN = Path(__file__).parents[1] / "golden" / "stage1_a"
CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]


def built(source: VisionSource) -> Blip2VisionModel:
    model = class_for(Blip2VisionModel, source.config)(source.config)
    model.load_state_dict(source.state)
    return model.eval()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


# Out of a BLIP-2.


def test_an_image_encoder_alone_is_taken_as_it_is(opt_folder, tmp_path):
    vision = load_captioner(opt_folder)[0].vision_model
    vision.save_pretrained(tmp_path / "vision")
    assert same(read_vision(tmp_path / "vision").state, vision.state_dict())


@pytest.mark.parametrize("kind", ["opt", "t5", "retriever"])
@pytest.mark.parametrize("clip", [False, True])
def test_a_blip2_gives_its_image_encoder_as_it_is(request, tmp_path, kind, clip):
    folder = request.getfixturevalue(f"{kind}_folder")
    if clip:
        folder = on_clip(folder, tmp_path / "clip")
    source = read_vision(str(folder))
    model, _ = load_retriever(folder) if kind == "retriever" else load_captioner(folder)
    assert same(source.state, model.vision_model.state_dict())
    assert is_clip(source.config) == clip
    images = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        assert torch.equal(built(source)(images)[0], model.vision_model(images)[0])
    assert source.image_processor["size"] == {"height": 28, "width": 28}


@pytest.mark.parametrize("clip", [False, True])
def test_an_instructblip_gives_its_image_encoder(opt_folder, retriever_folder, tmp_path, clip):
    folder = on_clip(opt_folder, tmp_path / "clip") if clip else opt_folder
    model, processor = load_vqa(folder, stage1=retriever_folder, image_size=42)
    model.save_pretrained(tmp_path / "vqa")
    processor.save_pretrained(tmp_path / "vqa")
    source = read_vision(tmp_path / "vqa")
    assert same(source.state, model.vision_model.state_dict())
    assert is_clip(source.config) == clip
    assert source.config.model_type == "blip_2_vision_model"
    assert source.image_processor["size"] == {"height": 42, "width": 42}


def test_the_dtype_is_asked_for(opt_folder):
    source = read_vision(opt_folder, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in source.state.values()} == {torch.bfloat16}


def test_mean_and_deviation_are_the_checkpoints(opt_folder, tmp_path):
    folder = shutil.copytree(opt_folder, tmp_path / "model")
    path = folder / "processor_config.json"
    settings = json.loads(path.read_text())
    settings["image_processor"] |= {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3]}
    path.write_text(json.dumps(settings))
    images = read_vision(folder).image_processor
    assert (images["image_mean"], images["image_std"]) == ([0.5, 0.4, 0.3], [0.1, 0.2, 0.3])


def test_a_blip2_with_weights_missing_is_refused(opt_folder, tmp_path):
    folder = shutil.copytree(opt_folder, tmp_path / "model")
    state = load_file(folder / "model.safetensors")
    del state["vision_model.encoder.layers.1.mlp.fc1.bias"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"model: 1 weights are missing in the checkpoint, such"):
        read_vision(folder)


# Out of CLIP.


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> dict[str, Path]:
    """One CLIP in the three forms that transformers saves."""
    folder, clip = tmp_path_factory.mktemp("clips"), tiny_clip()
    clip.save_pretrained(folder / "whole")
    vision_of(clip).save_pretrained(folder / "vision")
    projected = CLIPVisionModelWithProjection.from_pretrained(folder / "whole")
    projected.save_pretrained(folder / "projected")
    CLIPTextModel.from_pretrained(folder / "whole").save_pretrained(folder / "text")
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.parametrize("form", ["whole", "vision", "projected"])
@torch.no_grad()
def test_a_clip_gives_its_second_last_layer_under_a_new_norm(clips, form):
    source = read_vision(clips[form])
    assert source.config.num_hidden_layers == 2
    assert is_clip(source.config)
    images = torch.randn(2, 3, 28, 28)
    states = vision_of(tiny_clip())(images, output_hidden_states=True).hidden_states
    assert len(states) == 4
    expected = functional.layer_norm(states[-2], (32,), eps=1e-5)
    torch.testing.assert_close(built(source)(images)[0], expected, rtol=0, atol=1e-5)
    assert list(source.image_processor["image_mean"]) == CLIP_MEAN
    assert source.image_processor["size"] == {"height": 28, "width": 28}


@torch.no_grad()
def test_a_clip_with_another_activation_keeps_it(tmp_path):
    clip = tiny_clip(hidden_act="gelu", layer_norm_eps=1e-4)
    clip.save_pretrained(tmp_path)
    source = read_vision(tmp_path)
    assert source.config.hidden_act == "blip2ft.gelu"
    images = torch.randn(2, 3, 28, 28)
    states = vision_of(clip)(images, output_hidden_states=True).hidden_states
    expected = functional.layer_norm(states[-2], (32,), eps=1e-4)
    torch.testing.assert_close(built(source)(images)[0], expected, rtol=0, atol=1e-5)


def test_a_clip_with_weights_missing_is_refused(clips, tmp_path):
    folder = shutil.copytree(clips["whole"], tmp_path / "clip")
    state = load_file(folder / "model.safetensors")
    del state["vision_model.pre_layrnorm.bias"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"clip: 1 weights are missing in the checkpoint, such"):
        read_vision(folder)


def test_a_clip_of_more_colours_is_refused(tmp_path):
    tiny_clip(num_channels=4).save_pretrained(tmp_path / "clip")
    with pytest.raises(
        ValueError,
        match=r"image encoder of .*clip: 0 tensors are missing, 0 unexpected and 1 misshapen, such "
        r"as embeddings\.patch_embedding\.weight; it is incomplete, or another model's",
    ):
        read_vision(tmp_path / "clip")


# Out of a file of the original.


def golden(prefix: str) -> dict[str, torch.Tensor]:
    state = torch.load(GOLDEN / "lavis.pth", weights_only=True)["model"]
    return {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}


@pytest.fixture(scope="module")
def eva(tmp_path_factory) -> Path:
    """As the original's file of EVA-CLIP: a block more than BLIP-2 keeps, a norm and a head."""
    state = golden("visual_encoder.")
    last = {
        n.replace("blocks.2.", "blocks.3."): t + 1 for n, t in state.items() if "blocks.2." in n
    }
    end = {"norm.weight": torch.ones(64), "norm.bias": torch.ones(64)}
    end |= {"fc_norm.weight": torch.ones(64), "head.weight": torch.ones(8, 64)}
    path = tmp_path_factory.mktemp("eva") / "eva.pth"
    torch.save(state | last | end, path)
    return path


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> Blip2VisionModel:
    out = tmp_path_factory.mktemp("golden") / "model"
    to_folder(GOLDEN / "lavis.pth", out, config=GOLDEN)
    return load_retriever(out)[0].vision_model


@torch.no_grad()
def test_a_file_of_eva_clip_gives_what_the_original_computes(eva, converted):
    source = read_vision(eva, num_attention_heads=4)
    state = converted.state_dict()
    state["post_layernorm.weight"], state["post_layernorm.bias"] = torch.ones(64), torch.zeros(64)
    assert same(source.state, state)
    config = source.config
    assert (config.hidden_size, config.intermediate_size, config.num_hidden_layers) == (64, 128, 3)
    assert (config.image_size, config.patch_size) == (56, 14)
    assert (config.hidden_act, config.layer_norm_eps) == ("gelu", 1e-6)
    assert list(source.image_processor["image_mean"]) == CLIP_MEAN
    norm = golden("ln_vision.")
    model = built(source)
    model.post_layernorm.load_state_dict(norm)
    tensors = load_file(GOLDEN / "tensors.safetensors")
    found = model(tensors["image"]).last_hidden_state
    torch.testing.assert_close(found, tensors["image_embeds"], rtol=0, atol=1e-4)


def bare(width: int, blocks: int) -> dict[str, torch.Tensor]:
    """The tensors of an EVA-CLIP, without memory, by the original's names."""
    with torch.device("meta"):
        state = {
            "cls_token": torch.empty(1, 1, width),
            "pos_embed": torch.empty(1, 257, width),
            "patch_embed.proj.weight": torch.empty(width, 3, 14, 14),
            "patch_embed.proj.bias": torch.empty(width),
            "head.weight": torch.empty(8, width),
        }
        for i in range(blocks):
            state |= {
                f"blocks.{i}.{name}": torch.empty(*shape)
                for name, shape in {
                    "norm1.weight": (width,),
                    "norm1.bias": (width,),
                    "norm2.weight": (width,),
                    "norm2.bias": (width,),
                    "attn.qkv.weight": (3 * width, width),
                    "attn.q_bias": (width,),
                    "attn.v_bias": (width,),
                    "attn.proj.weight": (width, width),
                    "attn.proj.bias": (width,),
                    "mlp.fc1.weight": (6144, width),
                    "mlp.fc1.bias": (6144,),
                    "mlp.fc2.weight": (width, 6144),
                    "mlp.fc2.bias": (width,),
                }.items()
            }
    return state


@pytest.mark.parametrize(("width", "blocks", "kept"), [(1408, 40, 39), (1408, 39, 39), (176, 4, 3)])
def test_vit_g_keeps_the_blocks_that_the_original_keeps(monkeypatch, tmp_path, width, blocks, kept):
    """Whether the last one has been cut off already or not."""
    path = tmp_path / "eva_vit_g.pth"
    path.touch()
    monkeypatch.setattr(
        "blip2ft.models.original_vision.read_original", lambda _: bare(width, blocks)
    )
    config = read_vision(path).config
    assert (config.num_hidden_layers, config.num_attention_heads) == (kept, width // 88)
    assert (config.intermediate_size, config.image_size) == (6144, 224)


@torch.no_grad()
def test_a_file_of_clip_gives_what_transformers_clip_computes(tmp_path):
    """In OpenAI's names, as the original's clip_vit_L.pth has them."""
    clip = tiny_clip(hidden_size=128, num_attention_heads=2)
    state = {}
    for name, tensor in vision_of(clip).state_dict().items():
        for old, new in {
            "embeddings.class_embedding": "class_embedding",
            "embeddings.position_embedding.weight": "positional_embedding",
            "embeddings.patch_embedding": "conv1",
            "pre_layrnorm": "ln_pre",
            "post_layernorm": "ln_post",
            "encoder.layers": "transformer.resblocks",
            "self_attn.": "attn.",
            "layer_norm": "ln_",
            "fc1": "c_fc",
            "fc2": "c_proj",
        }.items():
            name = name.replace(old, new)
        state[name] = tensor
    for block in range(3):
        for what in ("weight", "bias"):
            prefix = f"transformer.resblocks.{block}.attn."
            three = [state.pop(f"{prefix}{part}_proj.{what}") for part in "qkv"]
            state[f"{prefix}in_proj_{what}"] = torch.cat(three)
    torch.save(state | {"proj": torch.ones(128, 8)}, tmp_path / "clip.pth")
    clip.save_pretrained(tmp_path / "clip")
    found, expected = read_vision(tmp_path / "clip.pth"), read_vision(tmp_path / "clip")
    assert same(found.state, expected.state)
    settings, wanted = found.config.to_dict(), expected.config.to_dict()
    # that of new weights, of which there are none
    assert [key for key in wanted if settings[key] != wanted[key]] == ["initializer_range"]


def test_heads_that_do_not_divide_the_width_are_refused(eva):
    with pytest.raises(
        ValueError, match=r"eva\.pth: an image encoder of width 64 can't have 0.727 a"
    ):
        read_vision(eva)
    with pytest.raises(
        ValueError, match=r"can't have 5 attention heads; the original's are 88 wide"
    ):
        read_vision(eva, num_attention_heads=5)


def test_heads_are_not_asked_of_a_folder(opt_folder):
    with pytest.raises(
        ValueError, match=r"num_attention_heads is 2, but .* is no file of the orig"
    ):
        read_vision(opt_folder, num_attention_heads=2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pos_embed": None}, r"it lacks pos_embed, which shows the size of the image encoder"),
        ({"blocks.0.mlp.fc1.weight": torch.ones(3)}, r"it lacks blocks\.0\.mlp\.fc1\.weight, whi"),
        ({"blocks.0.gamma_1": torch.ones(64)}, r"'blocks\.0\.gamma_1' is no tensor of"),
        ({"blocks.1.attn.v_bias": None}, r"1 tensors are missing, .*qkv\.bias; it is incomplete"),
        ({"cls_token": torch.ones(1, 1, 3)}, r"1 misshapen, such as embeddings\.class_embedding"),
    ],
)
def test_a_damaged_file_is_refused(eva, tmp_path, change, said):
    state = torch.load(eva, weights_only=True) | change
    torch.save({n: t for n, t in state.items() if t is not None}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=rf"can't take the image encoder of .*x\.pth: .*{said}"):
        read_vision(tmp_path / "x.pth", num_attention_heads=4)


def test_an_encoder_of_one_block_is_refused(eva, tmp_path):
    state = torch.load(eva, weights_only=True)
    kept = {
        n: t for n, t in state.items() if not n.startswith(("blocks.1", "blocks.2", "blocks.3"))
    }
    torch.save(kept, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="it has 1 blocks, of which 0 can't be kept"):
        read_vision(tmp_path / "x.pth", num_attention_heads=4)


def test_a_file_of_something_else_is_refused(tmp_path):
    torch.save({"bert.embeddings.LayerNorm.weight": torch.ones(3)}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth holds no image encoder of the original: neither"):
        read_vision(tmp_path / "x.pth")
    with pytest.raises(
        ValueError, match=r"holds no image encoder .* blip2ft convert makes a folder"
    ):
        read_vision(GOLDEN / "lavis.pth")
    (tmp_path / "text.txt").write_text("no weights")
    with pytest.raises(ValueError, match=r"text\.txt is no checkpoint of torch, or damaged"):
        read_vision(tmp_path / "text.txt")


# What has no image encoder.


def save_other(kind: str, folder: Path) -> Path:
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 9}
    if kind == "bert":
        BertModel(BertConfig(**small, intermediate_size=8)).save_pretrained(folder)
    elif kind == "opt":
        config = OPTConfig(**small, word_embed_proj_dim=8, ffn_dim=8)
        OPTForCausalLM(config).save_pretrained(folder)
    else:
        SiglipVisionConfig(**{**VISION}).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["bert", "opt", "siglip_vision_model", "clip_text_model"])
def test_what_has_no_such_image_encoder_is_refused(clips, tmp_path, kind):
    folder = clips["text"] if kind == "clip_text_model" else save_other(kind, tmp_path / "other")
    with pytest.raises(
        ValueError,
        match=rf"of type '{kind}', which has no image encoder for a BLIP-2; take it from a BLIP-2",
    ):
        read_vision(folder)


def test_a_name_that_is_nowhere_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no folder"):
        read_vision(tmp_path / "none")
    with pytest.raises(ValueError, match=r"can't load 'no-such-model': it is no folder here"):
        read_vision("no-such-model")
