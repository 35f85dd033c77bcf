"""Every parameter is in one part, and each part trains as its mode says."""

import copy

import pytest
import torch
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    OPTConfig,
    PreTrainedModel,
)
from transformers.models.opt.modeling_opt import OPTAttention

from blip2ft.data.batches import Sample, text_layout
from blip2ft.models.adapters import attach_lora
from blip2ft.models.load import load_captioner
from blip2ft.models.parts import (
    PARTS,
    check_parts,
    checkpoint_gradients,
    count_parameters,
    modules_of,
    parameters_of,
    part_of,
    parts_table,
    set_train_mode,
    set_trainable,
)
from blip2ft.tasks.caption import caption_loss, generate

CAPTIONING = {"vision": "full", "qformer": "full", "projection": "full", "language": "frozen"}

VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
QFORMER = {
    "vocab_size": 20,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "max_position_embeddings": 16,
}


def instruct_blip() -> InstructBlipForConditionalGeneration:
    text = OPTConfig(
        vocab_size=20,
        hidden_size=16,
        word_embed_proj_dim=16,
        ffn_dim=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    config = InstructBlipConfig(
        vision_config=VISION, qformer_config=QFORMER, text_config=text, num_query_tokens=2
    )
    return InstructBlipForConditionalGeneration(config)


def retriever() -> Blip2ForImageTextRetrieval:
    config = Blip2Config(
        vision_config=VISION,
        qformer_config=QFORMER | {"use_qformer_text_input": True},
        num_query_tokens=2,
        image_text_hidden_size=4,
    )
    return Blip2ForImageTextRetrieval(config)


@pytest.fixture(params=["opt", "t5", "instruct", "retrieval"])
def any_model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """Each class that a task trains, with both language families."""
    if request.param == "instruct":
        return instruct_blip()
    if request.param == "retrieval":
        return retriever()
    folder = request.getfixturevalue(f"{request.param}_folder")
    return Blip2ForConditionalGeneration.from_pretrained(folder)


@pytest.fixture
def opt(opt_folder) -> Blip2ForConditionalGeneration:
    return Blip2ForConditionalGeneration.from_pretrained(opt_folder)


def batch_for(folder, model) -> dict[str, torch.Tensor]:
    layout = text_layout(model, load_captioner(folder)[1], 16)
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    captions = ("a red apple", "a cat and a dog on the left")
    return layout.collate(
        [Sample(p, "a photo of", c) for p, c in zip(pixels, captions, strict=True)]
    )


def gradients(model, batch) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(0)  # parts that train drop out the same each time
    caption_loss(model, batch).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# What belongs where.


def test_every_parameter_is_in_exactly_one_part(any_model):
    names = [name for part in PARTS for name, _ in parameters_of(any_model, part)]
    assert len(names) == len(set(names))
    assert set(names) == {name for name, _ in any_model.named_parameters()}


def test_no_attribute_is_in_two_parts():
    attributes = [name for names in PARTS.values() for name in names]
    assert len(attributes) == len(set(attributes))


def test_query_tokens_belong_to_the_qformer(any_model):
    assert "query_tokens" in dict(parameters_of(any_model, "qformer"))


def test_retrieval_heads_are_the_projection():
    names = {name.split(".")[0] for name, _ in parameters_of(retriever(), "projection")}
    assert names == {"vision_projection", "text_projection", "itm_head"}


def test_modules_of_a_part_leave_bare_parameters_out(opt):
    assert modules_of(opt, "qformer") == [opt.qformer]
    assert modules_of(retriever(), "language") == []


@pytest.mark.parametrize("name", ["new_head.weight", "vision", "model.vision_model.x"])
def test_a_name_of_no_part_is_refused(name):
    with pytest.raises(ValueError, match=f"'{name}' belongs to none of the parts vision, qformer"):
        part_of(name)


def test_a_new_head_is_never_left_out_silently(opt):
    opt.new_head = torch.nn.Linear(2, 2)
    for function in (count_parameters, parts_table):
        with pytest.raises(ValueError, match=r"'new_head.weight' belongs to none of the parts"):
            function(opt)
    with pytest.raises(ValueError, match=r"'new_head.weight' belongs to none of the parts"):
        set_trainable(opt, CAPTIONING)


# The table is checked.


@pytest.mark.parametrize(
    ("parts", "quantize", "message"),
    [
        ({"visoin": "full"}, (), r"unknown part 'visoin': allowed are .*did you mean 'vision'\?"),
        ({"zzz": "full"}, (), r"unknown part 'zzz': allowed are vision, .*language$"),
        ({"vision": "half"}, (), r"part 'vision' has mode 'half': allowed are frozen, lora, full"),
        ({"vision": "frozen"}, (), r"every part is frozen, so nothing would train; set one"),
        ({}, (), r"every part is frozen"),
        (CAPTIONING, ("langauge",), r"quantize names an unknown part 'langauge': .*'language'\?$"),
        (CAPTIONING, ("qformer",), r"quantize names 'qformer', but only language and vision"),
        (CAPTIONING, ("projection",), r"quantize names 'projection', but only language and vis"),
        (CAPTIONING, ("vision",), r"part 'vision' is quantised and set to full.*parts\.vision to"),
    ],
)
def test_a_table_that_cannot_train_is_refused(parts, quantize, message):
    with pytest.raises(ValueError, match=message):
        check_parts(parts, quantize)


def test_a_sound_table_passes():
    check_parts(CAPTIONING)
    check_parts(CAPTIONING | {"vision": "lora", "language": "lora"}, ["vision", "language"])
    check_parts({"projection": "full"}, {"language": "nf4"})


# Freezing.


def test_modes_decide_what_trains(any_model):
    parts = {"vision": "frozen", "qformer": "full", "projection": "full", "language": "frozen"}
    set_trainable(any_model, parts)
    for name, parameter in any_model.named_parameters():
        assert parameter.requires_grad == (parts[part_of(name)] == "full"), name


def test_a_part_that_is_not_named_is_frozen(opt):
    set_trainable(opt, {"projection": "full"})
    trains = {name for name, p in opt.named_parameters() if p.requires_grad}
    assert trains == {"language_projection.weight", "language_projection.bias"}


def test_a_part_that_the_model_has_not_cannot_train():
    message = r"parts\.language is full, but a Blip2ForImageTextRetrieval has no such part; set it"
    with pytest.raises(ValueError, match=message):
        set_trainable(retriever(), {"projection": "full", "language": "full"})


def test_a_later_table_replaces_the_earlier_one(opt):
    set_trainable(opt, {"vision": "full"})
    set_trainable(opt, {"projection": "full"})
    assert count_parameters(opt)["vision"][0] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_trained_weights_are_fp32_and_frozen_ones_as_asked(any_model, dtype):
    any_model.to(torch.bfloat16)
    set_trainable(any_model, CAPTIONING, dtype)
    for name, parameter in any_model.named_parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else dtype), name


