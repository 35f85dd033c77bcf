"""Starts of the pre-training stages: each part is what it was, the rest is new."""

import shutil

import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    BertTokenizer,
    Blip2ForConditionalGeneration,
    OPTForCausalLM,
    T5ForConditionalGeneration,
)

from blip2ft.models.assemble import assemble
from blip2ft.models.load import load_captioner, load_retriever
from blip2ft.models.retriever import Retriever


@pytest.fixture(scope="module")
def bert_folder(retriever_folder, tmp_path_factory):
    """A BERT with the words of the tiny retriever, but for [DEC]."""
    folder = tmp_path_factory.mktemp("bert")
    vocab = AutoTokenizer.from_pretrained(retriever_folder).get_vocab()
    del vocab["[DEC]"]
    BertTokenizer(vocab=vocab).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocab),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertForMaskedLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def language_folder(opt_folder, tmp_path_factory):
    """The OPT of the tiny BLIP-2 alone."""
    folder = tmp_path_factory.mktemp("opt-alone")
    Blip2ForConditionalGeneration.from_pretrained(opt_folder).language_model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(opt_folder).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def stage1_folder(opt_folder, bert_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stage1") / "start"
    assemble(folder, vision=opt_folder, bert=bert_folder, num_query_tokens=3, feature_size=16)
    return folder


def texts(processor):
    return processor.tokenizer(
        ["a red apple", "a photo of the cat and dog"], padding=True, return_tensors="pt"
    )


def test_the_text_branch_of_stage_1_is_the_bert(stage1_folder, bert_folder):
    retriever, processor = load_retriever(stage1_folder)
    read = texts(processor)
    bert = BertModel.from_pretrained(bert_folder, add_pooling_layer=False).eval()
    with torch.no_grad():
        theirs = bert(**read).last_hidden_state[:, 0]
        expected = torch.nn.functional.normalize(retriever.text_projection(theirs), dim=-1)
        ours = retriever.encode_texts(read["input_ids"], read["attention_mask"])
    assert torch.allclose(ours, expected, atol=1e-6)


def test_the_head_of_itg_is_that_of_the_bert(stage1_folder, bert_folder):
    retriever, _ = load_retriever(stage1_folder)
    bert = BertForMaskedLM.from_pretrained(bert_folder)
    hidden = torch.randn(2, 5, 32)
    known = bert.config.vocab_size
    words = retriever.embeddings.word_embeddings.weight
    with torch.no_grad():
        assert torch.allclose(
            retriever.itg_head(hidden, words)[..., :known], bert.cls(hidden), atol=1e-5
        )


def test_stage_1_starts_as_the_paper_says(stage1_folder, opt_folder, bert_folder):
    retriever, processor = load_retriever(stage1_folder)
    for layer in retriever.qformer.encoder.layer:
        for part in ("intermediate", "output"):
            text, queries = getattr(layer, part), getattr(layer, f"{part}_query")
            for name, tensor in text.state_dict().items():
                assert torch.equal(tensor, queries.state_dict()[name])
    assert retriever.query_tokens.std().item() == pytest.approx(0.02, rel=0.3)
    assert retriever.temperature.item() == pytest.approx(0.07)
    vision = Blip2ForConditionalGeneration.from_pretrained(opt_folder).vision_model.state_dict()
    for name, tensor in retriever.vision_model.state_dict().items():
        assert torch.equal(tensor, vision[name])
    added = processor.tokenizer.convert_tokens_to_ids("[DEC]")
    assert retriever.config.qformer_config.bos_token_id == added
    row = retriever.embeddings.word_embeddings.weight[added]
    assert 0 < row.std() < 0.05
    crossed = [layer.has_cross_attention for layer in retriever.qformer.encoder.layer]
    assert crossed == [True, False]


def test_the_same_seed_gives_the_same_start(stage1_folder, opt_folder, bert_folder, tmp_path):
    for seed in (0, 1):
        assemble(
            tmp_path / str(seed),
            vision=opt_folder,
            bert=bert_folder,
            num_query_tokens=3,
            feature_size=16,
            seed=seed,
        )
    first, same, other = (
        Retriever.from_pretrained(f).state_dict()
        for f in (stage1_folder, tmp_path / "0", tmp_path / "1")
    )
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["query_tokens"], other["query_tokens"])


def test_stage_2_takes_the_queries_of_stage_1_and_drops_its_text_branch(
    stage1_folder, language_folder, tmp_path
):
    done = assemble(tmp_path / "start", stage1=stage1_folder, language=language_folder)
    assert done.task == "caption"
    assert set(done.new) == {"language_projection.weight", "language_projection.bias"}
    captioner, processor = load_captioner(tmp_path / "start")
    retriever, _ = load_retriever(stage1_folder)
    pixels = torch.randn(2, 3, *[captioner.config.vision_config.image_size] * 2)
    with torch.no_grad():
        seen = retriever.vision_model(pixels).last_hidden_state
        assert torch.equal(captioner.vision_model(pixels).last_hidden_state, seen)
        queries = captioner.query_tokens.expand(2, -1, -1)
        asked = {"query_embeds": queries, "encoder_hidden_states": seen}
        ours = captioner.qformer(**asked).last_hidden_state
        theirs = retriever.qformer(**asked, query_length=3).last_hidden_state
    assert torch.allclose(ours, theirs, atol=1e-6)
    language = OPTForCausalLM.from_pretrained(language_folder).state_dict()
    for name, tensor in captioner.language_model.state_dict().items():
        assert torch.equal(tensor, language[name])
    assert captioner.config.text_config.eos_token_id == processor.tokenizer("\n")["input_ids"][-1]


