"""Losses, gradients and scores of retrieval against what the original implementation computed.

tests/golden/README.md says where the numbers come from.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Blip2Config

from blip2ft.models.lavis import to_transformers, transformers_name
from blip2ft.models.qformer import project_images
from blip2ft.models.retriever import Retriever

GOLDEN = Path(__file__).parents[1] / "golden"


def original(case: str) -> tuple[Retriever, dict, dict[str, torch.Tensor]]:
    """The original's weights in our model, what it computed, and its inputs."""
    folder = GOLDEN / case
    model = Retriever(Blip2Config.from_pretrained(folder)).eval()
    text = model.config.qformer_config
    text.bos_token_id = text.vocab_size - 1
    state = torch.load(folder / "lavis.pth", weights_only=True)["model"]
    model.load_state_dict(to_transformers(state, "stage1"))
    expected = json.loads((folder / "expected.json").read_text())
    return model, expected, load_file(folder / "tensors.safetensors")


def run(model, expected, tensors):
    ids = expected["image_ids"]
    numbers = None if ids is None else torch.tensor(ids)
    texts = tensors["input_ids"], tensors["attention_mask"]
    return model(tensors["image"], *texts, numbers)


def test_all_three_losses_and_their_gradients():
    model, expected, tensors = original("stage1_a")
    output = run(model, expected, tensors)
    losses = expected["losses"]
    assert output.itc.item() == pytest.approx(losses["loss_itc"], abs=1e-4)
    assert output.itm.item() == pytest.approx(losses["loss_itm"], abs=1e-4)
    assert output.itg.item() == pytest.approx(losses["loss_lm"], abs=1e-4)
    assert output.loss.item() == pytest.approx(losses["loss"], abs=1e-4)
    output.loss.backward()
    own, compared = dict(model.named_parameters()), 0
    for name, norm in expected["grad_norms"].items():
        if name.endswith(("q_bias", "v_bias")):
            continue  # with the key's they are one bias in transformers
        ours = own.get(transformers_name(name, "stage1"))
        if ours is not None and norm > 1e-5:  # a key's bias has rounding for a gradient
            assert ours.grad.norm().item() == pytest.approx(norm, rel=1e-4), name
            compared += 1
    assert compared > 100


def test_soft_targets_of_pairs_that_share_an_image():
    model, expected, tensors = original("stage1_c")
    output = run(model, expected, tensors)
    assert output.itc.item() == pytest.approx(expected["losses"]["loss_itc"], abs=1e-4)
    assert output.itg.item() == pytest.approx(expected["losses"]["loss_lm"], abs=1e-4)


@pytest.mark.parametrize("case", ["stage1_a", "stage1_c"])
def test_features_and_matching_scores(case):
    model, expected, tensors = original(case)
    output = run(model, expected, tensors)
    close = {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(output.image_features, tensors["image_feats"], **close)
    torch.testing.assert_close(output.text_features, tensors["text_feats"], **close)
    keys = project_images(model.qformer, tensors["image_embeds"])
    count = len(tensors["image_embeds"])
    ids, mask = tensors["input_ids"], tensors["attention_mask"]
    rows = model.match([(keys, len(ids))], ids.repeat(count, 1), mask.repeat(count, 1))[:, 1]
    torch.testing.assert_close(rows.view(count, len(ids)), tensors["itm"], **close)
