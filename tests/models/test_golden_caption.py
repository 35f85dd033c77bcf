"""The caption loss and its gradients against what the original implementation computed.

tests/golden/README.md says where the numbers come from.
"""

import json
import re
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
from blip2ft.tasks.caption import caption_loss, count_labels

GOLDEN = Path(__file__).parents[1] / "golden" / "caption_opt_a"

# The original's names -> transformers', for the tensors of a captioning checkpoint.
RENAMES = (
    (r"^visual_encoder\.(cls_token)$", "vision_model.embeddings.class_embedding"),
    (r"^visual_encoder\.(pos_embed)$", "vision_model.embeddings.position_embedding"),
    (r"^visual_encoder\.patch_embed\.proj", "vision_model.embeddings.patch_embedding"),
    (r"^visual_encoder\.blocks", "vision_model.encoder.layers"),
    (r"\.attn\.", ".self_attn."),
    (r"\.self_attn\.proj\.", ".self_attn.projection."),
    (r"\.norm([12])\.", r".layer_norm\1."),
    (r"^ln_vision", "vision_model.post_layernorm"),
    (r"^opt_proj", "language_projection"),
    (r"^Qformer\.bert\.embeddings\.LayerNorm", "qformer.layernorm"),
    (r"^Qformer\.bert\.", "qformer."),
    (r"attention\.self\.", "attention.attention."),
)


def renamed(name: str) -> str:
    for pattern, new in RENAMES:
        name = re.sub(pattern, new, name)
    return name


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
    mapped = {renamed(name): tensor for name, tensor in state.items() if "position_ids" not in name}
    for i in range(model.config.vision_config.num_hidden_layers):
        prefix = f"vision_model.encoder.layers.{i}.self_attn."
        query, value = mapped.pop(f"{prefix}q_bias"), mapped.pop(f"{prefix}v_bias")
        mapped[f"{prefix}qkv.bias"] = torch.cat([query, torch.zeros_like(query), value])
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
    norms = {renamed(name): norm for name, norm in expected["grad_norms"].items()}
    compared = 0
    for name, parameter in model.named_parameters():
        if name in norms and norms[name] > 1e-6:
            ours = float(parameter.grad.norm())
            assert ours == pytest.approx(norms[name], rel=2e-2), name
            compared += 1
    assert compared > 100
