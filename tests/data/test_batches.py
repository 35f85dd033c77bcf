"""Batches hold exactly what each language model shall read, and labels what it shall say."""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import (
    Blip2ForConditionalGeneration,
    Blip2Processor,
    PreTrainedTokenizerFast,
)

from blip2ft.data.batches import IGNORE, Sample, TextLayout, text_layout
from blip2ft.models.load import load_captioner
from blip2ft.tasks.caption import caption_loss, count_labels, generate

IMAGES = ["<image>"] * 4


@pytest.fixture(scope="session")
def opt(opt_folder) -> tuple[Blip2ForConditionalGeneration, Blip2Processor]:
    return load_captioner(opt_folder)


@pytest.fixture(scope="session")
def t5(t5_folder) -> tuple[Blip2ForConditionalGeneration, Blip2Processor]:
    return load_captioner(t5_folder)


@pytest.fixture(params=["opt", "t5"])
def loaded(request: pytest.FixtureRequest) -> tuple[Blip2ForConditionalGeneration, Blip2Processor]:
    """Both language-model families in turn."""
    return request.getfixturevalue(request.param)


def layout_of(loaded, max_target_tokens: int = 24) -> TextLayout:
    return text_layout(*loaded, max_target_tokens)


def sample(prompt: str = "a photo of", target: str | None = None, seed: int = 0) -> Sample:
    generator = torch.Generator().manual_seed(seed)
    return Sample(torch.randn(3, 28, 28, generator=generator), prompt, target)


def words(layout: TextLayout, ids: Tensor) -> list[str]:
    """Token ids as the tokenizer's pieces, with "-" for what isn't learned."""
    pieces = layout.tokenizer.convert_ids_to_tokens
    return ["-" if i == IGNORE else pieces(i) for i in ids.tolist()]


# The layout.


def test_a_decoder_reads_image_prompt_and_target_in_one_row(opt):
    layout = layout_of(opt)
    batch = layout.collate([sample(target="a dog"), sample(target="a red cat")])
    prompt = ["</s>", "a", "Ġphoto", "Ġof"]
    assert set(batch) == {"pixel_values", "input_ids", "attention_mask", "labels"}
    assert words(layout, batch["input_ids"][0]) == [*IMAGES, *prompt, "Ġa", "Ġdog", "Ċ", "<pad>"]
    assert words(layout, batch["input_ids"][1]) == [*IMAGES, *prompt, "Ġa", "Ġred", "Ġcat", "Ċ"]
    assert words(layout, batch["labels"][0]) == ["-"] * 8 + ["Ġa", "Ġdog", "Ċ", "-"]
    assert words(layout, batch["labels"][1]) == ["-"] * 8 + ["Ġa", "Ġred", "Ġcat", "Ċ"]
    assert batch["attention_mask"].tolist() == [[1] * 11 + [0], [1] * 12]


