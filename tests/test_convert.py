"""Whole checkpoints of the original load in stock transformers, and go back bit for bit."""

import json
import logging
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    Blip2Processor,
)

import blip2ft.convert
from blip2ft.convert import to_checkpoint, to_folder
from blip2ft.data.batches import Sample, text_layout
from blip2ft.models.load import end_token_id, load_captioner
from blip2ft.models.retriever import Retriever

GOLDEN = Path(__file__).parent / "golden"
STAGE1, CAPTION = GOLDEN / "stage1_a", GOLDEN / "caption_opt_a"
OPT = CAPTION / "language_model"


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["model"]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def changed(folder: Path, path: Path, drop: str = "", **new: torch.Tensor | None) -> Path:
    """A golden checkpoint without what starts with `drop`, and with `new` tensors (None: gone)."""
    state = tensors(folder / "lavis.pth")
    kept = {name: t for name, t in state.items() if not (drop and name.startswith(drop))} | new
    torch.save({"model": {name: t for name, t in kept.items() if t is not None}}, path)
    return path


@pytest.fixture(scope="module")
def retriever(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("converted") / "stage1"
    to_folder(STAGE1 / "lavis.pth", out, config=STAGE1)
    return out


@pytest.fixture(scope="module")
def captioner(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("converted") / "caption"
    to_folder(CAPTION / "lavis.pth", out, config=CAPTION, language_model=OPT)
    return out


@pytest.fixture(scope="module")
def t5(t5_folder, tmp_path_factory) -> tuple[Path, Path]:
    """A T5 captioner as the original keeps it: its checkpoint, and the language model apart."""
    folder = tmp_path_factory.mktemp("t5")
    to_checkpoint(t5_folder, folder / "lavis.pth")
    model = Blip2ForConditionalGeneration.from_pretrained(t5_folder)
    model.language_model.save_pretrained(folder / "language_model")
    AutoTokenizer.from_pretrained(t5_folder).save_pretrained(folder / "language_model")
    return folder / "lavis.pth", folder / "language_model"


@pytest.mark.parametrize("name", ["stage1_a", "stage1_c", "caption_opt_a"])
def test_the_round_trip_is_bit_for_bit(tmp_path, name):
    source = GOLDEN / name / "lavis.pth"
    language_model = OPT if name == "caption_opt_a" else None
    there = to_folder(source, tmp_path / "m", config=GOLDEN / name, language_model=language_model)
    back = to_checkpoint(tmp_path / "m", tmp_path / "back.pth")
    assert same(tensors(tmp_path / "back.pth"), tensors(source))
    assert there.family == back.family == ("opt" if language_model else "stage1")
    assert back.written == len(tensors(source))
    assert there[2:] == back[2:] == ((), (), ())


def test_a_mixed_checkpoint_keeps_its_dtypes(tmp_path):
    """As published: the linear layers of the ViT in fp16, all else in fp32."""
    half = {
        name: tensor.half()
        for name, tensor in tensors(STAGE1 / "lavis.pth").items()
        if name.startswith("visual_encoder.blocks") and tensor.dim() == 2
    }
    source = changed(STAGE1, tmp_path / "half.pth", **half)
    to_folder(source, tmp_path / "m", config=STAGE1)
    to_checkpoint(tmp_path / "m", tmp_path / "back.pth")
    assert same(tensors(tmp_path / "back.pth"), tensors(source))
    model = Blip2ForImageTextRetrieval.from_pretrained(tmp_path / "m")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@torch.no_grad()
def test_stock_computes_the_original_features(retriever):
    model = Blip2ForImageTextRetrieval.from_pretrained(retriever).eval()
    expected = load_file(STAGE1 / "tensors.safetensors")
    images = expected["image"]
    count = len(images)
    # what the processor puts before the text
    prefix = torch.full((count, 8), model.config.image_token_index)
    ids = torch.cat([prefix, expected["input_ids"]], 1)
    mask = torch.cat([torch.ones_like(prefix), expected["attention_mask"]], 1)
    found = model(images, ids, mask)
    pairs = torch.cartesian_prod(torch.arange(count), torch.arange(count)).T
    itm = model(images[pairs[0]], ids[pairs[1]], mask[pairs[1]], use_image_text_matching_head=True)
    for name, value in {
        "image_embeds": found.vision_model_output.last_hidden_state,
        "image_feats": found.image_embeds,
        "text_feats": found.text_embeds,
        "itm": itm.logits_per_image[:, 1].view(count, count),
    }.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-4)


@torch.no_grad()
def test_the_processor_of_stage_1_fits_the_stock_model(retriever):
    processor = AutoProcessor.from_pretrained(retriever)
    assert isinstance(processor, Blip2Processor)
    assert processor.num_query_tokens == 8
    image_processor = processor.image_processor
    assert type(image_processor).__name__ == "BlipImageProcessorPil"
    assert dict(image_processor.size) == {"height": 56, "width": 56}
    assert image_processor.image_mean[0] == pytest.approx(0.48145466)
    assert processor.tokenizer.bos_token == "[DEC]"
    text = json.loads((STAGE1 / "expected.json").read_text())["texts"]
    inputs = processor(
        images=[torch.zeros(3, 40, 30, dtype=torch.uint8)] * 2,
        text=text,
        padding=True,
        return_tensors="pt",
    )
    stored = load_file(STAGE1 / "tensors.safetensors")["input_ids"]
    found = inputs["input_ids"][:, 8:]
    assert torch.equal(found, stored[:, : found.shape[1]])
    model = Blip2ForImageTextRetrieval.from_pretrained(retriever)
    assert model(**inputs).logits_per_image.isfinite().all()


def test_our_retriever_finds_its_temperature_and_itg_head(retriever):
    model, info = Retriever.from_pretrained(retriever, output_loading_info=True)
    assert not any(info[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    original = tensors(STAGE1 / "lavis.pth")
    assert torch.equal(model.temperature, original["temp"])
    prefix = "Qformer.cls.predictions"
    assert torch.equal(model.itg_head.bias, original[f"{prefix}.bias"])
    assert torch.equal(model.itg_head.norm.bias, original[f"{prefix}.transform.LayerNorm.bias"])
    written = load_file(retriever / "model.safetensors")
    assert len(written) == len(model.state_dict())


@torch.no_grad()
def test_the_converted_captioner_has_the_original_loss(captioner):
    model, processor = load_captioner(captioner)
    expected = json.loads((CAPTION / "expected.json").read_text())
    layout = text_layout(model, processor, 32)
    images = load_file(CAPTION / "tensors.safetensors")["image"]
    batch = layout.collate(
        [
            Sample(image, expected["prompt"], caption)
            for image, caption in zip(images, expected["captions"], strict=True)
        ]
    )
    assert batch["input_ids"][:, 8:].tolist() == expected["input_ids"]
    logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
    # the original has no row for <image>, which would join the softmax
    logits = logits[:, :-1, :334].flatten(0, 1)
    loss = functional.cross_entropy(logits, batch["labels"][:, 1:].flatten())
    assert float(loss) == pytest.approx(expected["loss"], abs=5e-4)


@pytest.mark.parametrize("kind", ["opt", "t5"])
def test_our_loader_has_nothing_to_complete(request, kind, t5, t5_folder, tmp_path, caplog):
    if kind == "opt":
        folder = request.getfixturevalue("captioner")
    else:
        folder = tmp_path / "m"
        to_folder(t5[0], folder, config=t5_folder, language_model=t5[1])
    caplog.clear()
    model, processor = load_captioner(folder)
    assert not caplog.records
    assert end_token_id(model) == (202 if kind == "opt" else 1)
    assert model.generation_config.eos_token_id == end_token_id(model)
    assert processor.num_query_tokens == model.config.num_query_tokens


def test_a_t5_comes_back_whole(t5, t5_folder, tmp_path):
    source, language_model = t5
    assert {name.split(".")[0] for name in tensors(source)} >= {"t5_proj", "Qformer"}
    done = to_folder(source, tmp_path / "m", config=t5_folder, language_model=language_model)
    assert done.family == "t5"
    written = load_file(tmp_path / "m" / "model.safetensors")
    before = load_file(t5_folder / "model.safetensors")
    for name in written:
        if name.endswith("self_attn.qkv.bias") and name.startswith("vision_model."):
            before[name].chunk(3)[1].zero_()
    assert same(written, before)
    assert done.written == len(written)


def test_any_config_serves_whose_language_model_is_another(t5, t5_folder, opt_folder, tmp_path):
    source, language_model = t5
    to_folder(source, tmp_path / "m", config=opt_folder, language_model=language_model)
    config = Blip2ForConditionalGeneration.from_pretrained(tmp_path / "m").config
    assert config.is_encoder_decoder
    assert not config.use_decoder_only_language_model


def test_a_language_model_in_the_checkpoint_is_used(captioner, tmp_path):
    done = to_checkpoint(captioner, tmp_path / "whole.pth", with_language_model=True)
    whole = tensors(tmp_path / "whole.pth")
    # without the row that <image> has got
    assert whole["opt_model.model.decoder.embed_tokens.weight"].shape == (334, 64)
    assert same(
        {k: t for k, t in whole.items() if not k.startswith("opt_model.")},
        tensors(CAPTION / "lavis.pth"),
    )
    assert done.written == len(whole)
    whole["opt_model.model.decoder.final_layer_norm.bias"] += 1
    torch.save({"model": whole}, tmp_path / "trained.pth")
    for name, language_model in (("with", OPT), ("without", None)):
        config = tmp_path / f"config-{name}"
        shutil.copytree(OPT, config)
        shutil.copy(CAPTION / "config.json", config)
        out = tmp_path / name
        to_folder(tmp_path / "trained.pth", out, config=config, language_model=language_model)
        before = load_file(captioner / "model.safetensors")
        before["language_model.model.decoder.final_layer_norm.bias"] += 1
        assert same(load_file(out / "model.safetensors"), before)
        to_checkpoint(out, tmp_path / f"{name}.pth", with_language_model=True)
        assert same(tensors(tmp_path / f"{name}.pth"), whole)


def test_a_tied_weight_that_differs_is_refused(captioner, tmp_path):
    to_checkpoint(captioner, tmp_path / "whole.pth", with_language_model=True)
    whole = tensors(tmp_path / "whole.pth")
    whole["opt_model.lm_head.weight"] = whole["opt_model.lm_head.weight"] + 1
    torch.save(whole, tmp_path / "untied.pth")
    with pytest.raises(
        ValueError, match=r"can't convert .*untied.pth: opt_model.lm_head.weight and"
    ):
        to_folder(tmp_path / "untied.pth", tmp_path / "m", config=CAPTION, language_model=OPT)


def test_a_checkpoint_without_copies_and_buffers_loses_nothing(retriever, tmp_path):
    absent = (
        "Qformer.cls.predictions.bias",
        "Qformer.cls.predictions.decoder.weight",
        "Qformer.bert.embeddings.position_ids",
    )
    source = changed(STAGE1, tmp_path / "c.pth", **dict.fromkeys(absent))
    to_folder(source, tmp_path / "m", config=STAGE1)
    assert same(
        load_file(tmp_path / "m" / "model.safetensors"), load_file(retriever / "model.safetensors")
    )


def test_tensors_that_do_not_fit_are_refused(tmp_path, caplog):
    source = changed(
        STAGE1,
        tmp_path / "c.pth",
        drop="itm_head.",
        **{"vision_proj.weight": torch.zeros(3, 48), "head.weight": torch.zeros(1)},
    )
    with pytest.raises(ValueError, match=r"2 tensors are missing, 1 unexpected and 1 misshapen"):
        to_folder(source, tmp_path / "m", config=STAGE1)
    for line in ("missing     itm_head.bias", "unexpected  head.weight", "misshapen   vision_proj"):
        assert line in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.pth"]


def test_a_partial_checkpoint_names_what_is_random(retriever, tmp_path, caplog):
    source = changed(
        STAGE1,
        tmp_path / "c.pth",
        drop="itm_head.",
        **{
            "query_tokens": None,
            "visual_encoder.blocks.1.attn.v_bias": None,
            "vision_proj.weight": torch.zeros(3, 48),
            "head.weight": torch.zeros(1),
        },
    )
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    done = to_folder(source, tmp_path / "m", config=STAGE1, allow_partial=True)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert done.new == (
        "query_tokens",
        "vision_model.encoder.layers.1.self_attn.qkv.bias",
        "vision_projection.weight",
        "itm_head.weight",
        "itm_head.bias",
    )
    assert done.unused == ("head.weight", "vision_proj.weight")
    assert "5 weights start from random numbers" in caplog.text
    assert all(f"  {name}" in caplog.text for name in done.new)
    written = load_file(tmp_path / "m" / "model.safetensors")
    whole = load_file(retriever / "model.safetensors")
    known = whole.keys() - set(done.new)
    assert written.keys() == whole.keys()
    assert all(torch.equal(written[name], whole[name]) for name in known)
    queries = written["query_tokens"]
    assert 0.01 < queries.std() < 0.03
    assert 0.01 < written["itm_head.weight"].std() < 0.03

    to_folder(source, tmp_path / "again", config=STAGE1, allow_partial=True)
    assert same(load_file(tmp_path / "again" / "model.safetensors"), written)


def test_a_partial_captioner_draws_no_language_model(captioner, tmp_path):
    source = changed(CAPTION, tmp_path / "c.pth", drop="visual_encoder.")
    done = to_folder(source, tmp_path / "m", config=CAPTION, language_model=OPT, allow_partial=True)
    assert done.new
    assert all(name.startswith("vision_model.") for name in done.new)
    written, whole = (load_file(f / "model.safetensors") for f in (tmp_path / "m", captioner))
    others = {name for name in whole if not name.startswith("vision_model.")}
    assert all(torch.equal(written[n], whole[n]) for n in others)
    load_captioner(tmp_path / "m")


def test_a_partial_folder_leaves_out_what_it_lacks(retriever, tmp_path, caplog):
    """A stock retriever has neither temperature nor ITG head."""
    folder = tmp_path / "stock"
    Blip2ForImageTextRetrieval.from_pretrained(retriever).save_pretrained(folder)
    with pytest.raises(ValueError, match=r"stock: 6 tensors are missing, .* missing temperature;"):
        to_checkpoint(folder, tmp_path / "c.pth")
    assert not (tmp_path / "c.pth").exists()
    done = to_checkpoint(folder, tmp_path / "c.pth", allow_partial=True)
    assert len(done.missing) == 6
    assert "missing     itg_head.bias" in caplog.text
    original = tensors(STAGE1 / "lavis.pth")
    absent = {name for name in original if name == "temp" or name.startswith("Qformer.cls.")}
    absent -= {"Qformer.cls.predictions.decoder.weight"}
    assert same(tensors(tmp_path / "c.pth"), {k: t for k, t in original.items() if k not in absent})


def test_unknown_tensors_of_a_folder_are_refused(retriever, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(retriever, folder)
    state = load_file(folder / "model.safetensors")
    # a buffer that older versions of transformers saved
    state["embeddings.position_ids"] = torch.arange(64).unsqueeze(0)
    save_file(state, folder / "model.safetensors")
    to_checkpoint(folder, tmp_path / "c.pth")
    save_file(state | {"head": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"1 unexpected .* such as unexpected head;"):
        to_checkpoint(folder, tmp_path / "d.pth")


def test_key_biases_that_were_trained_are_told(retriever, tmp_path, caplog):
    folder = tmp_path / "m"
    model = Retriever.from_pretrained(retriever)
    with torch.no_grad():
        for layer in model.vision_model.encoder.layers[:2]:
            layer.self_attn.qkv.bias[64:128] = 0.1
    model.save_pretrained(folder)
    to_checkpoint(folder, tmp_path / "c.pth")
    assert "has no key biases: those of 2 layers are left out" in caplog.text
    assert same(tensors(tmp_path / "c.pth"), tensors(STAGE1 / "lavis.pth"))


@torch.no_grad()
def test_key_biases_change_rounding_only(retriever):
    model = Blip2ForImageTextRetrieval.from_pretrained(retriever).vision_model.eval()
    images = load_file(STAGE1 / "tensors.safetensors")["image"]
    before = model(images).last_hidden_state
    for layer in model.encoder.layers:
        layer.self_attn.qkv.bias[64:128] = 0.5
    torch.testing.assert_close(model(images).last_hidden_state, before, rtol=0, atol=2e-5)


def test_a_folder_in_several_files_is_read_whole(retriever, tmp_path):
    model = Retriever.from_pretrained(retriever)
    model.save_pretrained(tmp_path / "m", max_shard_size="200KB")
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 2
    to_checkpoint(tmp_path / "m", tmp_path / "c.pth")
    assert same(tensors(tmp_path / "c.pth"), tensors(STAGE1 / "lavis.pth"))


def test_a_captioning_checkpoint_needs_its_language_model(tmp_path):
    with pytest.raises(
        ValueError, match=r"carries no language model; pass it .* facebook/opt-2.7b"
    ):
        to_folder(CAPTION / "lavis.pth", tmp_path / "m", config=CAPTION)


def test_a_language_model_of_another_family_is_refused(t5, tmp_path):
    with pytest.raises(
        ValueError, match=r"of type 'opt', but .* is of type 't5'; pass one such as"
    ):
        to_folder(CAPTION / "lavis.pth", tmp_path / "m", config=CAPTION, language_model=t5[1])


def test_a_language_model_of_another_size_is_refused(opt_folder, tmp_path):
    model = Blip2ForConditionalGeneration.from_pretrained(opt_folder)
    model.language_model.save_pretrained(tmp_path / "lm")
    AutoTokenizer.from_pretrained(opt_folder).save_pretrained(tmp_path / "lm")
    with pytest.raises(ValueError, match=r"2 misshapen .* pass the language model that it was"):
        to_folder(
            CAPTION / "lavis.pth", tmp_path / "m", config=CAPTION, language_model=tmp_path / "lm"
        )


def test_a_language_model_with_missing_weights_is_refused(tmp_path):
    shutil.copytree(OPT, tmp_path / "lm")
    state = load_file(OPT / "model.safetensors")
    del state["model.decoder.final_layer_norm.bias"]
    save_file(state, tmp_path / "lm" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="lm: 1 weights are missing in the checkpoint"):
        to_folder(
            CAPTION / "lavis.pth", tmp_path / "m", config=CAPTION, language_model=tmp_path / "lm"
        )


def test_a_line_break_in_pieces_is_refused(tmp_path, monkeypatch):
    class Splitting:
        def __len__(self):
            return 334

        def __call__(self, text, **options):
            return {"input_ids": [5, 6]}

    monkeypatch.setattr(
        blip2ft.convert.AutoTokenizer, "from_pretrained", lambda *_, **__: Splitting()
    )
    with pytest.raises(ValueError, match=r"splits the line break .* into 2 tokens; pass OPT"):
        to_folder(CAPTION / "lavis.pth", tmp_path / "m", config=CAPTION, language_model=OPT)


def test_stage_1_takes_no_language_model(retriever, tmp_path):
    with pytest.raises(ValueError, match="a stage-1 checkpoint has no language model; leave"):
        to_folder(STAGE1 / "lavis.pth", tmp_path / "m", config=STAGE1, language_model=OPT)
    with pytest.raises(ValueError, match="has no language model; leave --with-language-model out"):
        to_checkpoint(retriever, tmp_path / "c.pth", with_language_model=True)


def test_stage_1_needs_a_start_token(tmp_path):
    folder = tmp_path / "config"
    shutil.copytree(STAGE1, folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    del settings["bos_token"]
    path.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"has no start token \[DEC\] among the 46 tokens"):
        to_folder(STAGE1 / "lavis.pth", tmp_path / "m", config=folder)


@pytest.mark.parametrize("family", ["stage1", "opt", "t5"])
def test_a_folder_without_a_tokenizer_is_refused(family, t5, t5_folder, tmp_path):
    """transformers makes up a tokenizer of a few tokens there."""
    checkpoint, config, language_model = {
        "stage1": (STAGE1 / "lavis.pth", STAGE1, None),
        "opt": (CAPTION / "lavis.pth", CAPTION, OPT),
        "t5": (t5[0], t5_folder, t5[1]),
    }[family]
    bare = tmp_path / "bare"
    bare.mkdir()
    settings = json.loads(((language_model or config) / "config.json").read_text())
    if family == "t5":
        settings["vocab_size"] = 32128
    (bare / "config.json").write_text(json.dumps(settings))
    options = {"config": config, "language_model": bare} if language_model else {"config": bare}
    with pytest.raises(ValueError, match=r"bare has no tokenizer, or .*: it knows \d+ tokens, the"):
        to_folder(checkpoint, tmp_path / "m", **options)


def test_another_image_size_says_what_to_set(tmp_path):
    source = changed(
        STAGE1, tmp_path / "c.pth", **{"visual_encoder.pos_embed": torch.zeros(1, 37, 64)}
    )
    with pytest.raises(ValueError, match="its images have 84 pixels: set image_size in the config"):
        to_folder(source, tmp_path / "m", config=STAGE1)


def test_what_is_in_use_is_not_overwritten(retriever, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="used is in use and is not overwritten"):
        to_folder(STAGE1 / "lavis.pth", tmp_path / "used", config=STAGE1)
    with pytest.raises(ValueError, match=r"mine.txt is in use"):
        to_folder(STAGE1 / "lavis.pth", tmp_path / "used" / "mine.txt", config=STAGE1)
    with pytest.raises(ValueError, match=r"mine.txt exists and is not overwritten"):
        to_checkpoint(retriever, tmp_path / "used" / "mine.txt")
    assert (tmp_path / "used" / "mine.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    to_folder(STAGE1 / "lavis.pth", tmp_path / "empty", config=STAGE1)
    assert (tmp_path / "empty" / "model.safetensors").is_file()


def test_a_failure_leaves_nothing(retriever, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Blip2Processor, "save_pretrained", fail)
    with pytest.raises(OSError, match="No space left"):
        to_folder(STAGE1 / "lavis.pth", tmp_path / "m", config=STAGE1)

    def write_half(content, path):
        path.write_bytes(b"half")
        fail()

    monkeypatch.setattr(blip2ft.convert.torch, "save", write_half)
    with pytest.raises(OSError, match="No space left"):
        to_checkpoint(retriever, tmp_path / "c.pth")
    assert not list(tmp_path.iterdir())


def test_what_is_no_model_has_no_way_back(captioner, tmp_path):
    with pytest.raises(ValueError, match=r"there is no folder .*none; the way back starts from"):
        to_checkpoint(tmp_path / "none", tmp_path / "c.pth")
    folder = tmp_path / "m"
    shutil.copytree(captioner, folder)
    (folder / "model.safetensors").rename(folder / "other.bin")
    with pytest.raises(ValueError, match=r"m has no model.safetensors; load its model"):
        to_checkpoint(folder, tmp_path / "c.pth")


def test_a_language_model_that_the_original_has_not_is_refused(captioner, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(captioner, folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] = {"model_type": "gpt2"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"neither a retriever nor .* \(opt, t5; .* 'gpt2'\)"):
        to_checkpoint(folder, tmp_path / "c.pth")


@pytest.fixture
def convert(blip2ft_main):
    """Call the command and return status, standard output and standard error."""
    level = logging.getLogger("blip2ft").level
    yield partial(blip2ft_main, "convert")
    logging.getLogger("blip2ft").setLevel(level)


def test_the_command_converts_there_and_back(convert, tmp_path):
    folder, file = tmp_path / "m", tmp_path / "c.pth"
    status, out, err = convert(
        CAPTION / "lavis.pth", folder, "--config", CAPTION, "--language-model", OPT
    )
    assert (status, out) == (0, f"{folder}: stock transformers loads it; 183 tensors\n")
    assert "error" not in err
    status, out, _ = convert(folder, file, "--to", "lavis")
    assert (status, out) == (0, f"{file}: the original loads it; 135 tensors\n")
    assert same(tensors(file), tensors(CAPTION / "lavis.pth"))
    status, out, _ = convert(folder, tmp_path / "d.pth", "--to", "lavis", "--with-language-model")
    assert (status, out) == (0, f"{tmp_path / 'd.pth'}: the original loads it; 188 tensors\n")


def test_the_command_counts_what_is_partial(convert, tmp_path):
    source = changed(
        STAGE1, tmp_path / "c.pth", drop="itm_head.", **{"head.weight": torch.zeros(1)}
    )
    status, out, err = convert(source, tmp_path / "m", "--config", STAGE1)
    assert (status, out) == (2, "")
    assert err.splitlines()[-1].startswith("error: ")
    status, out, _ = convert(source, tmp_path / "m", "--config", STAGE1, "--allow-partial")
    assert status == 0
    assert out.endswith("; 167 tensors, 2 of them random, listed above, 1 of the source unused\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "pass --config DIR_OR_ID with the model's config.json, as numbers of attention heads"),
        ("--to lavis --config x", "leave --config and --language-model out"),
        ("--to lavis --language-model x", "leave --config and --language-model out"),
        ("--config x --with-language-model", "goes with --to lavis; did you mean"),
        ("--to levis", "did you mean lavis?"),
    ],
)
def test_the_command_says_what_is_wrong_with_it(convert, tmp_path, words, said):
    status, out, err = convert(STAGE1 / "lavis.pth", tmp_path / "m", *words.split())
    assert (status, out) == (2, "")
    assert said in err
    assert len(err.splitlines()) == 1


def test_the_command_has_help(convert):
    status, out, _ = convert("--help")
    assert status == 0
    assert out.startswith("usage: blip2ft convert")
