"""The loss without logits against that of the stock model with all of them."""

from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from loss_memory import captions, head_alone, peak_memory
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    PhiConfig,
)

from blip2ft.data.batches import IGNORE, Sample, text_layout
from blip2ft.losses import language_modeling
from blip2ft.models.adapters import attach_lora
from blip2ft.models.load import load_captioner
from blip2ft.models.parts import checkpoint_gradients, set_train_mode, set_trainable
from blip2ft.models.vqa import load_vqa
from blip2ft.tasks.caption import caption_loss


@pytest.fixture
def captioner(model_folder):
    model, processor = load_captioner(model_folder)
    return model, text_layout(model, processor, 16)


@pytest.fixture(autouse=True)
def fresh_accelerate():
    yield
    AcceleratorState._reset_state(True)


def samples(texts=("a red apple", "the car with a bird and a cat", "dog")) -> list[Sample]:
    generator = torch.Generator().manual_seed(0)
    return [Sample(torch.randn(3, 28, 28, generator=generator), "a photo of", t) for t in texts]


def with_all_logits(model, batch):
    inputs = {key: value for key, value in batch.items() if key not in ("labels", "weights")}
    return language_modeling(
        model(**inputs, use_cache=False).logits,
        batch["labels"],
        shift="decoder_input_ids" not in batch,
        weights=batch.get("weights"),
    )


def gradients(model, total):
    model.zero_grad()
    total.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def check(model, batch):
    totals = []
    for loss in (caption_loss, with_all_logits):
        torch.manual_seed(0)  # parts that train drop out the same both times
        totals.append(loss(model, batch))
    found, expected = totals
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    ours, wanted = gradients(model, found), gradients(model, expected)
    assert ours.keys() == wanted.keys()
    for name, gradient in wanted.items():
        floor = 1e-5 * max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(ours[name], gradient, rtol=1e-5, atol=floor, msg=name)
    return ours


ALL = dict.fromkeys(("vision", "qformer", "projection", "language"), "full")
PAPER = ALL | {"language": "frozen"}


@pytest.mark.parametrize("language", ["frozen", "full"])
@pytest.mark.parametrize("count", [1, 3])
def test_loss_and_every_gradient_equal_those_with_all_logits(captioner, language, count):
    model, layout = captioner
    set_trainable(model, ALL | {"language": language})
    ours = check(model, layout.collate(samples()[:count]))
    assert any(name.startswith("language_model.") for name in ours) == (language == "full")


def test_samples_count_by_their_weights(captioner):
    model, layout = captioner
    few = [replace(one, weight=w) for one, w in zip(samples(), (0.3, 1.0, 0.0), strict=True)]
    set_trainable(model, ALL)
    check(model, layout.collate(few))


def test_all_but_one_padded_and_one_label(captioner):
    model, layout = captioner
    batch = layout.collate(samples())
    rows = batch["labels"] != IGNORE
    last = rows.nonzero()[-1]
    batch["labels"][rows] = IGNORE
    batch["labels"][tuple(last)] = 5
    set_trainable(model, ALL)
    check(model, batch)


def test_a_language_model_under_lora_and_checkpointing(captioner):
    model, layout = captioner
    parts = {"qformer": "full", "language": "lora"}
    attach_lora(model, parts, r=2, dropout=0.0)
    set_trainable(model, parts)
    checkpoint_gradients(model, ["language"])
    set_train_mode(model)
    ours = check(model, layout.collate(samples()))
    assert any(".lora_" in name for name in ours)


def test_an_instructblip(opt_folder, retriever_folder):
    model, processor = load_vqa(opt_folder, stage1=retriever_folder)
    set_trainable(model, ALL)
    check(model, text_layout(model, processor, 16).collate(samples()))


def with_language_model(folder, text) -> Blip2ForConditionalGeneration:
    config = Blip2Config.from_pretrained(folder)
    text.vocab_size = config.text_config.vocab_size
    config.text_config = text
    torch.manual_seed(0)
    model = Blip2ForConditionalGeneration(config).eval()
    nn.init.normal_(model.query_tokens)
    return model


SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
OTHERS = [
    pytest.param(LlamaConfig(**SMALL), 0, id="llama"),
    pytest.param(PhiConfig(**{**SMALL, "num_key_value_heads": 2}), 0, id="head-with-bias"),
    pytest.param(GraniteConfig(**SMALL, logits_scaling=4.0), 1, id="scaled"),
    pytest.param(Gemma2Config(**SMALL, head_dim=16, final_logit_softcapping=3.0), 1, id="capped"),
]