def test_tied_weights_stay_tied(opt):
    set_trainable(opt, CAPTIONING, torch.bfloat16)
    language = opt.language_model
    assert language.lm_head.weight is language.get_input_embeddings().weight


def test_lora_trains_alone_and_in_fp32(opt):
    parts = {"language": "lora", "vision": "frozen", "qformer": "frozen", "projection": "full"}
    attach_lora(opt, parts)
    set_trainable(opt, parts, torch.bfloat16)
    for name, parameter in opt.named_parameters():
        trains = ".lora_" in name or part_of(name) == "projection"
        assert parameter.requires_grad == trains, name
        assert parameter.dtype == (torch.float32 if trains else torch.bfloat16), name


def test_quantised_weights_cannot_train_in_full(opt):
    weight = opt.language_model.model.decoder.layers[0].fc1
    packed = torch.zeros(4, dtype=torch.uint8)
    weight.weight = torch.nn.Parameter(packed, requires_grad=False)
    set_trainable(opt, CAPTIONING)
    assert weight.weight.dtype == torch.uint8
    with pytest.raises(ValueError, match=r"fc1\.weight is quantised and can't be trained in full"):
        set_trainable(opt, {"language": "full"})


def test_mixed_weights_train_under_autocast(model_folder):
    model = Blip2ForConditionalGeneration.from_pretrained(model_folder)
    batch = batch_for(model_folder, model)
    set_trainable(model, {p: "full" for p in PARTS})
    exact = gradients(model.eval(), batch)
    set_trainable(model, CAPTIONING, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = gradients(model, batch)
    assert set(mixed) == {name for name in exact if part_of(name) != "language"}
    for name, gradient in mixed.items():
        assert gradient.dtype == torch.float32, name
        assert gradient.isfinite().all(), name
    for name in ("query_tokens", "language_projection.weight"):
        pair = mixed[name].flatten(), exact[name].flatten()
        assert torch.nn.functional.cosine_similarity(*pair, dim=0) > 0.98, name


# Train mode.


def test_frozen_parts_are_in_eval_mode_and_trained_ones_are_not(any_model):
    set_trainable(any_model, {"qformer": "full", "projection": "full"})
    set_train_mode(any_model)
    assert not any(module.training for module in any_model.vision_model.modules())
    assert all(module.training for module in any_model.qformer.modules())
    language = getattr(any_model, "language_model", None)
    assert language is None or not any(module.training for module in language.modules())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_frozen_language_model_drops_nothing_out(opt_folder, checkpointing):
    model = noisy_language(opt_folder)
    batch = batch_for(opt_folder, model)
    if checkpointing:
        checkpoint_gradients(model, ["language"])
    set_trainable(model, {"projection": "full"})
    set_train_mode(model)
    with torch.no_grad():
        losses = {float(caption_loss(model, batch)) for _ in range(3)}
        expected = float(caption_loss(model.eval(), batch))
    assert losses == {expected}


def test_a_trained_language_model_does_drop_out(opt_folder):
    model = noisy_language(opt_folder)
    batch = batch_for(opt_folder, model)
    set_trainable(model, {"language": "full"})
    set_train_mode(model)
    with torch.no_grad():
        assert len({float(caption_loss(model, batch)) for _ in range(3)}) == 3


def noisy_language(folder) -> Blip2ForConditionalGeneration:
    """A model whose language model drops out half of all it can."""
    config = Blip2Config.from_pretrained(folder)
    config.text_config.dropout = 0.5
    config.text_config.attention_dropout = 0.5
    config.text_config.layerdrop = 0.5
    return Blip2ForConditionalGeneration.from_pretrained(folder, config=config)


def test_checkpointed_gradients_equal_plain_ones(model_folder):
    model = Blip2ForConditionalGeneration.from_pretrained(model_folder)
    batch = batch_for(model_folder, model)
    set_trainable(model, CAPTIONING)
    set_train_mode(model)
    plain = gradients(model, batch)
    checkpointed = copy.deepcopy(model)
    checkpoint_gradients(checkpointed, ["vision", "qformer", "language"])
    set_train_mode(checkpointed)
    again = gradients(checkpointed, batch)
    assert set(again) == set(plain)
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_a_frozen_language_model_is_recomputed_in_the_backward_pass(opt_folder, monkeypatch):
    calls = []
    forward = OPTAttention.forward

    def counted(self, *args, **kwargs):
        calls.append(self)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(OPTAttention, "forward", counted)
    model = Blip2ForConditionalGeneration.from_pretrained(opt_folder)
    batch = batch_for(opt_folder, model)
    set_trainable(model, CAPTIONING)
    for layers, parts in ((2, []), (4, ["language"])):
        checkpoint_gradients(model, parts)
        set_train_mode(model)
        calls.clear()
        gradients(model, batch)
        assert len(calls) == layers


def test_evaluation_after_training_is_without_checkpoints(opt):
    checkpoint_gradients(opt, ["language"])
    set_trainable(opt, CAPTIONING)
    set_train_mode(opt)
    opt.eval()
    assert not any(module.training for module in opt.modules())


@torch.inference_mode()
def test_a_checkpointed_model_still_generates(model_folder):
    model, processor = load_captioner(model_folder)
    samples = [Sample(torch.ones(3, 28, 28), "a photo of")]
    layout = text_layout(model, processor, 16)
    expected = generate(model, layout, samples, max_new_tokens=4)
    checkpoint_gradients(model, ["vision", "qformer", "language"])
    assert generate(model, layout, samples, max_new_tokens=4) == expected


def test_a_part_that_cannot_be_checkpointed_is_refused(opt):
    with pytest.raises(
        ValueError, match=r"names 'projection': allowed are vision, qformer, language"
    ):
        checkpoint_gradients(opt, ["projection"])


# Counting.


def test_counts_add_up_to_the_model(any_model):
    set_trainable(any_model, {"qformer": "full", "projection": "full"})
    counts = count_parameters(any_model)
    assert sum(total for _, total in counts.values()) == any_model.num_parameters()
    for part in PARTS:
        sizes = sum(p.numel() for _, p in parameters_of(any_model, part))
        assert counts[part] == (sizes if part in ("qformer", "projection") else 0, sizes)


def test_packed_weights_count_in_full(opt):
    before = count_parameters(opt)["language"][1]
    layer = opt.language_model.model.decoder.layers[0].fc1
    packed = torch.nn.Parameter(torch.zeros(4, dtype=torch.uint8), requires_grad=False)
    packed.quant_state = type("State", (), {"shape": layer.weight.shape})()
    layer.weight = packed
    assert count_parameters(opt)["language"][1] == before


def test_the_table_shows_parts_modes_and_sums(opt):
    set_trainable(opt, CAPTIONING, torch.bfloat16)
    counts = count_parameters(opt)
    lines = [line.split() for line in parts_table(opt, CAPTIONING).splitlines()]
    assert lines[0] == ["part", "mode", "dtype", "trainable", "total"]
    for line, part in zip(lines[1:5], PARTS, strict=True):
        dtype = "bfloat16" if part == "language" else "float32"
        trainable, total = (f"{n:,}" for n in counts[part])
        assert line == [part, CAPTIONING[part], dtype, trainable, total]
    sums = [f"{sum(column):,}" for column in zip(*counts.values(), strict=True)]
    assert lines[5] == ["all", *sums]
    assert len(lines) == 6


def test_the_table_of_a_model_shows_its_mode_without_being_told(opt):
    attach_lora(opt, {"language": "lora"})
    set_trainable(opt, {"language": "lora", "projection": "full"}, torch.bfloat16)
    lines = parts_table(opt).splitlines()
    modes = {line.split()[0]: line.split()[1:3] for line in lines[1:5]}
    assert modes == {
        "vision": ["frozen", "bfloat16"],
        "qformer": ["frozen", "bfloat16"],
        "projection": ["full", "float32"],
        "language": ["lora", "bfloat16+float32"],
    }


def test_the_table_leaves_out_parts_that_the_model_lacks():
    assert "language" not in parts_table(retriever())
