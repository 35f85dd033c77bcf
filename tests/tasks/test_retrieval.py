"""Retrieval: processes, cached ITC, pairs, scores."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from one_of_two import main as one_process
from safetensors.torch import load_file

from blip2ft.data.images import transforms_for
from blip2ft.data.order import Key
from blip2ft.data.pairs import pair_layout
from blip2ft.data.records import read_records
from blip2ft.evaluation.rows import ranking_rows
from blip2ft.gather import Shares
from blip2ft.models.in_batch import contrastive_loss, same_image, similarity_logits
from blip2ft.models.load import load_retriever
from blip2ft.tasks.ranking import Ranking, Rankings
from blip2ft.tasks.retrieval import (
    cache_itc,
    count_pairs,
    image_text_pairs,
    retrieval_loss,
    score,
)


def two_processes(*arguments) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2", str(Path(__file__).with_name("one_of_two.py"))]
    found = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-3000:]


def assert_same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=2e-5, rtol=2e-4, msg=name)


@pytest.mark.slow
def test_two_processes_are_one(retriever_folder, photo_folder, tmp_path):
    """Uneven batches, negatives and positives on either side, and the ranking after."""
    two_processes(retriever_folder, photo_folder / "captions.csv", tmp_path / "two")
    one_process(str(retriever_folder), str(photo_folder / "captions.csv"), str(tmp_path / "one"))
    assert_same(load_file(tmp_path / "one"), load_file(tmp_path / "two"))


def test_cached_itc_over_two_processes_is_one_large_batch(retriever_folder, photo_folder, tmp_path):
    places = str(retriever_folder), str(photo_folder / "captions.csv")
    two_processes(*places, tmp_path / "two", "cached")
    one_process(*places, str(tmp_path / "one"), cached=True)
    assert_same(load_file(tmp_path / "one"), load_file(tmp_path / "two"))


def random_batch(layout, rows):
    texts = ["a cat", "the dog and a bird on the apple", "a car", "a blue bird", "a red car"]
    pixels = torch.randn(5, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    ids, mask = layout.pad(layout.ids([texts[i] for i in rows]))
    return {
        "pixel_values": pixels[rows],
        "input_ids": ids,
        "attention_mask": mask,
        "image_ids": torch.tensor([0, 1, 1, 3, 4])[rows],
    }


def train_step(model, batches) -> float:
    model.zero_grad()
    total, value = sum(map(count_pairs, batches)), 0.0
    for batch in batches:
        loss = retrieval_loss(model, batch) / total
        loss.backward()
        value += loss.item()
    return value


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_cached_itc_has_the_gradients_of_the_whole_batch(retriever_folder, dropout):
    model, processor = load_retriever(retriever_folder, objectives={"itc": 1.0})
    layout = pair_layout(model, processor, 16)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    batches = [random_batch(layout, [0, 1, 2]), random_batch(layout, [3, 4])]
    torch.manual_seed(3)
    cached = cache_itc(model, batches)
    value = train_step(model, cached)
    ours = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    # all activations kept, the same dropout drawn
    model.zero_grad()
    features = []
    for batch, plain in zip(cached, batches, strict=True):
        torch.set_rng_state(batch["random_state"][0])
        features.append(model(**plain, features_only=True))
    images = torch.cat([f.image_features for f in features])
    texts = torch.cat([f.text_features for f in features])
    shares = Shares((5,), 0, 0, 0)
    same = same_image(shares, torch.tensor([0, 1, 1, 3, 4]), images.device)
    loss = contrastive_loss(
        shares, same, *similarity_logits(shares, images, texts, model.temperature)
    )
    loss.backward()
    assert value == pytest.approx(loss.item(), abs=1e-5)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(ours[name], parameter.grad, atol=1e-5, rtol=1e-3, msg=name)


def test_every_caption_is_a_pair_and_its_image_is_numbered(photo_folder, retriever_folder):
    records = read_records(photo_folder / "captions.csv")
    _, processor = load_retriever(retriever_folder)
    augment, _ = transforms_for(processor.image_processor)
    pairs = image_text_pairs(records, augment, seed=0)
    assert len(pairs) == sum(len(r.captions) for r in records)
    last = pairs[Key(0, len(pairs) - 1)]
    assert last.image == len(records) - 1
    assert last.text == records[-1].captions[-1]
    assert torch.equal(last.pixel_values, pairs[Key(0, len(pairs) - 1)].pixel_values)
    assert not torch.equal(last.pixel_values, pairs[Key(1, len(pairs) - 1)].pixel_values)


def test_scores_and_answers_of_known_rankings(photo_folder):
    records = read_records(photo_folder / "captions.csv")[:2]
    texts = sum(len(r.captions) for r in records)
    first = np.arange(texts)
    ranking = Ranking(np.stack([first, first]), np.stack([np.arange(texts, 0, -1.0)] * 2))
    images = Ranking(np.array([[0, 1]] * texts), np.array([[2.0, 1.0]] * texts))
    scores = score(Rankings(ranking, images), records)
    of_first = len(records[0].captions) / texts
    assert scores["image_to_text_r1"] == 0.5
    assert scores["text_to_image_r1"] == pytest.approx(of_first)
    assert scores["text_to_image_r5"] == 1.0
    assert list(scores)[-1] == "mean_recall"
    rows = ranking_rows(records, Rankings(ranking, images))
    assert rows[1]["caption"] == records[0].captions[0]
    assert rows[1]["references"] == list(records[1].captions)
    assert rows[1]["image_rank"] == of_first * texts + 1
    assert rows[1]["text_ranks"] == [2] * len(records[1].captions)
