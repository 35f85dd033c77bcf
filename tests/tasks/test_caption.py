"""Captioning: every image answered once, in order, whatever the batches and prompts."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator

from blip2ft.data.batches import IGNORE, Sample, text_layout
from blip2ft.data.images import TrainTransform, transforms_for
from blip2ft.data.loading import load_pixels
from blip2ft.data.order import Key
from blip2ft.data.records import read_records
from blip2ft.models.load import load_captioner
from blip2ft.tasks.caption import (
    caption_loss,
    caption_pairs,
    count_labels,
    generate,
    predict,
    score,
)

FEW = {"num_beams": 2, "max_new_tokens": 6}


@pytest.fixture
def captioner(model_folder):
    model, processor = load_captioner(model_folder)
    augment, resize = transforms_for(processor.image_processor, scale=(0.5, 1.0), flip=True)
    return model, text_layout(model, processor), augment, resize


@pytest.fixture(scope="module")
def records(photo_folder):
    return read_records(photo_folder / "captions.csv")


def alone(captioner, record, prompt):
    model, layout, _, resize = captioner
    return generate(model, layout, [Sample(load_pixels(record, resize), prompt)], **FEW)[0]


@pytest.mark.parametrize("count", [1, 5, 7])
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_every_record_is_answered_once_in_order(captioner, records, count, batch_size):
    model, layout, _, resize = captioner
    prompts = ["a photo of", "a", "", "the red bird on the left of", "a dog"]
    prompts = [prompts[i % 5] for i in range(count)]
    options = {"prompts": prompts, "batch_size": batch_size, **FEW}
    found = predict(model, layout, resize, records[:count], **options)
    expected = [alone(captioner, r, p) for r, p in zip(records, prompts, strict=False)]
    assert found == expected


def test_augmentation_without_a_seed_is_refused(captioner, records):
    with pytest.raises(
        ValueError, match=r"got no rng, so what it draws could never be drawn again"
    ):
        load_pixels(records[0], captioner[2])


def test_different_images_get_different_answers(captioner, records):
    model, layout, _, resize = captioner
    found = predict(model, layout, resize, records, prompts="a photo of", **FEW)
    assert len(set(found)) > 1


@pytest.mark.parametrize(("count", "world"), [(7, 3), (1, 2), (8, 2)])
def test_processes_share_the_records_without_gap_or_double(
    captioner, records, count, world, monkeypatch
):
    """Each process's share, gathered by hand; some have none."""
    model, layout, _, resize = captioner
    asked = {"prompts": "a photo of", "batch_size": 2, **FEW}
    shares = []

    class Rank:
        num_processes, autocast = world, nullcontext

    def gather(answers):
        shares.append(answers)
        return [answer for share in shares for answer in share]

    monkeypatch.setattr("blip2ft.tasks.caption.gather_object", gather)
    for rank in range(world):
        accelerator = Rank()
        accelerator.process_index = rank
        found = predict(model, layout, resize, records[:count], accelerator=accelerator, **asked)
    assert sorted(i for share in shares for i, _ in share) == list(range(count))
    assert found == predict(model, layout, resize, records[:count], **asked)


def test_an_accelerator_and_workers_change_nothing(captioner, records):
    model, layout, _, resize = captioner
    options = {"prompts": "a photo of", "batch_size": 3, **FEW}
    expected = predict(model, layout, resize, records[:5], **options)
    accelerator = Accelerator(cpu=True)
    state = torch.get_rng_state()
    found = predict(
        model, layout, resize, records[:5], workers=1, accelerator=accelerator, **options
    )
    assert found == expected
    assert torch.equal(torch.get_rng_state(), state)


def test_no_more_tokens_than_asked(captioner, records):
    model, layout, _, resize = captioner
    asked = {"prompts": "a photo of", "num_beams": 2}
    long = predict(model, layout, resize, records[:3], max_new_tokens=6, **asked)
    short = predict(model, layout, resize, records[:3], max_new_tokens=1, **asked)
    assert sum(map(len, short)) < sum(map(len, long))


def test_every_caption_of_an_image_is_a_sample(captioner, records):
    _, _, augment, _ = captioner
    two = [replace(records[0], captions=("a cat", "a dog")), records[1]]
    samples = caption_pairs(two, augment, "a photo of", 0)
    targets = [samples[Key(0, i)].target for i in range(len(samples))]
    assert targets == ["a cat", "a dog", *records[1].captions]


def test_augmentation_depends_on_seed_epoch_and_sample_alone(captioner, records):
    _, _, augment, _ = captioner
    samples = caption_pairs(records, augment, "", 0)
    pixels = samples[Key(1, 2)].pixel_values
    torch.manual_seed(5)
    assert torch.equal(samples[Key(1, 2)].pixel_values, pixels)
    assert not torch.equal(samples[Key(2, 2)].pixel_values, pixels)
    other = caption_pairs(records, augment, "", 1)
    assert not torch.equal(other[Key(1, 2)].pixel_values, pixels)


def test_the_loss_is_the_sum_over_labelled_tokens(captioner, records):
    model, layout, _, resize = captioner
    few = [Sample(load_pixels(r, resize), "a photo of", r.captions[0]) for r in records[:3]]
    batch = layout.collate(few)
    with torch.no_grad():
        together = caption_loss(model, batch)
        apart = sum(caption_loss(model, layout.collate([sample])) for sample in few)
        stock = model(**batch).loss
    assert count_labels(batch) == int((batch["labels"] != IGNORE).sum())
    assert float(together) == pytest.approx(float(apart), rel=1e-5)
    assert float(together) / count_labels(batch) == pytest.approx(float(stock), rel=1e-5)


def test_captions_are_scored_against_their_own_references(records):
    captions = [record.captions[0] for record in records]
    found = score(records, captions)
    assert found.scores["exact_match"] == 1.0
    assert found.scores["bleu1"] == pytest.approx(1.0)
    assert {"bleu4", "rougeL", "cider"} <= found.scores.keys()
    assert "meteor" not in found.scores
    wrong = score(records, [*captions[1:], captions[0]])
    assert wrong.scores["exact_match"] == 0.0
    assert wrong.scores["cider"] < found.scores["cider"]


def test_another_number_of_captions_is_refused(records):
    with pytest.raises(ValueError, match="shorter"):
        score(records, ["a cat"])


def test_a_caption_is_cut_anew_every_epoch_and_never_after_its_last_word(photo_folder):
    records = read_records(photo_folder / "captions.csv")
    transform = TrainTransform(28, (0.5,) * 3, (0.5,) * 3)
    pairs = caption_pairs(records, transform, "the photo of", 5, prefix_lm=True)
    whole = caption_pairs(records, transform, "the photo of", 5)
    cuts = set()
    for epoch in range(40):
        for sample in range(len(pairs)):
            key = Key(epoch, sample)
            cut, uncut = pairs[key], whole[key]
            assert torch.equal(cut.pixel_values, uncut.pixel_values)
            assert f"{cut.prompt} {cut.target}" == f"{uncut.prompt} {uncut.target}"
            assert cut.target
            assert pairs[key].prompt == cut.prompt
            cuts.add((sample, len(cut.prompt.split()) - 3))
    few = caption_pairs(records, transform, "the photo of", 5, prefix_lm=True, max_words=2)
    assert {len(f"{few[Key(e, 0)].prompt} {few[Key(e, 0)].target}".split()) for e in range(9)} == {
        5
    }
    words = {sample: len(whole[Key(0, sample)].target.split()) for sample in range(len(whole))}
    assert cuts == {(sample, cut) for sample, count in words.items() for cut in range(count)}
