"""Where a LoRA starts: nothing changes at first, and what comes of it fits the base as it was."""

import copy

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig as PeftLora
from peft import inject_adapter_in_model
from torch.nn.utils import parametrize

from blip2ft.data.batches import Sample, text_layout
from blip2ft.models.adapters import (
    attach_lora,
    describe_training,
    load_trained,
    lora_targets,
    merge_lora,
    save_trained,
    trainable_state,
)
from blip2ft.models.identity import Base
from blip2ft.models.load import load_captioner, load_retriever
from blip2ft.models.lora_init import INITS, frozen_starts, largest_part
from blip2ft.models.parts import PARTS, part_of, set_trainable
from blip2ft.models.vqa import load_vqa
from blip2ft.tasks.caption import caption_loss
from blip2ft.training.checkpoint import load_checkpoint, save_checkpoint
from blip2ft.training.optimizer import make_optimizer, make_schedule

KINDS = {
    "lora": {},
    "dora": {"dora": True},
    "rslora": {"rslora": True, "init": "orthogonal"},
    "pissa": {"init": "pissa", "rslora": True},
    "olora": {"init": "olora", "dora": True},
}
TASKS = ("opt", "t5", "instruct", "retriever")


@pytest.fixture(scope="module")
def answering(request):
    """Task -> a fresh model of its class, and what it answers to a fixed batch, as functions."""

    def load(task):
        folder = request.getfixturevalue(f"{'opt' if task == 'instruct' else task}_folder")
        if task == "retriever":
            return load_retriever(folder)
        if task == "instruct":
            return load_vqa(folder, stage1=request.getfixturevalue("retriever_folder"))
        return load_captioner(folder)

    fresh, batches = {}, {}

    def copy_of(task):
        if task not in fresh:
            fresh[task] = load(task)[0]
        return copy.deepcopy(fresh[task])

    @torch.no_grad()
    def answer(task, model):
        if task not in batches:
            batches[task] = batch_for(*load(task))
        if task == "retriever":
            output = model(**batches[task], features_only=True)
            matching = model(**batches[task], use_image_text_matching_head=True)
            answers = output.image_features, output.text_features, matching.logits_per_image
            return torch.cat([answer.flatten() for answer in answers])
        return model(**batches[task]).logits

    return copy_of, answer


