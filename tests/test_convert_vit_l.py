"""ViT-L checkpoints of the original compute the same here, and go back bit for bit."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from clip_folders import on_clip
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoTokenizer, Blip2ForConditionalGeneration

from blip2ft.cli import main
from blip2ft.convert import to_checkpoint, to_folder
from blip2ft.models.clip_vision import ClipCaptioner, ClipRetriever
from blip2ft.models.load import load_captioner, load_retriever

GOLDEN = Path(__file__).parent / "golden"
STAGE1, CAPTION = GOLDEN / "stage1_a", GOLDEN / "caption_opt_a"
OPT = CAPTION / "language_model"
WIDTH = 128  # two heads, as those of all of CLIP are 64 wide


class Block(nn.Module):
    """A block of CLIP's, out of torch's own parts."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(width, 3 * width), "c_proj": nn.Linear(3 * width, width)}
        )

    def forward(self, states: Tensor) -> Tensor:
        normed = self.ln_1(states)
        states = states + self.attn(normed, normed, normed)[0]
        wide = self.mlp["c_fc"](self.ln_2(states))
        return states + self.mlp["c_proj"](wide / (1 + torch.exp(-1.702 * wide)))


class Clip(nn.Module):
    """CLIP's image encoder from its public description, up to where BLIP-2 takes the features."""

    def __init__(self, width: int, blocks: int, image_size: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 14, 14, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty((image_size // 14) ** 2 + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = nn.ModuleDict(
            {"resblocks": nn.Sequential(*[Block(width, width // 64) for _ in range(blocks)])}
        )

    def forward(self, images: Tensor) -> Tensor:
        patches = self.conv1(images).flatten(2).mT
        first = self.class_embedding.expand(len(images), 1, -1)
        states = torch.cat([first, patches], 1) + self.positional_embedding
        return self.transformer["resblocks"](self.ln_pre(states))


def original_clip(blocks: int = 3, image_size: int = 56) -> Clip:
    torch.manual_seed(11)
    model = Clip(WIDTH, blocks, image_size)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model.eval()


def make_vit_l(folder: Path, path: Path, **options: int) -> tuple[Path, Clip]:
    """A golden checkpoint with CLIP's image encoder in the place of its own."""
    state = torch.load(folder / "lavis.pth", weights_only=True)["model"]
    clip = original_clip(**options)
    kept = {name: t for name, t in state.items() if not name.startswith("visual_encoder.")}
    for name, tensor in kept.items():
        if name.startswith("ln_vision."):
            kept[name] = torch.randn(WIDTH)
        elif name.endswith(("crossattention.self.key.weight", "crossattention.self.value.weight")):
            kept[name] = torch.randn(len(tensor), WIDTH) * 0.1
    kept |= {f"visual_encoder.{name}": t for name, t in clip.state_dict().items()}
    torch.save({"model": kept}, path)
    return path, clip


def tensors(path: Path) -> dict[str, Tensor]:
    return torch.load(path, weights_only=True)["model"]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


@pytest.fixture(scope="module")
def stage1(tmp_path_factory) -> tuple[Path, Path, Clip]:
    """The original's file, its folder here, and the original's image encoder."""
    folder = tmp_path_factory.mktemp("vit-l")
    source, clip = make_vit_l(STAGE1, folder / "blip2_pretrained_vitL.pth")
    to_folder(source, folder / "model", config=STAGE1)
    return source, folder / "model", clip


@torch.no_grad()
def test_it_computes_the_original_features(stage1):
    source, folder, clip = stage1
    model, processor = load_retriever(folder)
    assert type(model) is ClipRetriever
    images = load_file(STAGE1 / "tensors.safetensors")["image"]
    norm = {name: tensors(source)[f"ln_vision.{name}"] for name in ("weight", "bias")}
    expected = nn.functional.layer_norm(clip(images), (WIDTH,), **norm)  # eps 1e-5
    found = model.vision_model(images).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert found.std() > 0.1
    assert processor.image_processor.size == {"height": 56, "width": 56}


def test_stage_1_comes_back_bit_for_bit(stage1, tmp_path):
    source, folder, _ = stage1
    done = to_checkpoint(folder, tmp_path / "back.pth")
    assert same(tensors(tmp_path / "back.pth"), tensors(source))
    assert (done.family, done.written) == ("stage1", len(tensors(source)))
    assert (done.missing, done.unused) == ((), ())


def test_opt_comes_back_bit_for_bit(tmp_path):
    source, _ = make_vit_l(CAPTION, tmp_path / "opt.pth")
    to_folder(source, tmp_path / "m", config=CAPTION, language_model=OPT)
    model, _ = load_captioner(tmp_path / "m")
    assert type(model) is ClipCaptioner
    assert to_checkpoint(tmp_path / "m", tmp_path / "back.pth").family == "opt"
    assert same(tensors(tmp_path / "back.pth"), tensors(source))


@pytest.fixture
def t5_parts(t5_folder, tmp_path) -> Path:
    """A folder with the language model of a T5 captioner, apart from it as the original has it."""
    language = Blip2ForConditionalGeneration.from_pretrained(t5_folder).language_model
    language.save_pretrained(tmp_path / "lm")
    AutoTokenizer.from_pretrained(t5_folder).save_pretrained(tmp_path / "lm")
    return tmp_path / "lm"


def test_t5_comes_back_bit_for_bit(t5_folder, t5_parts, tmp_path):
    """From a folder to the original's file and back."""
    folder = on_clip(t5_folder, tmp_path / "clip", hidden_size=128, num_attention_heads=2)
    assert to_checkpoint(folder, tmp_path / "t5.pth").family == "t5"
    state = tensors(tmp_path / "t5.pth")
    assert state["visual_encoder.class_embedding"].shape == (128,)
    assert state["visual_encoder.positional_embedding"].shape == (5, 128)
    to_folder(tmp_path / "t5.pth", tmp_path / "m", config=t5_folder, language_model=t5_parts)
    before, after = (load_file(f / "model.safetensors") for f in (folder, tmp_path / "m"))
    assert same(after, before)
    assert type(load_captioner(tmp_path / "m")[0]) is ClipCaptioner


def test_heads_of_another_width_are_refused(t5_folder, tmp_path):
    """The original's are 64 wide, and no tensor would show it."""
    folder = on_clip(t5_folder, tmp_path / "clip", hidden_size=128, num_attention_heads=4)
    with pytest.raises(
        ValueError, match=r"heads 32 wide and the activation blip2ft\.quick_gelu; the original's CL"
    ):
        to_checkpoint(folder, tmp_path / "t5.pth")


def test_a_width_that_is_no_number_of_heads_is_refused(stage1, tmp_path):
    state = tensors(stage1[0])
    state["visual_encoder.conv1.weight"] = torch.zeros(96, 3, 14, 14)
    torch.save({"model": state}, tmp_path / "c.pth")
    with pytest.raises(
        ValueError, match=r"c\.pth: an image encoder of width 96 can't have 1\.5 att"
    ):
        to_folder(tmp_path / "c.pth", tmp_path / "m", config=STAGE1)


def test_a_mixed_checkpoint_keeps_its_dtypes(stage1, tmp_path):
    """As the original saves it: convolution and linear layers in fp16, all else in fp32."""
    state = tensors(stage1[0])
    for name, tensor in state.items():
        linear = ("out_proj.weight", "c_fc.weight", "c_proj.weight", "conv1.weight")
        if name.startswith("visual_encoder.") and name.endswith(linear):
            state[name] = tensor.half()
    torch.save({"model": state}, tmp_path / "half.pth")
    to_folder(tmp_path / "half.pth", tmp_path / "m", config=STAGE1)
    to_checkpoint(tmp_path / "m", tmp_path / "back.pth")
    assert same(tensors(tmp_path / "back.pth"), state)


@pytest.mark.parametrize(("blocks", "image_size"), [(1, 56), (5, 84)])
def test_sizes_are_those_of_the_tensors_whatever_the_config_says(tmp_path, blocks, image_size):
    source, _ = make_vit_l(STAGE1, tmp_path / "c.pth", blocks=blocks, image_size=image_size)
    to_folder(source, tmp_path / "m", config=STAGE1)
    vision = json.loads((tmp_path / "m" / "config.json").read_text())["vision_config"]
    assert {
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": blocks,
        "num_attention_heads": 2,
        "image_size": image_size,
        "patch_size": 14,
        "hidden_act": "blip2ft.quick_gelu",
        "layer_norm_eps": 1e-5,
    }.items() <= vision.items()
    model, _ = load_retriever(tmp_path / "m")
    assert model.config.qformer_config.encoder_hidden_size == 128


def test_a_config_of_its_own_serves_as_well(stage1, tmp_path):
    source, folder, _ = stage1
    to_folder(source, tmp_path / "m", config=folder)
    written, before = (load_file(f / "model.safetensors") for f in (tmp_path / "m", folder))
    assert same(written, before)


def test_trained_key_biases_go_back_too(stage1, tmp_path):
    _, folder, _ = stage1
    model, _ = load_retriever(folder)
    with torch.no_grad():
        model.vision_model.encoder.layers[0].self_attn.qkv.bias[WIDTH : 2 * WIDTH] += 1
    model.save_pretrained(tmp_path / "m")
    to_checkpoint(tmp_path / "m", tmp_path / "c.pth")
    name = "visual_encoder.transformer.resblocks.0.attn.in_proj_bias"
    found = tensors(tmp_path / "c.pth")[name]
    assert torch.equal(found, model.vision_model.encoder.layers[0].self_attn.qkv.bias)


def test_a_missing_tensor_is_refused_or_random(stage1, tmp_path, caplog):
    state = tensors(stage1[0])
    del state["visual_encoder.ln_pre.bias"]
    torch.save({"model": state}, tmp_path / "c.pth")
    with pytest.raises(ValueError, match=r"1 tensors are missing, .* visual_encoder\.ln_pre\.bias"):
        to_folder(tmp_path / "c.pth", tmp_path / "m", config=STAGE1)
    done = to_folder(tmp_path / "c.pth", tmp_path / "m", config=STAGE1, allow_partial=True)
    assert done.new == ("vision_model.embeddings.pre_layernorm.bias",)
    written = load_file(tmp_path / "m" / "model.safetensors")
    assert torch.equal(written[done.new[0]], torch.zeros(WIDTH))


def test_without_the_tensors_that_show_its_size_it_is_refused(stage1, tmp_path):
    state = tensors(stage1[0])
    del state["visual_encoder.conv1.weight"]
    torch.save({"model": state}, tmp_path / "c.pth")
    with pytest.raises(
        ValueError,
        match=r"can't convert .*c\.pth: it lacks visual_encoder\.conv1\.weight, which shows the",
    ):
        to_folder(tmp_path / "c.pth", tmp_path / "m", config=STAGE1)


def test_an_activation_that_the_original_has_not_is_refused(stage1, tmp_path):
    folder = shutil.copytree(stage1[1], tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["hidden_act"] = "blip2ft.gelu"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=r"heads 64 wide and the activation blip2ft\.gelu; the original's CLIP has"
    ):
        to_checkpoint(folder, tmp_path / "c.pth")


def test_the_command_says_what_loads_it(stage1, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("blip2ft.commands.convert.quiet_libraries", lambda: None)
    folder, file = tmp_path / "m", tmp_path / "c.pth"
    words = ["convert", str(stage1[0]), str(folder), "--config", str(STAGE1)]
    with pytest.raises(SystemExit, match="0"):
        main(words)
    assert capsys.readouterr().out == (
        f"{folder}: blip2ft.load_retriever loads it, stock transformers can't, as its image "
        "encoder is CLIP's; 168 tensors\n"
    )
    with pytest.raises(SystemExit, match="0"):
        main(["convert", str(folder), str(file), "--to", "lavis"])
    assert capsys.readouterr().out.startswith(f"{file}: the original loads it; ")
