"""The published models at full size, without weights: what trains is what the paper counts.

arXiv 2301.12597: table 3 gives 1.1 B trainable parameters for captioning, table 2 107 M for
stage 2, where ViT and language model are frozen. Section 3.1 gives the Q-Former 188 M. The modules
of the original's code, as ours, sum up to 186.7 M with the text branch and all heads (an output
weight that is the word embedding counted once); the paper doesn't say what makes up the rest.
"""

import pytest
import torch
from transformers import (
    BertConfig,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2VisionConfig,
    OPTConfig,
    T5Config,
)

from blip2ft.models.assemble import stage1_config
from blip2ft.models.parts import count_parameters, set_trainable
from blip2ft.models.retriever import Retriever

CAPTIONING = {"vision": "full", "qformer": "full", "projection": "full", "language": "frozen"}
STAGE_2 = {"vision": "frozen", "qformer": "full", "projection": "full", "language": "frozen"}

VISION = {
    "hidden_size": 1408,
    "intermediate_size": 6144,
    "num_hidden_layers": 39,
    "num_attention_heads": 16,
    "patch_size": 14,
}
QFORMER = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "cross_attention_frequency": 2,
}


def opt_2_7b() -> OPTConfig:
    return OPTConfig(
        hidden_size=2560,
        word_embed_proj_dim=2560,
        num_hidden_layers=32,
        num_attention_heads=32,
        ffn_dim=10240,
        vocab_size=50304,
    )


def flan_t5_xl() -> T5Config:
    return T5Config(
        d_model=2048,
        d_kv=64,
        d_ff=5120,
        num_layers=24,
        num_decoder_layers=24,
        num_heads=32,
        feed_forward_proj="gated-gelu",
        vocab_size=32128,
        tie_word_embeddings=False,
    )


def on_meta(text: OPTConfig | T5Config, image_size: int) -> Blip2ForConditionalGeneration:
    config = Blip2Config(
        vision_config=VISION | {"image_size": image_size},
        qformer_config=QFORMER,
        text_config=text,
        num_query_tokens=32,
    )
    with torch.device("meta"):
        return Blip2ForConditionalGeneration(config)


@pytest.fixture(scope="module", params=["opt-2.7b", "flan-t5-xl"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name: str) -> Blip2ForConditionalGeneration:
    text = opt_2_7b() if name == "opt-2.7b" else flan_t5_xl()
    return on_meta(text, 364)


def trainable(model: Blip2ForConditionalGeneration, parts: dict[str, str]) -> int:
    set_trainable(model, parts)
    return sum(trains for trains, _ in count_parameters(model).values())


def test_captioning_trains_what_the_paper_counts(name, model):
    exact = {"opt-2.7b": 1_093_674_496, "flan-t5-xl": 1_093_280_768}[name]
    assert trainable(model, CAPTIONING) == exact
    assert round(exact / 1e9, 2) == 1.09


def test_the_qformer_side_alone_is_what_the_paper_counts(name, model):
    exact = {"opt-2.7b": 107_133_696, "flan-t5-xl": 106_739_968}[name]
    assert trainable(model, STAGE_2) == exact
    assert round(exact / 1e6) == 107


def test_stage_1_trains_the_qformer_with_its_text_branch_and_heads():
    with torch.device("meta"):
        model = Retriever(stage1_config(Blip2VisionConfig(**VISION), BertConfig()))
    set_trainable(model, STAGE_2)
    counts = count_parameters(model)
    assert counts["qformer"] == (185_687_552, 185_687_552)
    # two projections of 768 to 256, ITM's head, ITG's, and the temperature
    assert counts["projection"] == (1_017_918, 1_017_918)
    assert counts["vision"][0] == 0
    trained = sum(trains for trains, _ in counts.values())
    assert trained == 186_705_470
    assert trained == pytest.approx(188e6, rel=0.01)