def batch_for(model, processor):
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    if not hasattr(model, "language_model"):
        ids = torch.tensor([[2, 5, 6, 3], [2, 7, 9, 3]])
        return {"pixel_values": pixels, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    samples = [Sample(p, "a photo of", c) for p, c in zip(pixels, ("a cat", "a dog"), strict=True)]
    batch = text_layout(model, processor, 8).collate(samples)
    return {key: value for key, value in batch.items() if key != "labels"}


def adapted(model, parts=None, *, r=4, **options):
    """The model with a LoRA on all its parts, and peft's config."""
    if parts is None:
        parts = dict.fromkeys({part_of(name) for name, _ in model.named_parameters()}, "lora")
    torch.manual_seed(0)
    lora = attach_lora(model, parts, r=r, alpha=6, **options)
    set_trainable(model, parts)
    return lora


def train_by_chance(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in trainable_state(model).values():
            tensor += 0.05 * torch.randn(tensor.shape, generator=generator)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", TASKS)
def test_every_kind_comes_back_and_merges_on_every_part_of_every_class(
    answering, tmp_path, task, kind
):
    load, answer = answering
    model = load(task)
    lora = adapted(model, **KINDS[kind])
    train_by_chance(model)
    expected = answer(task, model.eval())
    largest = expected.abs().max()
    assert not torch.allclose(expected, answer(task, load(task)), atol=1e-2)
    description = describe_training("any", Base("b", None, ""), image_size=28)
    save_trained(model, tmp_path, lora, description)
    again = load(task)
    load_trained(again, tmp_path)
    assert (answer(task, again.eval()) - expected).abs().max() <= 1e-5 * largest
    for tuned in (model, again):
        merge_lora(tuned)
        assert (answer(task, tuned) - expected).abs().max() <= 1e-4 * largest
        assert tuned.state_dict().keys() == load(task).state_dict().keys()


@pytest.mark.parametrize("init", INITS)
def test_a_start_changes_no_answer_and_no_weight(answering, init):
    load, answer = answering
    model = load("opt")
    expected, weights = answer("opt", model), copy.deepcopy(model.state_dict())
    # more than the matching head and some projections are wide
    adapted(model, r=40, init=init)
    torch.testing.assert_close(answer("opt", model.eval()), expected, rtol=1e-4, atol=1e-4)
    for name, tensor in model.state_dict().items():
        if ".lora_" not in name:
            assert torch.equal(tensor, weights[name.replace(".base_layer.", ".")])


@pytest.mark.parametrize("init", INITS)
def test_a_lora_is_where_the_model_is(answering, init):
    model = answering[0]("opt").to("meta")
    adapted(model, init=init)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_what_takes_long_is_told(answering, caplog):
    caplog.set_level("INFO", "blip2ft")
    adapted(answering[0]("opt"), {"projection": "lora"})
    assert not caplog.messages
    adapted(answering[0]("opt"), {"projection": "lora"}, init="olora")
    assert caplog.messages == ["lora.init olora: decomposing the weights of 1 layers, on cpu"]


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_dropout_falls_on_what_was_learned_alone(answering, dropout):
    load, answer = answering
    model = load("opt")
    expected = answer("opt", model)
    adapted(model, init="pissa", dropout=dropout)
    for name, module in model.named_modules():
        if name.endswith("lora_dropout"):
            module.train()
    torch.testing.assert_close(answer("opt", model), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_factors_gradients_and_answers_are_those_of_peft(answering, opt_folder, init):
    load, _ = answering
    ours, theirs = load("opt"), load("opt")
    adapted(ours, {"language": "lora"}, r=4, dropout=0.0, init=init)
    targets = lora_targets(theirs, {"language": "lora"})
    options = {"lora_alpha": 6, "init_lora_weights": init, "target_modules": targets}
    torch.manual_seed(0)
    inject_adapter_in_model(PeftLora(r=4, **options), theirs)
    batch = text_layout(*load_captioner(opt_folder), 8).collate(
        [Sample(torch.ones(3, 28, 28), "a photo of", "a cat")]
    )
    losses = []
    for model in (ours, theirs):
        loss = caption_loss(model.train(False), batch)
        loss.backward()
        losses.append(loss.detach())
    torch.testing.assert_close(*losses)
    own = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        if ".lora_" not in name:
            continue
        mine = own[name.replace(".weight", ".parametrizations.weight.original")]
        torch.testing.assert_close(mine, parameter)
        torch.testing.assert_close(mine.grad, parameter.grad, rtol=1e-3, atol=1e-4)


def test_the_fast_decomposition_draws_from_a_seed_of_its_own():
    random = torch.randn(20, 30, generator=torch.Generator().manual_seed(0))
    u, _, vh = torch.linalg.svd(random, full_matrices=False)
    weight = u * 2.0 ** -torch.arange(20) @ vh
    torch.manual_seed(1)
    first = largest_part(weight, 3, "pissa_niter_16")
    drawn = torch.rand(())
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(()))
    second = largest_part(weight, 3, "pissa_niter_16")
    exact = largest_part(weight, 3, "pissa")
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    torch.testing.assert_close(first[0] @ first[1], exact[0] @ exact[1], rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_decomposes_for_a_model_that_stays_where_it_is(answering):
    parts = dict.fromkeys(PARTS, "lora")
    here, there = answering[0]("opt"), answering[0]("opt")
    attach_lora(here, parts, init="olora")
    attach_lora(there, parts, init="olora", device=torch.device("cuda"))
    torch.testing.assert_close(frozen_starts(there), frozen_starts(here), rtol=1e-3, atol=1e-4)


def test_only_the_trained_half_trains_and_the_other_stays_in_fp32(answering):
    model = answering[0]("opt")
    parts = dict.fromkeys(PARTS, "lora")
    attach_lora(model, parts, init="pissa")
    set_trainable(model, parts, torch.bfloat16)
    starts = frozen_starts(model)
    assert len(starts) == len(trainable_state(model)) > 0
    assert starts.keys().isdisjoint(trainable_state(model))
    assert {tensor.dtype for tensor in starts.values()} == {torch.float32}


def test_a_resumed_run_is_the_uninterrupted_one_whatever_the_decomposition_gives(
    answering, opt_folder, tmp_path, monkeypatch
):
    batch = text_layout(*load_captioner(opt_folder), 8).collate(
        [Sample(torch.ones(3, 28, 28), "a photo of", "a cat")]
    )

    def start():
        model = answering[0]("opt")
        adapted(model, {"vision": "lora", "language": "lora"}, init="pissa")
        optimizer = make_optimizer(model, lr=1e-2, lora_lr_ratio=4.0)
        schedule = make_schedule(optimizer, steps=9, warmup_steps=1, lr=1e-2)
        everything = {"model": model, "optimizer": optimizer, "schedule": schedule}
        return everything | {"accelerator": Accelerator(cpu=True)}

    def step(run):
        caption_loss(run["model"].train(), batch).backward()
        run["optimizer"].step()
        run["schedule"].step()
        run["optimizer"].zero_grad()

    whole = start()
    for _ in range(2):
        step(whole)
    saved = save_checkpoint(tmp_path, **whole, state={"step": 2})
    step(whole)
    # signs and last digits are the library's affair
    monkeypatch.setattr(
        "blip2ft.models.lora_init.largest_part",
        lambda *a: tuple(-1.001 * factor for factor in largest_part(*a)),
    )
    resumed = start()
    load_checkpoint(saved, **resumed)
    step(resumed)
    expected = whole["model"].state_dict()
    for name, tensor in resumed["model"].state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.filterwarnings("ignore::UserWarning:bitsandbytes")
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_on_a_quantised_part_what_was_learned_fits_the_part_as_it_was(wide_folder, tmp_path, kind):
    pytest.importorskip("bitsandbytes")
    model, _ = load_captioner(wide_folder, quantize={"language": kind})
    name = "language_model.model.decoder.layers.0.fc1"
    codes = model.get_submodule(name).weight.clone()
    lora = adapted(model, {"language": "lora"}, init="pissa")
    train_by_chance(model)
    layer = model.eval().get_submodule(name)
    assert parametrize.is_parametrized(layer.lora_A.default)
    assert torch.equal(layer.get_base_layer().weight, codes)
    hidden = torch.randn(3, 64)
    expected = layer(hidden) - layer.get_base_layer()(hidden)
    save_trained(model, tmp_path, lora, describe_training("any", Base("b", None, "")))
    plain, _ = load_captioner(wide_folder)
    load_trained(plain, tmp_path)
    tuned = plain.eval().get_submodule(name)
    change = tuned(hidden) - tuned.get_base_layer()(hidden)
    torch.testing.assert_close(change, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"init": "pisa"},
            r"lora\.init is 'pisa': allowed are default, .*; did you mean 'pissa'\?",
        ),
        ({"init": "loftq"}, r"lora\.init is 'loftq': allowed are default, .* eva$"),
        ({"init": "orthogonal", "r": 3}, r"lora\.r is 3, .* needs an even rank; try 4"),
    ],
)
def test_a_start_that_can_not_be_is_refused_before_anything(opt_folder, given, said):
    model, _ = load_captioner(opt_folder)
    with pytest.raises(ValueError, match=said):
        attach_lora(model, {"language": "lora"}, **given)
    assert not any(".lora_" in name for name, _ in model.named_parameters())
