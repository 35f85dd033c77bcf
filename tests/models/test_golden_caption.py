"""The caption loss and its gradients against what the original implementation computed.

tests/golden/README.md says where the numbers come from.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessorPil,
)

from blip2ft.data.batches import Sample, TextLayout, text_layout
from blip2ft.models.lavis import to_transformers, transformers_name
from blip2ft.tasks.caption import caption_loss, count_labels

GOLDEN = Path(__file__).parents[1] / "golden" / "caption_opt_a"


@pytest.fixture(scope="module")
def expected() -> dict:
    return json.loads((GOLDEN / "expected.json").read_text())


@pytest.fixture(scope="module")
def original() -> tuple[Blip2ForConditionalGeneration, TextLayout]:
    """The original's weights in a stock model.

    The original has no image token, and its vocabulary no free row. A token that no caption holds
    takes its place: a new row would join the softmax and change the loss.
    """
    torch.manual_seed(0)
    model = Blip2ForConditionalGeneration(Blip2Config.from_pretrained(GOLDEN))
    tokenizer = AutoTokenizer.from_pretrained(GOLDEN / "language_model")
    state = torch.load(GOLDEN / "lavis.pth", weights_only=True)["model"]
    mapped = to_transformers(state, "opt")
    language = load_file(GOLDEN / "language_model" / "model.safetensors")
    language = {f"language_model.{name}": tensor for name, tensor in language.items()}
    missing, unexpected = model.load_state_dict(mapped | language, strict=False)
    assert set(missing) <= {"language_model.lm_head.weight"}
    assert not unexpected
    model.tie_weights()
    # the original ends captions with the tokenizer's line break
    model.config.text_config.eos_token_id = 202
    model.config.image_token_index = tokenizer.convert_tokens_to_ids("<s>")
    processor = Blip2Processor(BlipImageProcessorPil(), tokenizer, model.config.num_query_tokens)
    return model.eval(), text_layout(model, processor, 32)


@pytest.fixture(scope="module")
def batch(original, expected) -> dict[str, torch.Tensor]:
    images = load_file(GOLDEN / "tensors.safetensors")["image"]
    _, layout = original
    samples = [
        Sample(image, expected["prompt"], caption)
        for image, caption in zip(images, expected["captions"], strict=True)
    ]
    return layout.collate(samples)


def test_text_is_laid_out_as_the_original_does(batch, expected):
    text = batch["input_ids"][:, 8:]
    assert text.tolist() == expected["input_ids"]


def test_loss_equals_the_original(original, batch, expected):
    model, _ = original
    with torch.no_grad():
        loss = caption_loss(model, batch) / count_labels(batch)
    assert float(loss) == pytest.approx(expected["loss"], abs=5e-4)


def test_gradients_equal_the_original(original, batch, expected):
    model, _ = original
    model.zero_grad()
    (caption_loss(model, batch) / count_labels(batch)).backward()
    norms = {transformers_name(name, "opt"): norm for name, norm in expected["grad_norms"].items()}
    compared = 0
    for name, parameter in model.named_parameters():
        if name in norms and norms[name] > 1e-6:
            ours = float(parameter.grad.norm())
            assert ours == pytest.approx(norms[name], rel=2e-2), name
            compared += 1
    assert compared > 100