def test_an_encoder_reads_image_and_prompt_and_the_decoder_the_target(t5):
    layout = layout_of(t5)
    batch = layout.collate([sample(target="a dog"), sample("", target="a red cat")])
    assert words(layout, batch["input_ids"][0]) == [*IMAGES, "▁a", "▁photo", "▁of", "</s>"]
    assert words(layout, batch["input_ids"][1]) == [*IMAGES, "</s>", *["<pad>"] * 3]
    assert batch["attention_mask"].tolist() == [[1] * 8, [1] * 5 + [0] * 3]
    assert words(layout, batch["labels"][0]) == ["▁a", "▁dog", "</s>", "-"]
    assert words(layout, batch["labels"][1]) == ["▁a", "▁red", "▁cat", "</s>"]
    assert words(layout, batch["decoder_input_ids"][0]) == ["<pad>", "▁a", "▁dog", "<pad>"]
    assert words(layout, batch["decoder_input_ids"][1]) == ["<pad>", "▁a", "▁red", "▁cat"]
    assert batch["decoder_attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


@pytest.mark.parametrize("prompt", ["", "a photo of", "a photo of "])
@pytest.mark.parametrize("targets", [["a dog"], ["a dog", "a"], ["a", "a", "a red cat and a dog"]])
def test_only_target_and_end_token_are_learned(loaded, prompt, targets):
    layout = layout_of(loaded)
    batch = layout.collate([sample(prompt, target) for target in targets])
    assert (batch["input_ids"] == layout.image_token_id).sum(1).tolist() == [4] * len(targets)
    for labels, target in zip(batch["labels"], targets, strict=True):
        learned = labels[labels != IGNORE]
        assert layout.decode(learned[None]) == [target]
        assert learned[-1] == layout.end_token_id
        assert layout.image_token_id not in learned
    labelled = batch["labels"] != IGNORE
    if layout.is_encoder_decoder:
        assert torch.equal(labelled, batch["decoder_attention_mask"].bool())
    else:
        assert torch.equal(batch["labels"][labelled], batch["input_ids"][labelled])
        assert (labelled <= batch["attention_mask"].bool()).all()
    assert all(t.dtype == torch.long for name, t in batch.items() if name != "pixel_values")


def test_a_batch_of_one_has_no_padding(loaded):
    layout = layout_of(loaded)
    for batch in (layout.collate([sample(target="a dog")]), layout.collate_prompts([sample()])):
        assert batch["attention_mask"].all()
        assert batch["pixel_values"].shape == (1, 3, 28, 28)


def test_prompts_are_padded_on_the_side_where_the_answer_does_not_follow(loaded):
    layout = layout_of(loaded)
    batch = layout.collate_prompts([sample(""), sample("a photo of")])
    lengths = batch["attention_mask"].sum(1).tolist()
    ids = batch["input_ids"][0]
    assert lengths == [5, 8]
    if layout.is_encoder_decoder:
        assert words(layout, ids) == [*IMAGES, "</s>", *["<pad>"] * 3]
        assert batch["attention_mask"][0].tolist() == [1] * 5 + [0] * 3
    else:
        assert words(layout, ids) == [*["<pad>"] * 3, *IMAGES, "</s>"]
        assert batch["attention_mask"][0].tolist() == [0] * 3 + [1] * 5


@pytest.mark.parametrize("prompt", ["", "a photo of", "Question: a cat? Answer:"])
def test_the_stock_processor_lays_a_prompt_out_the_same(loaded, prompt):
    layout, (_, processor) = layout_of(loaded), loaded
    image = Image.new("RGB", (40, 30), (200, 10, 90))
    stock = processor(images=image, text=prompt, return_tensors="pt")
    ours = layout.collate_prompts([Sample(stock["pixel_values"][0], prompt)])
    assert torch.equal(ours["input_ids"], stock["input_ids"])
    assert torch.equal(ours["attention_mask"], stock["attention_mask"])


def test_a_training_row_begins_with_the_prompt_that_is_asked_with(loaded):
    layout = layout_of(loaded)
    trained = layout.collate([sample(target="a dog")])["input_ids"][0]
    asked = layout.collate_prompts([sample()])["input_ids"][0]
    assert torch.equal(trained[: len(asked)], asked)


def test_a_tokenizer_that_merges_over_the_seam_keeps_the_prompt():
    vocabulary = {"<pad>": 0, "a": 1, "b": 2, " ": 3, "a ": 4, "<image>": 5, "<end>": 6}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocabulary, [("a", " ")])), pad_token="<pad>"
    )
    assert tokenizer("a b")["input_ids"] == [4, 2]
    layout = TextLayout(tokenizer, 5, num_query_tokens=1, end_token_id=6, pad_token_id=0)
    batch = layout.collate([sample("a", "b")])
    assert batch["input_ids"].tolist() == [[5, 1, 3, 2, 6]]
    assert batch["labels"].tolist() == [[IGNORE, IGNORE, 3, 2, 6]]


def test_white_space_around_a_target_is_not_learned(loaded):
    layout = layout_of(loaded)
    assert layout.target_ids("a photo of", " a dog\n") == layout.target_ids("a photo of", "a dog")


def test_a_target_that_is_cut_has_no_end_token(loaded):
    layout = layout_of(loaded)
    whole = layout.target_ids("a photo of", "a red cat and a dog")
    assert len(whole) == 7
    exact = layout_of(loaded, 7).target_ids("a photo of", "a red cat and a dog")
    assert exact == whole
    for limit in (6, 3):
        cut = layout_of(loaded, limit).target_ids("a photo of", "a red cat and a dog")
        assert cut == whole[:limit]
        assert layout.end_token_id not in cut


def test_padding_with_the_end_token_hides_no_end_token(loaded):
    layout = layout_of(loaded)
    layout = replace(layout, pad_token_id=layout.end_token_id)
    batch = layout.collate([sample(target="a dog"), sample(target="a red cat and a dog")])
    assert (batch["labels"] == layout.end_token_id).sum(1).tolist() == [1, 1]
    assert count_labels(batch) == 3 + 7


def test_a_tokenizer_without_padding_token_pads_with_the_end_token(opt_folder):
    model, processor = load_captioner(opt_folder)
    processor.tokenizer.pad_token = None
    layout = text_layout(model, processor, 16)
    assert layout.pad_token_id == layout.end_token_id == model.config.text_config.eos_token_id


# What the model makes of it.


@torch.no_grad()
def test_a_row_costs_the_same_alone_and_among_longer_ones(loaded):
    model, layout = loaded[0], layout_of(loaded)
    samples = [
        sample("", "a", seed=1),
        sample("a photo of", "a dog", seed=2),
        sample("a photo of the red car", "a blue bird on the left and a red apple", seed=3),
    ]
    alone = [float(caption_loss(model, layout.collate([one]))) for one in samples]
    together = float(caption_loss(model, layout.collate(samples)))
    assert together == pytest.approx(sum(alone), rel=1e-5)


