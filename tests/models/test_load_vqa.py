"""The graft: BLIP-2 with a Q-Former that reads, in a stock class."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    OPTConfig,
    T5Config,
)

from blip2ft.data.batches import Sample, text_layout
from blip2ft.models.load import load_captioner
from blip2ft.models.parts import count_parameters, part_of
from blip2ft.models.vqa import instruct_config, load_vqa
from blip2ft.tasks.caption import generate

PROMPTS = ["the photo of a cat", "a bird on the left of the car and a red apple"]


def batch_of(model, processor):
    layout = text_layout(model, processor, 8)
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    samples = [Sample(image, p, "a dog") for image, p in zip(pixels, PROMPTS, strict=True)]
    batch = layout.collate(samples)
    batch.pop("labels")
    return batch


@torch.no_grad()
def test_with_the_question_masked_out_it_is_blip2(model_folder, retriever_folder):
    model, processor = load_vqa(model_folder, stage1=retriever_folder)
    plain, plain_processor = load_captioner(model_folder)
    batch = batch_of(model, processor)
    seen = model(**batch).logits
    batch["qformer_attention_mask"].zero_()
    masked = model(**batch).logits
    expected = plain(**batch_of(plain, plain_processor)).logits
    torch.testing.assert_close(masked, expected, atol=1e-5, rtol=1e-5)
    assert (seen - masked).abs().max() > 1e-3


@torch.no_grad()
def test_the_question_reaches_the_queries(opt_folder, retriever_folder):
    model, processor = load_vqa(opt_folder, stage1=retriever_folder)
    batch = batch_of(model, processor)
    batch["pixel_values"][1] = batch["pixel_values"][0]
    features = model.get_image_features(
        batch["pixel_values"], batch["qformer_input_ids"], batch["qformer_attention_mask"]
    ).pooler_output
    assert (features[0] - features[1]).abs().max() > 1e-3


def test_padding_of_the_question_changes_nothing(opt_folder, retriever_folder):
    model, processor = load_vqa(opt_folder, stage1=retriever_folder)
    layout = text_layout(model, processor, 8)
    pixels = torch.randn(3, 28, 28)
    samples = [Sample(pixels, prompt) for prompt in PROMPTS]
    options = {"num_beams": 2, "max_new_tokens": 4}
    together = generate(model, layout, samples, **options)
    assert together == [generate(model, layout, [s], **options)[0] for s in samples]


def test_the_text_branch_is_that_of_stage_1(opt_folder, retriever_folder):
    from blip2ft.models.load import load_retriever

    model, _ = load_vqa(opt_folder, stage1=retriever_folder)
    retriever, _ = load_retriever(retriever_folder)
    own, theirs = model.qformer, retriever
    words = own.embeddings.word_embeddings.weight
    assert torch.equal(words, theirs.embeddings.word_embeddings.weight)
    for ours, layer in zip(own.encoder.layer, theirs.qformer.encoder.layer, strict=True):
        assert torch.equal(ours.intermediate.dense.weight, layer.intermediate.dense.weight)
        assert torch.equal(ours.output.LayerNorm.weight, layer.output.LayerNorm.weight)
    plain, _ = load_captioner(opt_folder)
    assert torch.equal(
        own.encoder.layer[0].attention.attention.query.weight,
        plain.qformer.encoder.layer[0].attention.attention.query.weight,
    )
    assert torch.equal(own.embeddings.layernorm.weight, plain.qformer.layernorm.weight)


def bert_folder(folder, **changes):
    size = {"hidden_size": 24, "num_hidden_layers": 2, "intermediate_size": 32} | changes
    torch.manual_seed(4)
    BertModel(BertConfig(vocab_size=8, num_attention_heads=2, **size)).save_pretrained(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat", "photo", "the"]
    BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)
    return folder


def test_the_text_branch_may_come_from_a_bert(opt_folder, tmp_path):
    folder = bert_folder(tmp_path / "bert")
    model, processor = load_vqa(opt_folder, stage1=folder)
    source = BertModel.from_pretrained(folder)
    assert torch.equal(
        model.qformer.encoder.layer[1].output.dense.weight,
        source.encoder.layer[1].output.dense.weight,
    )
    assert processor.qformer_tokenizer("the cat")["input_ids"] == [2, 7, 5, 3]


@torch.no_grad()
def test_the_text_branch_of_a_bert_embeds_as_that_bert(opt_folder, tmp_path):
    folder = bert_folder(tmp_path / "bert")
    model, _ = load_vqa(opt_folder, stage1=folder)
    own, theirs = model.qformer.embeddings, BertModel.from_pretrained(folder).embeddings
    own.layernorm.load_state_dict(theirs.LayerNorm.state_dict())
    ids = torch.tensor([[2, 7, 5, 3]])
    torch.testing.assert_close(own(input_ids=ids), theirs(ids))


def test_a_stage_1_that_lacks_weights_of_the_text_branch_is_refused(
    opt_folder, retriever_folder, tmp_path
):
    folder = shutil.copytree(retriever_folder, tmp_path / "cut")
    weights = load_file(folder / "model.safetensors")
    del weights["qformer.encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights are missing .*layer.1.output.dense.weight"):
        load_vqa(opt_folder, stage1=folder)


def test_saved_it_is_stock_and_loads_again_as_it_is(opt_folder, retriever_folder, tmp_path):
    model, processor = load_vqa(opt_folder, stage1=retriever_folder)
    with torch.no_grad():  # all as if trained: what isn't saved must not come back by chance
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    stock = InstructBlipForConditionalGeneration.from_pretrained(tmp_path).eval()
    again, again_processor = load_vqa(tmp_path)
    stock_processor = InstructBlipProcessor.from_pretrained(tmp_path)
    batch = batch_of(model, processor)
    with torch.no_grad():
        expected = model(**batch).logits
        assert torch.equal(stock(**batch).logits, expected)
        assert torch.equal(again(**batch_of(again, again_processor)).logits, expected)
    text = stock_processor(text=PROMPTS[:1], return_tensors="pt")
    width = text["qformer_input_ids"].shape[1]
    assert torch.equal(text["qformer_input_ids"][0], batch["qformer_input_ids"][0, :width])


def test_without_the_question_in_the_qformer_it_is_blip2s_own_class(opt_folder):
    model, _ = load_vqa(opt_folder, question_in_qformer=False)
    assert isinstance(model, Blip2ForConditionalGeneration)


def test_every_parameter_is_of_a_part(opt_folder, retriever_folder):
    model, _ = load_vqa(opt_folder, stage1=retriever_folder, image_size=42)
    parts = {part_of(name) for name, _ in model.named_parameters()}
    assert parts == {"vision", "qformer", "projection", "language"}
    assert model.vision_model.embeddings.position_embedding.shape[1] == 10


@pytest.mark.parametrize("family", ["opt", "t5"])
def test_full_size(family):
    """The shapes of OPT-2.7B and FlanT5-XL; Q-Former and text branch are BERT-base in size."""
    opt = OPTConfig(
        hidden_size=2560,
        word_embed_proj_dim=2560,
        ffn_dim=10240,
        num_hidden_layers=32,
        num_attention_heads=32,
        vocab_size=50304,
    )
    t5 = T5Config(
        d_model=2048,
        d_ff=5120,
        num_layers=24,
        num_heads=32,
        d_kv=64,
        feed_forward_proj="gated-gelu",
    )
    text = opt if family == "opt" else t5
    config = instruct_config(Blip2Config(text_config=text), 30523, 512)
    with torch.device("meta"):
        model = InstructBlipForConditionalGeneration(config)
    counts = {part: total for part, (_, total) in count_parameters(model).items()}
    assert counts["vision"] == 985_949_440
    # stage 2 has 105.2 M, and 56.7 M of text feed-forward, 23.4 M of words, 0.4 M of positions
    assert counts["qformer"] == 185_687_552
    assert model.language_projection.weight.shape == (text.hidden_size, 768)


def test_what_cant_be_grafted_is_refused(opt_folder, retriever_folder, tmp_path):
    with pytest.raises(ValueError, match="has no text branch in its Q-Former; pass stage1"):
        load_vqa(opt_folder)
    with pytest.raises(ValueError, match="retrieval checkpoint without a language model"):
        load_vqa(retriever_folder, stage1=retriever_folder)
    with pytest.raises(ValueError, match="neither a retrieval checkpoint nor a BERT"):
        load_vqa(opt_folder, stage1=opt_folder)
    shallow = bert_folder(tmp_path / "shallow", num_hidden_layers=1)
    with pytest.raises(ValueError, match="its num_hidden_layers is 1, the Q-Former's is 2"):
        load_vqa(opt_folder, stage1=shallow)
    narrow = bert_folder(tmp_path / "narrow", hidden_size=16)
    with pytest.raises(ValueError, match="its hidden_size is 16, the Q-Former's is 24"):
        load_vqa(opt_folder, stage1=narrow)


def test_an_instructblip_is_taken_as_it_is_or_not_at_all(opt_folder, retriever_folder, tmp_path):
    model, processor = load_vqa(opt_folder, stage1=retriever_folder)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="text branch of its own; leave stage1 out"):
        load_vqa(tmp_path, stage1=retriever_folder)
    with pytest.raises(ValueError, match="whose Q-Former reads the question; set"):
        load_vqa(tmp_path, question_in_qformer=False)


def test_a_foreign_checkpoint_is_refused(opt_folder, tmp_path):
    folder = shutil.copytree(opt_folder, tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "blip"}))
    with pytest.raises(ValueError, match="of type 'blip', not 'blip-2' or 'instructblip'"):
        load_vqa(folder)


def test_a_question_longer_than_the_positions_is_refused(opt_folder, retriever_folder):
    model, processor = load_vqa(opt_folder, stage1=retriever_folder)
    layout = text_layout(model, processor, 8)
    with pytest.raises(ValueError, match="52 tokens don't fit the Q-Former's 32 text positions"):
        layout.collate_prompts([Sample(torch.zeros(3, 28, 28), "cat " * 50)])


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_the_language_model_may_be_quantised(wide_folder, retriever_folder, kind):
    pytest.importorskip("bitsandbytes")
    model, processor = load_vqa(
        wide_folder, stage1=retriever_folder, quantize={"language": kind}, image_size=42
    )
    quantised = {part_of(name) for name, p in model.named_parameters() if not p.is_floating_point()}
    assert quantised == {"language"}
    layout = text_layout(model, processor, 8)
    pixels = torch.randn(3, 42, 42)
    (text,) = generate(model, layout, [Sample(pixels, PROMPTS[0])], num_beams=1, max_new_tokens=3)
    assert isinstance(text, str)