def test_stage_2_without_stage_1_starts_from_the_bert(t5_folder, opt_folder, bert_folder, tmp_path):
    language = tmp_path / "t5"
    whole = Blip2ForConditionalGeneration.from_pretrained(t5_folder)
    assert isinstance(whole.language_model, T5ForConditionalGeneration)
    whole.language_model.save_pretrained(language)
    AutoTokenizer.from_pretrained(t5_folder).save_pretrained(language)
    done = assemble(
        tmp_path / "start",
        vision=opt_folder,
        bert=bert_folder,
        language=language,
        num_query_tokens=3,
    )
    assert any("crossattention" in name for name in done.new)
    captioner, _ = load_captioner(tmp_path / "start")
    bert = BertModel.from_pretrained(bert_folder)
    layer = captioner.qformer.encoder.layer[1]
    assert torch.equal(
        layer.intermediate_query.dense.weight, bert.encoder.layer[1].intermediate.dense.weight
    )
    assert not captioner.config.use_decoder_only_language_model


def test_a_bert_without_a_head_leaves_that_of_itg_to_chance(
    opt_folder, bert_folder, tmp_path, caplog
):
    bare = tmp_path / "bare"
    BertModel.from_pretrained(bert_folder).save_pretrained(bare)
    AutoTokenizer.from_pretrained(bert_folder).save_pretrained(bare)
    done = assemble(tmp_path / "start", vision=opt_folder, bert=bare, num_query_tokens=3)
    assert "no language-modelling head" in caplog.text
    assert "itg_head.transform.weight" in done.new
    retriever, _ = load_retriever(tmp_path / "start")
    assert retriever.itg_head.bias.abs().max() == 0


def test_parts_of_the_wrong_kind_are_refused(
    opt_folder, bert_folder, language_folder, stage1_folder, photo_folder, tmp_path
):
    out = tmp_path / "out"
    both = {"vision": opt_folder, "bert": bert_folder}
    for wrong, message in (
        ({"vision": bert_folder, "bert": bert_folder}, "'bert', which has no image encoder"),
        ({"vision": opt_folder, "bert": language_folder}, "it is a 'opt', and a Q-Former starts"),
        (both | {"language": bert_folder}, "BertForMaskedLM, and a model that generates text"),
        (both | {"language": opt_folder}, "and a model that generates text from text is needed"),
        ({"vision": opt_folder}, "give vision and bert for a new Q-Former, or stage1"),
        (both | {"stage1": stage1_folder}, "give vision and bert for a new Q-Former, or stage1"),
        ({"stage1": stage1_folder}, "is a retriever already; give the language"),
        ({"stage1": opt_folder, "language": language_folder}, "generates text and compares none"),
        (both | {"num_query_tokens": 0}, "num_query_tokens 0, .* must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            assemble(out, **wrong)
        assert not out.exists()
    with pytest.raises(ValueError, match="in use and is not overwritten"):
        assemble(photo_folder, **both)


def test_a_vocabulary_of_another_model_is_refused(
    opt_folder, bert_folder, language_folder, tmp_path
):
    for source, other in ((bert_folder, language_folder), (language_folder, bert_folder)):
        mixed = tmp_path / source.name
        shutil.copytree(source, mixed)
        for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
            (mixed / name).unlink(missing_ok=True)
        AutoTokenizer.from_pretrained(other).save_pretrained(mixed)
        parts = {"vision": opt_folder, "bert": bert_folder, "language": language_folder}
        parts["bert" if source == bert_folder else "language"] = mixed
        with pytest.raises(ValueError, match="no tokenizer, or another model's: it knows"):
            assemble(tmp_path / "out", **parts, num_query_tokens=3)


def test_a_damaged_bert_is_refused(opt_folder, bert_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(bert_folder, broken)
    tensors = load_file(broken / "model.safetensors")
    tensors = {n: t for n, t in tensors.items() if "layer.1.intermediate" not in n}
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ValueError, match=r"lacks 2 weights of a BERT, such as bert.encoder.layer.1"
    ):
        assemble(tmp_path / "out", vision=opt_folder, bert=broken)


def test_the_command_assembles_and_says_what_to_run_next(
    opt_folder, bert_folder, language_folder, tmp_path, capsys
):
    from blip2ft.cli import main

    out = tmp_path / "start"
    words = ["assemble", "--vision", str(opt_folder), "--bert", str(bert_folder)]
    words += ["--queries", "3", "--feature-size", "8", "--out"]
    with pytest.raises(SystemExit, match="0"):
        main([*words, str(out)])
    told = capsys.readouterr().out
    assert "vision" in told
    assert f"recipes/retrieval.py --model.name {out}" in told
    with pytest.raises(SystemExit, match="0"):
        main([*words, str(tmp_path / "two"), "--language", str(language_folder)])
    assert "recipes/caption.py" in capsys.readouterr().out
    for wrong in (
        [*words, str(out)],  # in use
        ["assemble", "--bert", "nowhere/at/all", "--vision", "x", "--out", str(tmp_path / "y")],
        [*words[:-1], "--queries", "0", "--out", str(tmp_path / "z")],
    ):
        with pytest.raises(SystemExit, match="2"):
            main(wrong)
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert len(error.splitlines()) == 1