@pytest.mark.parametrize(("text", "in_full"), OTHERS)
def test_other_language_models_whatever_they_do_to_their_logits(opt_folder, text, in_full):
    """Where the head isn't the last word, one look is enough."""
    _, processor = load_captioner(opt_folder)
    model = with_language_model(opt_folder, text)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    batch = text_layout(model, processor, 16).collate(samples())
    forwards = []
    model.register_forward_hook(lambda *_: forwards.append(1))
    caption_loss(model, batch)
    assert len(forwards) == 1 + in_full
    check(model, batch)
    assert len(forwards) == 3 + in_full


def test_the_look_at_a_head_draws_no_dropout(opt_folder):
    """The first step of a process is as a later one: runs go on exactly, in another process too."""
    _, processor = load_captioner(opt_folder)
    model = with_language_model(opt_folder, GraniteConfig(**SMALL, logits_scaling=4.0))
    set_trainable(model, PAPER)
    set_train_mode(model)
    batch = text_layout(model, processor, 16).collate(samples())
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        drawn.append((float(caption_loss(model, batch).detach()), torch.rand(1).item()))
    assert drawn[0] == drawn[1]
    torch.manual_seed(1)
    assert float(caption_loss(model, batch).detach()) != drawn[0][0]  # something drops out


def test_a_head_that_is_no_plain_linear_layer(opt_folder):
    model, processor = load_captioner(opt_folder)

    class Half(nn.Linear):
        def forward(self, states):
            return super().forward(states) / 2

    head = model.language_model.lm_head
    half = Half(head.in_features, head.out_features, bias=False)
    half.weight = head.weight
    model.language_model.lm_head = half
    check(model, text_layout(model, processor, 16).collate(samples()))


@pytest.mark.parametrize("find_unused", [False, True])
def test_data_parallel_models_get_the_same_gradients(captioner, tmp_path, find_unused):
    model, layout = captioner
    parts = {"qformer": "full", "projection": "full", "language": "full"}
    set_trainable(model, parts)
    batch = layout.collate(samples())
    wanted = gradients(model, caption_loss(model, batch))
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model.zero_grad()
        wrapped = DistributedDataParallel(model, find_unused_parameters=find_unused)
        for _ in range(2):
            caption_loss(wrapped, batch).backward()
        del wrapped
    finally:
        dist.destroy_process_group()
    for name, gradient in wanted.items():
        found = model.get_parameter(name).grad / 2
        torch.testing.assert_close(found, gradient, rtol=1e-5, atol=1e-5, msg=name)


def test_bf16_is_as_near_fp32_as_with_all_logits(captioner):
    model, layout = captioner
    batch = layout.collate(samples())
    set_trainable(model, ALL)
    exact = caption_loss(model, batch)
    exact_gradients = gradients(model, exact)
    model = Accelerator(cpu=True, mixed_precision="bf16").prepare_model(model)
    off, far = [], []
    for loss in (caption_loss, with_all_logits):
        total = loss(model, batch)
        assert total.dtype == torch.float32
        off.append(float((total - exact).abs().detach() / exact.detach()))
        found = gradients(model, total)
        far.append(sum(float((found[n] - g).square().sum()) for n, g in exact_gradients.items()))
    assert off[0] < off[1] + 1e-3
    assert far[0] < 1.5 * far[1]


def test_the_head_is_itself_again_even_after_an_error(captioner):
    model, layout = captioner
    batch = layout.collate(samples())
    head = model.get_output_embeddings()
    caption_loss(model, batch)
    assert "forward" not in head.__dict__
    batch["labels"][0, -1] = 10**6
    with pytest.raises((IndexError, RuntimeError)):
        caption_loss(model, batch)
    assert "forward" not in head.__dict__


@pytest.mark.parametrize("family", ["opt", "t5"])
def test_logits_and_loss_take_two_fifths_of_the_memory_of_stock(family):
    model, batch = head_alone(family, 20_000, 64), captions(family, 20_000, 8, 16)
    ours = peak_memory(lambda: caption_loss(model, batch).backward(), "cpu")
    stock = peak_memory(lambda: model(**batch).loss.backward(), "cpu")
    assert ours < 0.4 * stock
