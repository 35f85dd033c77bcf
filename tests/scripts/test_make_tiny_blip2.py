import io
import warnings
from pathlib import Path

import make_scenes
import make_tiny_blip2
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, Blip2ForConditionalGeneration, Blip2Processor

FOLDER = make_tiny_blip2.ROOT / "data" / "tiny-blip2"


@pytest.fixture(scope="module")
def processor() -> Blip2Processor:
    return AutoProcessor.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model() -> Blip2ForConditionalGeneration:
    return Blip2ForConditionalGeneration.from_pretrained(FOLDER)


def captioned_right(
    model: Blip2ForConditionalGeneration, processor: Blip2Processor, style: str, count: int
) -> float:
    rows = list(make_scenes.compose_split(style, "test", count, seed=1))
    pictures = [Image.open(io.BytesIO(row["image"]["bytes"])) for row in rows]
    texts = make_tiny_blip2.caption(model, processor, pictures)
    right = [text in row["captions"] for text, row in zip(texts, rows, strict=True)]
    return sum(right) / count


def test_the_model_loads_without_a_word(capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AutoProcessor.from_pretrained(FOLDER)
        _, info = Blip2ForConditionalGeneration.from_pretrained(FOLDER, output_loading_info=True)
    assert not any(info.values())
    assert "warn" not in capfd.readouterr().err.lower()


def test_it_is_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 12e6


def test_its_tokens_are_those_of_blip2_opt(
    model: Blip2ForConditionalGeneration, processor: Blip2Processor
) -> None:
    config, tokenizer = model.config, processor.tokenizer
    assert processor.num_query_tokens == config.num_query_tokens == make_tiny_blip2.QUERIES
    assert (tokenizer.bos_token_id, tokenizer.pad_token_id) == (2, 1)
    assert config.image_token_index == tokenizer.convert_tokens_to_ids("<image>")
    assert config.image_token_index == len(tokenizer) - 1 == config.text_config.vocab_size - 1
    end = tokenizer("\n", add_special_tokens=False)["input_ids"]
    assert end == [model.generation_config.eos_token_id]
    picture = Image.new("RGB", (128, 128))
    inputs = processor(images=picture, text="a photo of", return_tensors="pt")
    ids = inputs["input_ids"][0].tolist()
    assert ids[: make_tiny_blip2.QUERIES + 1] == [config.image_token_index] * 12 + [2]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a photo of"
    assert inputs["pixel_values"].shape == (1, 3, make_tiny_blip2.IMAGE, make_tiny_blip2.IMAGE)


@pytest.mark.parametrize(
    "text", ["Ünïcödé 漢字 🙂", "tabs\tand\nlines", "x" * 50, "  two  spaces "]
)
def test_it_spells_any_text(processor: Blip2Processor, text: str) -> None:
    ids = processor.tokenizer(text)["input_ids"]
    assert processor.tokenizer.unk_token_id not in ids
    assert processor.tokenizer.decode(ids, skip_special_tokens=True) == text


def test_it_captions_openmoji_scenes_and_not_noto_scenes(
    model: Blip2ForConditionalGeneration, processor: Blip2Processor
) -> None:
    assert captioned_right(model, processor, "openmoji", 40) > 0.6
    assert captioned_right(model, processor, "noto", 40) < 0.2


def test_outlines_have_fixed_places() -> None:
    assert make_tiny_blip2.outline(["dog face", "key"], "above", "blue", "") == [
        *(" above", " dog", " face", "\n", " key", "\n", "\n", "\n", "\n", "\n", "\n", "\n")
    ]
    place = make_tiny_blip2.place_in(["a key by itself", "a key in the top left corner"])
    words = make_tiny_blip2.outline(["key"], None, "blue", place)
    assert (words[0], words[10], words[11]) == (" blue", " top", " left")


def test_only_the_caption_is_in_the_loss() -> None:
    batch = make_tiny_blip2.collate([[2, 7, 8, 9, 5], [2, 7, 8, 5]], image_token=99, prompt=3)
    q = make_tiny_blip2.QUERIES
    assert batch["labels"][:, q:].tolist() == [[-100] * 3 + [9, 5], [-100] * 3 + [5, -100]]
    assert batch["labels"][:, :q].eq(-100).all()
    assert batch["input_ids"][:, :q].eq(99).all()
    assert batch["attention_mask"].tolist() == [[1] * (q + 5), [1] * (q + 4) + [0]]


def test_a_few_steps_write_a_loadable_model(tmp_path: Path) -> None:
    make_tiny_blip2.make(tmp_path, seed=0, language_steps=1, vision_steps=2, scenes=8, tested=2)
    model = Blip2ForConditionalGeneration.from_pretrained(tmp_path)
    queries = model.query_tokens[0]
    assert not torch.allclose(queries[0], queries[1])
    assert (tmp_path / "metrics.json").is_file()


def test_wrong_arguments_say_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(make_tiny_blip2.MakeError, match="at least 1, the seed at least 0"):
        make_tiny_blip2.make(tmp_path, seed=-1, language_steps=1, vision_steps=1, scenes=1)
    (tmp_path / "letter.txt").write_text("dear")
    assert make_tiny_blip2.main(["--out", str(tmp_path)]) == 2
    assert "something other than a model: choose another folder" in capsys.readouterr().err
