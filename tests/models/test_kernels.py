from functools import partial

import pytest
import torch
from plain import turn_off_dropout
from torch._dynamo.utils import counters

from blip2ft.models import kernels
from blip2ft.models.adapters import attach_lora
from blip2ft.models.kernels import check_kernels, choose_attention, compile_blocks
from blip2ft.models.load import load_captioner, load_retriever
from blip2ft.models.parts import checkpoint_gradients, set_train_mode, set_trainable

PARTS = {"vision": "full", "qformer": "full", "projection": "full", "language": "frozen"}
ALL = ("vision", "qformer", "language")


def batch_of(model, rows: int, words: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    size, queries = model.config.vision_config.image_size, model.config.num_query_tokens
    ids = torch.randint(5, 20, (rows, words), generator=generator)
    ids[:, :queries] = model.config.image_token_index
    pixels = torch.randn(rows, 3, size, size, generator=generator)
    return {"pixel_values": pixels, "input_ids": ids, "attention_mask": torch.ones_like(ids)}


def gradients(model, batch) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**batch, use_cache=False).logits.square().mean().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def dynamo_alone(monkeypatch):
    """torch.compile without the compiler's minutes: what it traces is run as it is."""
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(kernels.torch, "compile", partial(torch.compile, backend="eager"))
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", ["eager", "sdpa"])
def test_attention_of_any_kind_gives_the_same_answers(model_folder, kind):
    model, _ = load_captioner(model_folder)
    batch = batch_of(model, 2, model.config.num_query_tokens + 6)
    if model.config.text_config.is_encoder_decoder:
        batch["decoder_input_ids"] = batch["input_ids"][:, -3:]
    with torch.no_grad():
        before = model(**batch).logits
        choose_attention(model, dict.fromkeys(ALL, kind))
        assert model.vision_model.config._attn_implementation == kind
        assert model.language_model.config._attn_implementation == kind
        torch.testing.assert_close(model(**batch).logits, before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["flash_attention_2", "quick"])
def test_attention_that_cannot_be_is_refused(opt_folder, kind):
    model, _ = load_captioner(opt_folder)
    with pytest.raises(ValueError, match=rf"model\.attention: vision can't use '{kind}' \(.*sdpa"):
        choose_attention(model, {"vision": kind})


def test_parts_that_compute_nothing_are_refused(opt_folder):
    model, _ = load_captioner(opt_folder)
    has = "this model has vision, qformer, language"
    with pytest.raises(ValueError, match=rf"model\.attention names 'projection': {has}"):
        choose_attention(model, {"projection": "sdpa"})
    with pytest.raises(ValueError, match=rf"model\.compile names 'projection': {has}"):
        compile_blocks(model, ["projection"])


def test_a_retriever_compiles_its_image_encoder_alone(retriever_folder):
    model, _ = load_retriever(retriever_folder)
    with pytest.raises(ValueError, match="runs in pieces; compile vision"):
        compile_blocks(model, ["vision", "qformer"])
    with pytest.raises(ValueError, match="names 'language': this model has vision, qformer"):
        compile_blocks(model, ["language"])


@pytest.mark.parametrize(
    ("task", "attention", "compile", "message"),
    [
        ("caption", ["vison"], [], "model.attention names 'vison': this model has vision, qformer"),
        ("vqa", [], ["projection"], "model.compile names 'projection': this model has vision"),
        ("retrieval", ["language"], [], "names 'language': this model has vision, qformer$"),
        ("retrieval", [], ["qformer"], "runs in pieces; compile vision"),
    ],
    ids=["typo", "no-blocks", "no-language", "in-pieces"],
)
def test_wrong_parts_are_told_without_a_model(task, attention, compile, message):
    with pytest.raises(ValueError, match=message):
        check_kernels(task, attention, compile)


def test_right_parts_are_let_pass():
    check_kernels("caption", ALL, ALL)
    check_kernels("retrieval", ["vision", "qformer"], ["vision"])


def test_a_retriever_that_drops_out_is_not_compiled(retriever_folder, dynamo_alone):
    model, _ = load_retriever(retriever_folder)
    parts = {"vision": "lora"}
    attach_lora(model, parts, r=2, dropout=0.1)
    with pytest.raises(ValueError, match=r"the same with and without .* set lora\.dropout to 0"):
        compile_blocks(model, ["vision"])
    model, _ = load_retriever(retriever_folder)
    attach_lora(model, parts, r=2, dropout=0.0)
    compile_blocks(model, ["vision"])


def test_without_a_compiler_nothing_is_compiled(opt_folder, monkeypatch):
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def missing() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    model, _ = load_captioner(opt_folder)
    compile_blocks(model, [])
    with pytest.raises(ValueError, match=r"needs a C\+\+ compiler on a CPU; leave model\.compile"):
        compile_blocks(model, ["vision"])


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch warns while it traces
@pytest.mark.parametrize("checkpointing", [(), ("vision", "language")], ids=["kept", "recomputed"])
def test_equal_blocks_share_what_is_compiled(opt_folder, dynamo_alone, checkpointing):
    model, _ = load_captioner(opt_folder)
    queries = model.config.num_query_tokens
    set_trainable(model, PARTS)
    checkpoint_gradients(model, checkpointing)
    set_train_mode(model)
    turn_off_dropout(model)
    names = list(model.state_dict())
    batches = [batch_of(model, 2, queries + words) for words in (4, 6, 7, 9)]
    expected = [gradients(model, batch) for batch in batches]
    compile_blocks(model, ALL)
    assert list(model.state_dict()) == names
    for batch, wanted in zip(batches, expected, strict=True):
        found = gradients(model, batch)
        assert found.keys() == wanted.keys()
        for name, gradient in wanted.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0
    # a block of the ViT, two kinds of the Q-Former's, and OPT's for one length and for any other;
    # one that checkpoints gradients counts for what it recomputes too
    assert graphs <= 5 * (2 if checkpointing else 1)


def test_answers_are_computed_as_before(opt_folder, dynamo_alone):
    model, _ = load_captioner(opt_folder)
    batch = batch_of(model, 2, model.config.num_query_tokens + 3)
    before = model.generate(**batch, max_new_tokens=4)
    compile_blocks(model, ALL)
    assert torch.equal(model.generate(**batch, max_new_tokens=4), before)
    assert counters["stats"]["unique_graphs"] == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, where it is imported
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo looks itself
def test_what_is_compiled_has_the_same_gradients(opt_folder):
    model, _ = load_captioner(opt_folder)
    set_trainable(model, PARTS)
    batch = batch_of(model, 2, model.config.num_query_tokens + 4)
    wanted = gradients(model, batch)  # in eval mode: nothing is dropped out
    compile_blocks(model, ALL)
    found = gradients(model, batch)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5, msg=name)
