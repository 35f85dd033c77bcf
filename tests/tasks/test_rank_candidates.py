"""Answers ranked from a list: shared keys and values give what one at a time gives."""

import pytest
import torch

from blip2ft.data.batches import Sample, text_layout
from blip2ft.models.load import load_captioner
from blip2ft.tasks.caption import caption_loss
from blip2ft.tasks.vqa import candidate_ids, rank_candidates

TEMPLATE = "the {} of"
CANDIDATES = ["cat", "a red apple", "dog", "the bird on the left", "car", "blue"]


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_ranking_equals_one_at_a_time(model_folder, batch_size):
    model, processor = load_captioner(model_folder)
    layout = text_layout(model, processor, 16)
    pixels = torch.randn(3, 28, 28, generator=torch.Generator().manual_seed(0))
    ids = candidate_ids(layout, TEMPLATE, CANDIDATES)
    for question in ("photo", "photo and a car"):
        prompt = TEMPLATE.format(question)
        scores = rank_candidates(model, layout, Sample(pixels, prompt), ids, batch_size=batch_size)
        with torch.no_grad():
            alone = [
                -caption_loss(model, layout.collate([Sample(pixels, prompt, answer)]))
                for answer in CANDIDATES
            ]
        torch.testing.assert_close(scores, torch.stack(alone), atol=1e-4, rtol=1e-4)
