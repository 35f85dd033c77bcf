"""Loading: every family, other sizes, old checkpoints completed, foreign ones refused."""

import json
import logging
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    Blip2Processor,
    LlamaConfig,
)

from blip2ft.data.batches import Sample, text_layout
from blip2ft.models.load import complete_tokens, end_token_id, load_captioner, load_retriever
from blip2ft.models.parts import part_of
from blip2ft.models.source import quantization_config
from blip2ft.models.vqa import load_vqa
from blip2ft.tasks.caption import generate


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / "model"))


def edit_json(path: Path, **changes) -> None:
    """Change keys of a JSON file; None takes one out."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def without_image_token(folder: Path, to: Path, *, free_rows: bool) -> Path:
    """The checkpoint as it was before `<image>` tokens, with an unused row for one or without."""
    model = Blip2ForConditionalGeneration.from_pretrained(folder)
    token_id = model.config.image_token_index
    to = copied(folder, to)
    if not free_rows:
        model.resize_token_embeddings(token_id)
        model.save_pretrained(to)
    edit_json(to / "config.json", image_token_index=None, image_token_id=None)
    tokenizer = json.loads((to / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [t for t in tokenizer["added_tokens"] if t["content"] != "<image>"]
    (to / "tokenizer.json").write_text(json.dumps(tokenizer))
    edit_json(to / "processor_config.json", num_query_tokens=None)
    return to


def prompt_batch(model, processor) -> dict[str, torch.Tensor]:
    sample = Sample(torch.ones(3, 28, 28), "a photo of")
    return text_layout(model, processor, 16).collate_prompts([sample])


# What loads.


def test_loads_both_families(model_folder, caplog):
    model, processor = load_captioner(model_folder)
    assert not model.training
    assert processor.num_query_tokens == 4
    assert processor.tokenizer.convert_tokens_to_ids("<image>") == model.config.image_token_index
    assert not [r for r in caplog.records if r.name.startswith("blip2ft")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_have_the_dtype_asked_for(model_folder, dtype):
    model, _ = load_captioner(model_folder, dtype=dtype)
    vision = {p.dtype for p in model.vision_model.parameters()}
    assert vision == {dtype}


def test_another_image_size_is_written_into_the_checkpoint(opt_folder, tmp_path):
    model, processor = load_captioner(opt_folder, image_size=42)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = Blip2ForConditionalGeneration.from_pretrained(tmp_path).eval()
    stock = Blip2Processor.from_pretrained(tmp_path)
    assert again.config.vision_config.image_size == 42
    assert stock.image_processor.size == {"height": 42, "width": 42}
    pixels = torch.randn(1, 3, 42, 42)
    torch.testing.assert_close(again.vision_model(pixels)[0], model.vision_model(pixels)[0])


def test_an_image_size_of_broken_patches_is_refused(opt_folder):
    with pytest.raises(ValueError, match=r"image size 30 doesn't divide into patches of 14"):
        load_captioner(opt_folder, image_size=30)


def test_any_causal_language_model_loads_and_answers(opt_folder, tmp_path):
    text = LlamaConfig(
        vocab_size=308,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=96,
        bos_token_id=2,
        eos_token_id=202,
        initializer_range=0.2,
    )
    stock = Blip2Config.from_pretrained(opt_folder)
    config = Blip2Config(
        vision_config=stock.vision_config,
        qformer_config=stock.qformer_config,
        text_config=text,
        num_query_tokens=4,
        image_token_index=stock.image_token_index,
    )
    torch.manual_seed(0)
    model = Blip2ForConditionalGeneration(config)
    torch.nn.init.normal_(model.query_tokens)
    model.save_pretrained(tmp_path)
    processor = Blip2Processor.from_pretrained(opt_folder)
    processor.tokenizer.pad_token = None  # as Llama's has none
    processor.save_pretrained(tmp_path)
    model, processor = load_captioner(tmp_path)
    layout = text_layout(model, processor, 16)
    assert layout.pad_token_id == layout.end_token_id == 202
    assert not layout.is_encoder_decoder
    samples = [Sample(torch.ones(3, 28, 28), prompt) for prompt in ("", "a photo of a red")]
    together = generate(model, layout, samples, max_new_tokens=6)
    assert together == [generate(model, layout, [s], max_new_tokens=6)[0] for s in samples]


def test_pickled_tensors_load(opt_folder, tmp_path):
    folder = copied(opt_folder, tmp_path)
    expected = Blip2ForConditionalGeneration.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(expected.state_dict(), folder / "pytorch_model.bin")
    model, _ = load_captioner(folder)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected.state_dict()[name]), name


# Old checkpoints are completed.


@pytest.mark.parametrize("free_rows", [True, False])
def test_a_checkpoint_without_image_token_is_completed_and_says_so(
    model_folder, tmp_path, caplog, free_rows
):
    folder = without_image_token(model_folder, tmp_path, free_rows=free_rows)
    rows = len(Blip2Processor.from_pretrained(model_folder).tokenizer)
    with caplog.at_level(logging.WARNING, "blip2ft"):
        model, processor = load_captioner(folder)
    said = [r.getMessage() for r in caplog.records if r.name.startswith("blip2ft")]
    grown = f"the embedding grew from {rows - 1} to {rows} rows for <image>"
    assert [message for message in said if "grew" in message] == ([] if free_rows else [grown])
    assert f"the config lacks image_token_index; completed with {rows - 1}" in said
    assert "the processor has num_query_tokens None; completed with the config's 4" in said
    assert model.config.image_token_index == rows - 1
    assert model.get_input_embeddings().weight.shape[0] == rows
    assert model.config.text_config.vocab_size == rows
    assert processor.num_query_tokens == 4
    ids = prompt_batch(model, processor)["input_ids"]
    assert (ids == model.config.image_token_index).sum() == 4


@pytest.mark.parametrize("free_rows", [True, False])
def test_completing_twice_gives_the_same_model(model_folder, tmp_path, free_rows):
    folder = without_image_token(model_folder, tmp_path, free_rows=free_rows)
    torch.manual_seed(1)
    first = load_captioner(folder)[0].state_dict()
    torch.manual_seed(2)
    second = load_captioner(folder)[0].state_dict()
    assert set(first) == set(second)
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.mark.parametrize("free_rows", [True, False])
def test_a_completed_checkpoint_is_complete_for_stock_once_saved(
    model_folder, tmp_path, caplog, free_rows
):
    folder = without_image_token(model_folder, tmp_path, free_rows=free_rows)
    model, processor = load_captioner(folder)
    model.save_pretrained(tmp_path / "new")
    processor.save_pretrained(tmp_path / "new")
    caplog.clear()
    again, _ = load_captioner(tmp_path / "new")
    assert not [r for r in caplog.records if r.name.startswith("blip2ft")]
    stock = Blip2ForConditionalGeneration.from_pretrained(tmp_path / "new").eval()
    assert Blip2Processor.from_pretrained(tmp_path / "new").num_query_tokens == 4
    assert stock.config.image_token_index == model.config.image_token_index
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, stock.state_dict()[name]), name
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_growing_leaves_all_other_rows_and_answers_alone(model_folder, tmp_path):
    folder = without_image_token(model_folder, tmp_path, free_rows=False)
    old = Blip2ForConditionalGeneration.from_pretrained(folder).eval()
    model, processor = load_captioner(folder)
    batch = prompt_batch(model, processor)
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = torch.tensor([[0, 5]])
    token_id = model.config.image_token_index
    for table, before in (
        (model.get_input_embeddings(), old.get_input_embeddings()),
        (model.get_output_embeddings(), old.get_output_embeddings()),
    ):
        assert torch.equal(table.weight[:token_id], before.weight)
        torch.testing.assert_close(table.weight[token_id], before.weight.mean(0))
    with torch.no_grad():
        logits = model(**batch).logits
    assert (logits[..., token_id] < logits[..., :token_id].max(-1).values).all()


def test_a_grown_token_is_never_generated(model_folder, tmp_path):
    model, processor = load_captioner(without_image_token(model_folder, tmp_path, free_rows=False))
    batch = prompt_batch(model, processor)
    token_id = model.config.image_token_index
    options = {"max_new_tokens": 5, "num_beams": 1, "do_sample": False, "eos_token_id": None}
    start = 0 if model.config.is_encoder_decoder else batch["input_ids"].shape[1]
    likeliest = model.generate(**batch, **options)[0, start:]
    table = model.get_output_embeddings().weight
    with torch.no_grad():
        # the tokens of the answer in turn are outdone by the new one
        for row in likeliest.unique():
            table[token_id] = 3 * table[row]
            assert token_id not in model.generate(**batch, **options)[0, start:]


def test_tokens_that_are_there_are_left_alone(opt_folder):
    model, processor = load_captioner(opt_folder)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    complete_tokens(model, processor)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert model.generation_config.suppress_tokens is None


def test_a_processor_of_another_number_of_queries_follows_the_config(opt_folder, tmp_path, caplog):
    folder = copied(opt_folder, tmp_path)
    edit_json(folder / "processor_config.json", num_query_tokens=32)
    _, processor = load_captioner(folder)
    assert processor.num_query_tokens == 4
    assert "num_query_tokens 32; completed with the config's 4" in caplog.text


# The end token.


def test_the_end_token_is_the_language_models_own(opt_folder, t5_folder):
    model, processor = load_captioner(opt_folder)
    assert processor.tokenizer.decode([end_token_id(model)]) == "\n"
    model, processor = load_captioner(t5_folder)
    assert processor.tokenizer.decode([end_token_id(model)]) == "</s>"


def test_of_several_end_tokens_the_first_counts(opt_folder):
    model, _ = load_captioner(opt_folder)
    model.config.text_config.eos_token_id = [7, 2]
    assert end_token_id(model) == 7


@pytest.mark.parametrize("ids", [9, [9, 4]])
def test_the_outer_generation_config_is_asked_last(opt_folder, ids):
    model, _ = load_captioner(opt_folder)
    model.generation_config.eos_token_id = ids
    assert end_token_id(model) == 202
    model.config.text_config.eos_token_id = None
    assert end_token_id(model) == 9


def test_a_checkpoint_without_end_token_is_refused(opt_folder):
    model, _ = load_captioner(opt_folder)
    model.config.text_config.eos_token_id = None
    model.generation_config.eos_token_id = None
    with pytest.raises(ValueError, match=r"names no end token; set eos_token_id in its text_conf"):
        end_token_id(model)


# Fewer bits.


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("part", ["language", "vision"])
def test_only_the_part_named_is_quantised(wide_folder, kind, part):
    pytest.importorskip("bitsandbytes")
    model, processor = load_captioner(wide_folder, quantize={part: kind})
    quantised = {"nf4": "Linear4bit", "int8": "Linear8bitLt"}[kind]
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            expected = quantised if part_of(name) == part else "Linear"
            if module is model.get_output_embeddings():
                expected = "Linear"
            assert type(module).__name__ == expected, name
    dtypes = {p.dtype for n, p in model.named_parameters() if part_of(n) != part}
    assert dtypes == {torch.float32}
    with torch.no_grad():
        assert model(**prompt_batch(model, processor)).logits.isfinite().all()


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_gradients_pass_through_a_quantised_part_after_answers_too(wide_folder, kind, monkeypatch):
    """bitsandbytes packs 4-bit weights anew at the first answer, where the CPU has AVX512-BF16."""
    modules = pytest.importorskip("bitsandbytes.nn.modules")
    monkeypatch.setattr(modules, "has_avx512bf16", lambda: True)
    model, processor = load_captioner(wide_folder, quantize={"language": kind})
    batch = prompt_batch(model, processor)

    def gradient() -> torch.Tensor:
        model.zero_grad()
        model(**batch).logits.square().sum().backward()
        return model.language_projection.weight.grad.clone()

    before = gradient()
    with torch.no_grad():
        model(**batch)
    assert before.norm() > 0
    assert torch.equal(gradient(), before)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_quantised_checkpoint_without_image_token_is_completed_as_any(
    model_folder, tmp_path, kind
):
    pytest.importorskip("bitsandbytes")
    folder = without_image_token(model_folder, tmp_path, free_rows=False)
    plain, _ = load_captioner(folder)
    model, processor = load_captioner(folder, quantize={"language": kind})
    tables = (model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    expected = (plain.get_input_embeddings().weight, plain.get_output_embeddings().weight)
    for table, own in zip(tables, expected, strict=True):
        assert table.dtype == torch.float32
        assert torch.equal(table, own)
    assert (tables[0] is tables[1]) == (expected[0] is expected[1])  # OPT's head is tied
    ids = model.generate(**prompt_batch(model, processor), max_new_tokens=3, min_new_tokens=3)
    assert model.config.image_token_index not in ids[0, -3:]


@pytest.mark.parametrize("quantize", [{"language": "nf4", "vision": "int8"}, {"language": "fp4"}])
def test_other_or_mixed_kinds_of_quantising_are_refused(opt_folder, quantize):
    told = " and ".join(f"{part} in {kind}" for part, kind in quantize.items())
    with pytest.raises(ValueError, match=f"quantize has {told}: allowed are nf4 and int8"):
        load_captioner(opt_folder, quantize=quantize)


def test_quantising_without_bitsandbytes_names_the_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ValueError, match=r'needs bitsandbytes: pip install "blip2ft\[quantize\]"'):
        quantization_config({"language": "nf4"}, torch.float32)


@pytest.mark.parametrize("load", [load_captioner, load_retriever, load_vqa])
def test_without_bitsandbytes_no_other_model_is_advised(load, opt_folder, request, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    folder = request.getfixturevalue("retriever_folder" if load is load_retriever else "opt_folder")
    options = {"stage1": request.getfixturevalue("retriever_folder")} if load is load_vqa else {}
    with pytest.raises(ValueError, match=r'quantising needs bitsandbytes: .*\[quantize\]"$'):
        load(folder, quantize={"vision": "nf4"}, **options)


def test_of_bitsandbytes_warnings_only_that_on_a_kernel_we_do_not_use_is_left_out(caplog):
    quantization_config({}, torch.float32)
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    caplog.set_level(logging.WARNING, logger.name)  # a command may have silenced it before
    logger.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s", "no kernels")
    logger.warning("something else")
    assert caplog.messages == ["something else"]


def test_quantising_nothing_needs_no_bitsandbytes(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert quantization_config({}, torch.float32) is None


# What doesn't load.


@pytest.mark.parametrize("name", ["./no/such/folder", "/no/such/folder"])
def test_a_folder_that_is_not_there_is_named_without_asking_the_hub(name):
    with pytest.raises(ValueError, match=f"there is no folder {re.escape(name)}"):
        load_captioner(name)


@pytest.mark.parametrize("name", ["no-such-folder", "a/b"])
def test_a_folder_or_hub_id_that_is_not_there_is_named(name):
    with pytest.raises(
        ValueError,
        match=rf"can't load '{re.escape(name)}': it is no folder here, and the hub gave no such "
        r"model \(.*\); check the spelling, the network, or HF_HUB_OFFLINE",
    ):
        load_captioner(name)


@pytest.mark.parametrize(
    ("file", "hint"),
    [
        ("blip2ft.json", r"; it holds trained weights only: pass it as the adapter, or export"),
        ("adapter_config.json", r"; it holds trained weights only"),
        ("config.yaml", r"; it is a run: blip2ft export .* --out FOLDER makes a model of it"),
        ("readme.txt", "$"),
    ],
)
def test_a_folder_without_model_says_what_it_is(tmp_path, file, hint):
    (tmp_path / file).touch()
    with pytest.raises(
        ValueError, match=rf"has no config\.json, so it isn't a transformers model{hint}"
    ):
        load_captioner(tmp_path)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"of type 'bert', not 'blip-2'; start from one such as Salesforce/blip2"
    ):
        load_captioner(tmp_path)


def test_a_retrieval_checkpoint_is_refused(opt_folder, tmp_path):
    config = Blip2Config.from_pretrained(opt_folder)
    config.qformer_config.use_qformer_text_input = True
    Blip2ForImageTextRetrieval(config).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"is a retrieval checkpoint without a language model, so it can't capti"
    ):
        load_captioner(tmp_path)


def test_a_tokenizer_of_another_checkpoint_is_refused(opt_folder, tmp_path):
    folder = copied(opt_folder, tmp_path)
    edit_json(folder / "config.json", image_token_index=5)
    with pytest.raises(
        ValueError, match=r"<image> is token 5, the tokenizer says 307; the two don't belong toget"
    ):
        load_captioner(folder)


def test_weights_that_are_missing_are_named(opt_folder, tmp_path):
    folder = copied(opt_folder, tmp_path)
    state = load_file(folder / "model.safetensors")
    del state["query_tokens"], state["language_projection.bias"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ValueError,
        match=r"2 weights are missing in the checkpoint, such as language_projection\.bias, "
        r"query_tokens; it is incomplete or its config is another's",
    ):
        load_captioner(folder)


def test_weights_of_another_shape_are_named(opt_folder, tmp_path):
    folder = copied(opt_folder, tmp_path)
    state = load_file(folder / "model.safetensors")
    state["query_tokens"] = torch.zeros(1, 8, 24)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ValueError, match=r"1 weights are mismatched in the checkpoint, such as .*query_tokens"
    ):
        load_captioner(folder)


def test_a_folder_without_weights_is_named(opt_folder, tmp_path):
    folder = copied(opt_folder, tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        ValueError, match=r"can't load '.*model': .*no file named .*; download or export it again"
    ):
        load_captioner(folder)


def test_damaged_files_are_named(opt_folder, tmp_path):
    folder = copied(opt_folder, tmp_path)
    (folder / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(
        ValueError, match=r"can't load '.*model': its weights are damaged \(.*\); download or exp"
    ):
        load_captioner(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(
        ValueError, match=r"can't load '.*': .*config\.json.* not a valid JSON file; download or"
    ):
        load_captioner(folder)


def test_a_folder_without_tokenizer_is_named(opt_folder, tmp_path):
    folder = copied(opt_folder, tmp_path)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"can't load '.*model': Couldn't instantiate .*tokenizer"):
        load_captioner(folder)


class Code:
    """What runs a command where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_a_pickled_checkpoint_is_not_run(opt_folder, tmp_path):
    folder = copied(opt_folder, tmp_path)
    (folder / "model.safetensors").unlink()
    torch.save({"query_tokens": Code(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(
        ValueError,
        match=r"can't load '.*model': its weights are damaged, or a pickle with code in it, which "
        r"was not run; use a checkpoint with model\.safetensors",
    ):
        load_captioner(folder)
    assert not (tmp_path / "ran").exists()


def test_code_that_a_checkpoint_brings_along_is_not_run(opt_folder, tmp_path):
    folder = copied(opt_folder, tmp_path)
    mark = tmp_path / "ran"
    (folder / "own.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    edit_json(folder / "config.json", model_type="own", auto_map={"AutoConfig": "own.Config"})
    with pytest.raises(ValueError, match=r"can't load '.*model': .*contains custom code"):
        load_captioner(folder)
    assert not mark.exists()
