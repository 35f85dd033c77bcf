"""Loading a retriever: completed where heads are missing, refused where it is none."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, BertTokenizer, GPT2Config, GPT2LMHeadModel

from blip2ft.models.load import load_captioner, load_retriever


@pytest.fixture
def without_heads(retriever_folder, tmp_path):
    """As hub checkpoints are: temperature and head of ITG aren't there."""
    folder = shutil.copytree(retriever_folder, tmp_path / "hub")
    weights = load_file(folder / "model.safetensors")
    ours = ("temperature", "itg_head.")
    kept = {n: t for n, t in weights.items() if not n.startswith(ours)}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    del config["qformer_config"]["bos_token_id"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_saved_retriever_comes_back_whole(retriever_folder, caplog):
    model, processor = load_retriever(retriever_folder)
    assert not model.training
    assert processor.num_query_tokens is None
    assert dict(model.objectives) == {"itc": 1.0, "itm": 1.0, "itg": 1.0}
    assert not [r for r in caplog.records if r.name.startswith("blip2ft")]


def test_missing_heads_are_completed_and_said(without_heads, caplog):
    model, _ = load_retriever(without_heads)
    assert model.temperature.item() == pytest.approx(0.07)
    assert not model.itg_head.bias.any()
    assert model.itg_head.transform.weight.std().item() == pytest.approx(0.2, rel=0.2)
    assert model.config.qformer_config.bos_token_id == model.config.qformer_config.vocab_size - 1
    assert "has no ITG head; it starts from random weights" in caplog.text


def test_without_itg_no_head_is_missed(without_heads, caplog):
    load_retriever(without_heads, objectives={"itc": 1, "itm": 1})
    assert "ITG head" not in caplog.text


def bert(width=24, words=22):
    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=words,
        hidden_size=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
    )
    model = BertForMaskedLM(config)
    torch.nn.init.normal_(model.cls.predictions.bias)
    return model


def test_the_head_is_taken_from_a_bert_that_lacks_the_start_token(without_heads, tmp_path):
    source = bert()
    source.save_pretrained(tmp_path / "bert")
    model, _ = load_retriever(without_heads, itg_head=tmp_path / "bert")
    predictions = source.cls.predictions
    assert torch.equal(model.itg_head.transform.weight, predictions.transform.dense.weight)
    assert torch.equal(model.itg_head.norm.weight, predictions.transform.LayerNorm.weight)
    assert len(model.itg_head.bias) == 23
    assert torch.equal(model.itg_head.bias[:22], predictions.bias)
    assert model.itg_head.bias[22] == 0


def test_the_head_is_taken_from_another_retriever(without_heads, retriever_folder):
    model, _ = load_retriever(without_heads, itg_head=retriever_folder)
    other, _ = load_retriever(retriever_folder)
    assert torch.equal(model.itg_head.transform.weight, other.itg_head.transform.weight)


def test_a_head_that_does_not_fit_is_refused(without_heads, tmp_path):
    bert(width=16).save_pretrained(tmp_path / "narrow")
    with pytest.raises(ValueError, match=r"doesn't fit: transform.weight is \(16, 16\), the model"):
        load_retriever(without_heads, itg_head=tmp_path / "narrow")
    bert(words=60).save_pretrained(tmp_path / "wide")
    with pytest.raises(ValueError, match=r"doesn't fit: bias is \(60,\), the model needs \(23,\)"):
        load_retriever(without_heads, itg_head=tmp_path / "wide")


def test_a_source_without_a_head_is_refused(without_heads, tmp_path):
    bert().bert.save_pretrained(tmp_path / "bare")
    for source in (tmp_path / "bare", without_heads):
        with pytest.raises(ValueError, match="has no language-modelling head, so there is none"):
            load_retriever(without_heads, itg_head=source)


def test_a_head_of_no_bert_is_refused(without_heads, tmp_path):
    GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=9)).save_pretrained(
        tmp_path / "gpt"
    )
    with pytest.raises(ValueError, match="'gpt2', neither a retrieval checkpoint nor a BERT"):
        load_retriever(without_heads, itg_head=tmp_path / "gpt")


def test_another_image_size_is_taken(retriever_folder):
    model, processor = load_retriever(retriever_folder, image_size=42)
    assert model.vision_model.embeddings.position_embedding.shape[1] == 10
    assert processor.image_processor.size == {"height": 42, "width": 42}


def test_a_captioner_and_a_retriever_are_told_apart(opt_folder, retriever_folder):
    with pytest.raises(ValueError, match="generates text and compares none; for retrieval start"):
        load_retriever(opt_folder)
    with pytest.raises(ValueError, match="retrieval checkpoint without a language model"):
        load_captioner(retriever_folder)


def test_a_weight_that_is_missing_is_named(retriever_folder, tmp_path):
    folder = shutil.copytree(retriever_folder, tmp_path / "cut")
    weights = load_file(folder / "model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights are missing.*text_projection.weight"):
        load_retriever(folder)


def test_a_tokenizer_without_start_token_serves_without_itg_only(without_heads):
    tokenizer = BertTokenizer.from_pretrained(without_heads)
    vocabulary = {w: i for w, i in tokenizer.get_vocab().items() if w != "[DEC]"}
    for path in without_heads.glob("tokenizer*"):
        path.unlink()
    BertTokenizer(vocab=vocabulary).save_pretrained(without_heads)
    with pytest.raises(ValueError, match=r"no start token for ITG \(\[DEC\]\) among the 23 tokens"):
        load_retriever(without_heads)
    load_retriever(without_heads, objectives={"itc": 1})


@pytest.mark.parametrize(
    ("objectives", "message"),
    [
        ({"itx": 1}, "objectives have 'itx' with weight 1: allowed are itc, itm, itg"),
        ({"itc": -1}, "objectives have 'itc' with weight -1"),
        ({"itc": 0}, "no objective has a weight above 0"),
        ({}, "no objective has a weight above 0"),
    ],
)
def test_bad_objectives_are_refused(retriever_folder, objectives, message):
    with pytest.raises(ValueError, match=message):
        load_retriever(retriever_folder, objectives=objectives)