@torch.no_grad()
def test_the_image_reaches_the_loss(loaded):
    model, layout = loaded[0], layout_of(loaded)
    losses = {
        round(float(caption_loss(model, layout.collate([sample(target="a dog", seed=i)]))), 4)
        for i in range(3)
    }
    assert len(losses) == 3


@torch.no_grad()
def greedy(
    model: Blip2ForConditionalGeneration, layout: TextLayout, one: Sample, steps: int
) -> str:
    """The likeliest token after token, without cache, padding or `generate`."""
    batch = layout.collate_prompts([one])
    answer: list[int] = []
    for _ in range(steps):
        if layout.is_encoder_decoder:
            inputs = batch | {"decoder_input_ids": torch.tensor([[0, *answer]])}
        else:
            ids = torch.cat([batch["input_ids"], torch.tensor([answer], dtype=torch.long)], dim=1)
            inputs = batch | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        answer.append(int(model(**inputs).logits[0, -1].argmax()))
        if answer[-1] == layout.end_token_id:
            break
    return layout.decode(torch.tensor([answer]))[0]


SAMPLES = [
    sample("", seed=1),
    sample("a photo of", seed=2),
    sample("Question: with a red car on the left? Answer:", seed=3),
    sample("a", seed=4),
]


def test_answers_are_the_likeliest_tokens_after_the_prompt(loaded):
    model, layout = loaded[0], layout_of(loaded)
    answers = generate(model, layout, SAMPLES, num_beams=1, max_new_tokens=8)
    assert answers == [greedy(model, layout, one, 8) for one in SAMPLES]
    assert any(answers)


@pytest.mark.parametrize("num_beams", [1, 5])
def test_a_batch_gives_the_answers_of_one_at_a_time(loaded, num_beams):
    model, layout = loaded[0], layout_of(loaded)
    options = {"num_beams": num_beams, "max_new_tokens": 8}
    together = generate(model, layout, SAMPLES, **options)
    assert together == [generate(model, layout, [one], **options)[0] for one in SAMPLES]
    assert len(set(together)) > 1


def test_an_answer_does_not_repeat_its_prompt(loaded):
    model, layout = loaded[0], layout_of(loaded)
    prompt = "a photo of the left bird and the right car"
    (answer,) = generate(model, layout, [sample(prompt)], max_new_tokens=8)
    assert not answer.startswith("a photo of")


# Errors.


@pytest.mark.parametrize("target", ["", "  \n"])
def test_an_empty_target_is_refused(loaded, target):
    with pytest.raises(ValueError, match=r"an empty target text can't be learned; drop the record"):
        layout_of(loaded).collate([sample(target=target)])


def test_a_training_batch_without_target_is_refused(loaded):
    with pytest.raises(ValueError, match=r"a training batch needs a target text for every sample"):
        layout_of(loaded).collate([sample(target="a dog"), sample()])


def test_text_that_holds_the_image_token_is_refused(loaded):
    layout = layout_of(loaded)
    with pytest.raises(ValueError, match=r"the text .*a <image> of.* holds the image token; take"):
        layout.collate_prompts([sample("a <image> of")])
    with pytest.raises(ValueError, match=r"the text .*<image> a.* holds the image token; take it"):
        layout.collate([sample("<image> a", "a dog")])


def test_a_prompt_that_is_longer_than_the_positions_is_refused(opt):
    layout = layout_of(opt)
    longest = " ".join(["a"] * 91)
    assert layout.collate_prompts([sample(longest)])["input_ids"].shape == (1, 96)
    with pytest.raises(
        ValueError, match=r"97 tokens don't fit the language model's 96 positions; shorten the pro"
    ):
        layout.collate_prompts([sample(f"{longest} a")])
    with pytest.raises(ValueError, match=r"98 tokens don't fit the language model's 96 positions"):
        layout.collate([sample(longest, "a")])


def test_targets_that_the_positions_cannot_hold_are_refused(opt):
    assert layout_of(opt, 91).max_positions == 96
    with pytest.raises(
        ValueError, match=r"max_target_tokens 92 and 4 image tokens don't fit .* 96 positions; low"
    ):
        layout_of(opt, 92)


def test_relative_positions_hold_any_length(t5):
    layout = layout_of(t5, 1000)
    batch = layout.collate_prompts([sample(" ".join(["a"] * 300))])
    assert batch["input_ids"].shape == (1, 305)


def test_pixels_are_stacked_in_the_order_of_the_samples(opt):
    layout = layout_of(opt)
    pixels = layout.collate_prompts([sample(seed=1), sample(seed=2)])["pixel_values"]
    assert torch.equal(pixels[1], sample(seed=2).pixel_values)
