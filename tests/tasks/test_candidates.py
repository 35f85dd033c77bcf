"""Captions drawn and scored together equal those of one image, one text and one token at a time."""

import numpy as np
import pytest
import torch

from blip2ft.data.batches import Sample, text_layout
from blip2ft.data.images import transforms_for
from blip2ft.data.pairs import pair_layout
from blip2ft.models.load import load_captioner, load_retriever
from blip2ft.tasks import candidates
from blip2ft.tasks.candidates import (
    Candidate,
    Captioner,
    Nucleus,
    Scorer,
    best,
    draw_captions,
    merge_texts,
    score_texts,
    uniforms,
)

LENGTH = 5
TEXTS = [
    ["a cat", "the dog and a bird on the apple", "a red car"],
    [],
    ["a blue bird"],
    ["an apple", "a photo of the dog on the left with a cat"],
]


@pytest.fixture
def captioner(model_folder):
    model, processor = load_captioner(model_folder)
    _, resize = transforms_for(processor.image_processor)
    if not model.config.use_decoder_only_language_model:
        with torch.no_grad():  # else it is all but sure of every token
            model.get_output_embeddings().weight.mul_(0.1)
    return Captioner(model, text_layout(model, processor), resize, "a photo of")


@pytest.fixture(scope="module")
def scorer(retriever_folder):
    model, processor = load_retriever(retriever_folder, objectives={"itm": 1.0})
    _, resize = transforms_for(processor.image_processor)
    return Scorer(model, pair_layout(model, processor, 16), resize)


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(4, 3, 28, 28, generator=torch.Generator().manual_seed(0))


def noise_of(count, images=4):
    return torch.stack([uniforms(0, f"image {i}", count, LENGTH) for i in range(images)])


@torch.inference_mode()
def draw_one(captioner, image, numbers, top_p):
    """A caption token by token, each from a pass of its own over all before it."""
    model, layout = captioner.model, captioner.layout
    batch = layout.collate_prompts([Sample(image, captioner.prompt)])
    written = []
    for number in numbers.tolist():
        given = dict(batch)
        if layout.is_encoder_decoder:
            given["decoder_input_ids"] = torch.tensor([[layout.decoder_start_token_id, *written]])
        else:
            ids = torch.cat([batch["input_ids"], torch.tensor([written], dtype=torch.long)], 1)
            given |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        chances = model(**given).logits[0, -1].double().softmax(-1).tolist()
        order = sorted(range(len(chances)), key=lambda token: -chances[token])
        nucleus = []
        while not nucleus or sum(chances[token] for token in nucleus) < top_p:
            nucleus.append(order[len(nucleus)])
        left = number * sum(chances[token] for token in nucleus)
        for token in nucleus:
            left -= chances[token]
            if left < 0:
                break
        written.append(token)
        if token == layout.end_token_id:
            break
    return layout.decode(torch.tensor([written]))[0]


def test_captions_equal_those_drawn_token_by_token(captioner, pixels):
    noise = noise_of(3)
    found = draw_captions(captioner, pixels, noise, top_p=0.8)
    expected = [
        [draw_one(captioner, image, numbers, 0.8) for numbers in own]
        for image, own in zip(pixels, noise, strict=True)
    ]
    assert found == expected
    assert len({text for own in found for text in own}) > 9


@pytest.mark.parametrize("images", [[0], [2, 1], [3, 3, 0, 1]])
def test_a_caption_depends_on_its_image_and_noise_alone(captioner, pixels, images):
    noise = noise_of(4)
    everything = draw_captions(captioner, pixels, noise)
    torch.manual_seed(5)
    assert draw_captions(captioner, pixels[images], noise[images]) == [
        everything[i] for i in images
    ]
    fewer = draw_captions(captioner, pixels, noise[:, 1:2])
    assert fewer == [own[1:2] for own in everything]


def test_an_image_is_encoded_once_for_all_its_captions(captioner, pixels):
    seen = []
    captioner.model.vision_model.register_forward_hook(
        lambda module, inputs, output: seen.append(len(output[0]))
    )
    draw_captions(captioner, pixels, noise_of(6))
    assert seen == [len(pixels)]


def test_noise_depends_on_seed_and_name_alone():
    numbers = uniforms(0, "a.tar/1", 3, 4)
    assert numbers.shape == (3, 4)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert torch.equal(uniforms(0, "a.tar/1", 3, 4), numbers)
    assert not torch.equal(uniforms(1, "a.tar/1", 3, 4), numbers)
    assert not torch.equal(uniforms(0, "a.tar/2", 3, 4), numbers)


