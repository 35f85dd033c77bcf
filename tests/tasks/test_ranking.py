"""Two-stage search against a naive oracle that scores everything by stock passes."""

import numpy as np
import psutil
import pytest
import torch
from plain import image_features, match, text_features

from blip2ft.data.images import transforms_for
from blip2ft.data.loading import load_pixels
from blip2ft.data.pairs import pair_layout
from blip2ft.data.records import read_records
from blip2ft.models.load import load_retriever
from blip2ft.tasks import ranking
from blip2ft.tasks.ranking import rank


@pytest.fixture
def setting(retriever_folder, photo_folder):
    model, processor = load_retriever(retriever_folder)
    records = read_records(photo_folder / "captions.csv")
    _, resize = transforms_for(processor.image_processor)
    texts = [caption for record in records for caption in record.captions]
    return model, pair_layout(model, processor, 16), resize, records, texts


@torch.no_grad()
def naive(model, layout, resize, records, texts):
    """Similarities and matching logits of every image with every text, one at a time."""
    similarity = torch.empty(len(records), len(texts))
    matching = torch.empty(len(records), len(texts))
    for i, record in enumerate(records):
        embeds = model.vision_model(load_pixels(record, resize)[None]).last_hidden_state
        of_image = image_features(model, embeds)
        for j, text in enumerate(texts):
            ids, mask = layout.pad(layout.ids([text]))
            similarity[i, j] = (of_image @ text_features(model, ids, mask).T).max()
            matching[i, j] = match(model, embeds, ids, mask)[0, 1]
    return similarity.numpy(), matching.numpy()


def expected(similarity, scores, count):
    """The `count` most similar columns of each row, ordered by score."""
    rows = []
    for row, value in zip(similarity, scores, strict=True):
        best = np.argsort(-row)[:count]
        rows.append(sorted(best, key=lambda j, v=value: -v[j]))
    return np.array(rows)


def assert_ranked(found, similarity, scores, count):
    """The same scores at the same places; what scores alike to 1e-4 may change places."""
    wanted = expected(similarity, scores, count)
    assert found.indices.shape == wanted.shape
    np.testing.assert_allclose(found.scores, np.take_along_axis(scores, wanted, 1), atol=1e-4)
    np.testing.assert_allclose(
        found.scores, np.take_along_axis(scores, found.indices, 1), atol=1e-4
    )


@pytest.mark.parametrize("candidates", [1, 3, 100])
@pytest.mark.parametrize("rerank", [True, False])
def test_equals_the_oracle(setting, candidates, rerank):
    similarity, matching = naive(*setting)
    found = rank(*setting, candidates=candidates, rerank=rerank, batch_size=3, pairs_at_once=2)
    scores = similarity + matching if rerank else similarity
    images, texts = similarity.shape
    assert_ranked(found.texts_of_images, similarity, scores, min(candidates, texts))
    assert_ranked(found.images_of_texts, similarity.T, scores.T, min(candidates, images))


def test_small_chunks_and_features_on_disk_change_nothing(setting, monkeypatch):
    whole = rank(*setting, candidates=3)
    monkeypatch.setattr(ranking, "CHUNK_BYTES", 1)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 0}))
    parts = rank(*setting, candidates=3, batch_size=1)
    np.testing.assert_allclose(
        parts.texts_of_images.scores, whole.texts_of_images.scores, atol=1e-5
    )
    np.testing.assert_allclose(
        parts.images_of_texts.scores, whole.images_of_texts.scores, atol=1e-5
    )


def test_one_image_and_one_text(setting):
    model, layout, resize, records, texts = setting
    found = rank(model, layout, resize, records[:1], texts[:1])
    assert found.texts_of_images.indices.tolist() == [[0]]
    assert found.images_of_texts.indices.tolist() == [[0]]


def test_nothing_to_rank_is_refused(setting):
    model, layout, resize, records, _ = setting
    with pytest.raises(ValueError, match="nothing to rank: 8 images and 0 texts"):
        rank(model, layout, resize, records, [])
