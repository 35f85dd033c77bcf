"""The embedded models: small, of stock classes, and good at what they were built for."""

import io
import json
import warnings

import make_scenes
import pytest
import torch
from PIL import Image
from scene_things import ROOT
from tiny_words import OUTLINE, PROMPT
from transformers import AutoProcessor, Blip2ForConditionalGeneration, Blip2Processor

from blip2ft.captioner import caption
from blip2ft.models.load import load_captioner, load_retriever

CAPTIONER = ROOT / "data" / "tiny-blip2"
RETRIEVER = ROOT / "data" / "tiny-retriever"


@pytest.fixture(scope="module")
def processor() -> Blip2Processor:
    return AutoProcessor.from_pretrained(CAPTIONER)


@pytest.fixture(scope="module")
def model() -> Blip2ForConditionalGeneration:
    return load_captioner(CAPTIONER)[0]


def scenes(style: str, count: int) -> list[dict]:
    return list(make_scenes.compose_split(style, "test", count, seed=1))


def picture_of(row: dict) -> Image.Image:
    return Image.open(io.BytesIO(row["image"]["bytes"]))


def captioned_right(model, processor, style: str, count: int) -> float:
    rows = scenes(style, count)
    texts = caption(model, processor, [picture_of(row) for row in rows], prompt=PROMPT)
    return sum(t in row["captions"] for t, row in zip(texts, rows, strict=True)) / count


def test_stock_transformers_loads_the_captioner_without_a_word(capfd) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AutoProcessor.from_pretrained(CAPTIONER)
        _, info = Blip2ForConditionalGeneration.from_pretrained(CAPTIONER, output_loading_info=True)
    assert not any(info.values())
    assert "warn" not in capfd.readouterr().err.lower()


def test_both_are_small() -> None:
    files = [path for folder in (CAPTIONER, RETRIEVER) for path in folder.rglob("*")]
    assert sum(path.stat().st_size for path in files if path.is_file()) < 16e6


def test_its_tokens_are_those_of_blip2_opt(model, processor) -> None:
    config, tokenizer = model.config, processor.tokenizer
    assert processor.num_query_tokens == config.num_query_tokens == OUTLINE
    assert (tokenizer.bos_token_id, tokenizer.pad_token_id) == (2, 1)
    assert config.image_token_index == tokenizer.convert_tokens_to_ids("<image>")
    assert config.image_token_index == len(tokenizer) - 1 == config.text_config.vocab_size - 1
    end = tokenizer("\n", add_special_tokens=False)["input_ids"]
    assert end == [model.generation_config.eos_token_id]
    inputs = processor(images=Image.new("RGB", (128, 128)), text=PROMPT, return_tensors="pt")
    ids = inputs["input_ids"][0].tolist()
    assert ids[: OUTLINE + 1] == [config.image_token_index] * OUTLINE + [2]
    assert tokenizer.decode(ids, skip_special_tokens=True) == PROMPT
    assert inputs["pixel_values"].shape == (1, 3, 64, 64)


@pytest.mark.parametrize(
    "text", ["Ünïcödé 漢字 🙂", "tabs\tand\nlines", "x" * 50, "  two  spaces "]
)
def test_it_spells_any_text(processor, text: str) -> None:
    ids = processor.tokenizer(text)["input_ids"]
    assert processor.tokenizer.unk_token_id not in ids
    assert processor.tokenizer.decode(ids, skip_special_tokens=True) == text


def test_it_captions_openmoji_scenes_and_not_noto_scenes(model, processor) -> None:
    assert captioned_right(model, processor, "openmoji", 40) > 0.8
    assert captioned_right(model, processor, "noto", 40) < 0.3


def test_the_retriever_finds_openmoji_scenes() -> None:
    retriever, processor = load_retriever(RETRIEVER, objectives={"itc": 1.0, "itm": 1.0})
    rows = [row for row in scenes("openmoji", 60) if len(row["things"]) == 2]
    pixels = processor(images=[picture_of(row) for row in rows], return_tensors="pt").pixel_values
    texts = processor.tokenizer(
        [row["captions"][0] for row in rows], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        output = retriever(pixels, texts["input_ids"], texts["attention_mask"], features_only=True)
    scores = torch.einsum("iqd,td->itq", output.image_features, output.text_features).amax(2)
    best = scores.argsort(dim=1, descending=True)[:, :3]
    found = [i in best[i].tolist() for i in range(len(rows))]
    assert sum(found) / len(rows) > 0.8


def test_every_step_of_the_making_left_its_metrics() -> None:
    metrics = json.loads((CAPTIONER / "metrics.json").read_text())
    for part in ("vision", "bert", "opt", "t5"):
        assert metrics[part]["parameters"] > 0
    for run in ("stage1", "stage2-opt", "stage2-t5", "no-stage1"):
        assert metrics[run]["best_step"] <= metrics[run]["steps"]
    assert metrics["stage2-opt"]["right"]["2 things"] > metrics["no-stage1"]["right"]["2 things"]