@pytest.mark.parametrize(
    ("top_p", "nucleus"), [(0.05, 1), (0.39, 1), (0.41, 2), (0.64, 2), (0.9, 4), (1.0, 4)]
)
def test_only_the_nucleus_is_drawn_from_and_each_by_its_probability(top_p, nucleus):
    """Tokens of 0.4, 0.25, 0.2, 0.15 and one that is barred, not in this order."""
    chances = torch.tensor([0.2, 0.4, 0.0, 0.15, 0.25])
    count = 10_000
    noise = (torch.arange(count, dtype=torch.float32)[:, None] + 0.5) / count
    scores = chances.log().expand(count, -1)
    left = Nucleus(noise, top_p, 3)(torch.zeros(count, 3, dtype=torch.long), scores)
    assert (left == 0).sum(1).eq(1).all()
    assert left.eq(-torch.inf).sum(1).eq(4).all()
    drawn = left.argmax(1).bincount(minlength=5) / count
    expected = chances.clone()
    expected[chances.argsort(descending=True)[nucleus:]] = 0
    torch.testing.assert_close(drawn, expected / expected.sum(), atol=2e-4, rtol=0)


def test_a_barred_token_is_never_drawn():
    """Though the chances of the others, added up, stay below 1 by rounding."""
    scores = torch.zeros(1, 42).index_fill(1, torch.tensor(41), -torch.inf)
    assert scores.softmax(-1).cumsum(-1)[0, 40] < 1
    left = Nucleus(torch.ones(1, 1), 1.0, 1)(torch.zeros(1, 1, dtype=torch.long), scores)
    assert left.argmax(1).item() == 40


def test_the_number_of_a_token_is_that_of_its_step():
    noise = torch.tensor([[0.1, 0.9]])
    scores = torch.tensor([[0.6, 0.4]]).log()
    for step, token in ((0, 0), (1, 1)):
        left = Nucleus(noise, 1.0, 4)(torch.zeros(1, 4 + step, dtype=torch.long), scores)
        assert left.argmax(1).item() == token


def test_a_number_that_rounds_up_to_one_takes_the_last_of_the_nucleus():
    left = Nucleus(torch.ones(1, 1), 0.9, 1)(
        torch.zeros(1, 1, dtype=torch.long), torch.tensor([[0.6, 0.35, 0.05, 0.0]]).log()
    )
    assert left.argmax(1).item() == 1


@torch.inference_mode()
def stock_scores(scorer, image, text):
    """Matching logits and similarity of one pair, by the stock forward."""
    ids, mask = scorer.layout.pad(scorer.layout.ids([text]))
    matching, similarity = (
        scorer.model(image[None], ids, mask, use_image_text_matching_head=head).logits_per_image
        for head in (True, False)
    )
    return matching[0], similarity.item()


@pytest.mark.parametrize("at_once", [1, 2, 100])
@pytest.mark.parametrize("score", candidates.SCORES)
def test_scores_equal_the_stock_models_of_one_pair_at_a_time(
    scorer, pixels, score, at_once, monkeypatch
):
    monkeypatch.setattr(candidates, "AT_ONCE", at_once)
    found = score_texts(scorer, pixels, TEXTS, score)
    assert [len(own) for own in found] == [3, 0, 1, 2]
    for image, texts, scores in zip(pixels, TEXTS, found, strict=True):
        for text, value in zip(texts, scores, strict=True):
            logits, similarity = stock_scores(scorer, image, text)
            expected = {
                "itm": logits.softmax(0)[1].item(),
                "itc": similarity,
                "itc+itm": similarity + logits[1].item(),
            }
            assert value == pytest.approx(expected[score], abs=2e-6)


def test_images_without_texts_have_no_scores(scorer, pixels):
    assert score_texts(scorer, pixels[:2], [[], []], "itm") == [[], []]


def test_an_unknown_score_is_refused(scorer, pixels):
    with pytest.raises(ValueError, match=r"score is 'clip': allowed are itm, itc, itc\+itm"):
        score_texts(scorer, pixels[:1], [["a cat"]], "clip")


def test_texts_that_differ_in_case_and_space_are_one():
    web = ["A red  car", "a cat", "a red car"]
    synthetic = ["a dog", " a CAT", "", "a\tdog", "a red car."]
    assert merge_texts(web, synthetic) == [
        ("A red  car", "web"),
        ("a cat", "web"),
        ("a dog", "synthetic"),
        ("a red car.", "synthetic"),
    ]
    assert merge_texts([], ["", " "]) == []


def test_the_best_are_kept_and_none_below_the_least_score():
    ranked = [Candidate(str(score), score, "web") for score in (0.9, 0.5, 0.5, 0.1)]
    assert best(ranked, 2, None) == ranked[:2]
    assert best(ranked, 4, 0.5) == ranked[:3]
    assert best(ranked, 1, 0.95) == []
    assert best([], 2, None) == []


def test_noise_is_the_same_on_every_machine():
    """So that a seed gives the same captions elsewhere, and tomorrow."""
    expected = [0.2514854]
    np.testing.assert_allclose(uniforms(0, "a.tar/1", 1, 1)[0].numpy(), expected, rtol=1e-6)
