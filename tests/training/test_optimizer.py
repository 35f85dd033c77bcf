"""Which parameter learns at which rate, and how the rate moves."""

import pytest
import torch
from torch import nn

from blip2ft.models.adapters import attach_lora
from blip2ft.models.load import load_captioner
from blip2ft.models.parts import part_of, set_trainable
from blip2ft.training.optimizer import (
    base_rate,
    learning_rate_factor,
    make_optimizer,
    make_schedule,
    parameter_groups,
)

ALL = dict.fromkeys(("vision", "qformer", "projection", "language"), "full")


def model_with(folder, parts):
    model, _ = load_captioner(folder)
    attach_lora(model, parts)
    set_trainable(model, parts)
    return model


def settings_of(model, **options):
    """The rate's scale and the weight decay of every trainable parameter, by name."""
    names = {id(p): name for name, p in model.named_parameters()}
    groups = parameter_groups(model, lr=1.0, weight_decay=0.05, **options)
    return {names[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}


@pytest.mark.parametrize(
    "parts",
    [
        ALL,
        ALL | {"language": "frozen"},
        {"projection": "full"},
        {"vision": "lora", "qformer": "full", "projection": "full", "language": "lora"},
    ],
    ids=["all", "paper", "projection", "lora"],
)
def test_every_trainable_parameter_is_in_exactly_one_group(model_folder, parts):
    model = model_with(model_folder, parts)
    groups = parameter_groups(model, lr=1.0, weight_decay=0.05, vision_layer_decay=0.9)
    grouped = [id(p) for group in groups for p in group["params"]]
    trainable = [id(p) for p in model.parameters() if p.requires_grad]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == set(trainable)


def test_groups_hold_one_part_each(opt_folder):
    model = model_with(opt_folder, ALL)
    names = {id(p): name for name, p in model.named_parameters()}
    for group in parameter_groups(model, lr=1.0, weight_decay=0.05, vision_layer_decay=0.9):
        assert {part_of(names[id(p)]) for p in group["params"]} == {group["part"]}


def test_layer_decay_falls_from_the_top_of_the_vit_to_its_embeddings(opt_folder):
    settings = settings_of(model_with(opt_folder, ALL), vision_layer_decay=0.5)
    rates = {name: rate for name, (rate, _) in settings.items()}
    expected = {
        "vision_model.embeddings.": 0.5**3,
        "vision_model.encoder.layers.0.": 0.5**2,
        "vision_model.encoder.layers.1.": 0.5,
        "vision_model.post_layernorm.": 1.0,
        "qformer.": 1.0,
        "query_tokens": 1.0,
        "language_projection.": 1.0,
        "language_model.": 1.0,
    }
    for prefix, rate in expected.items():
        found = {r for name, r in rates.items() if name.startswith(prefix)}
        assert found == {rate}, prefix
    assert all(name.startswith(tuple(expected)) for name in rates)


def test_lora_plus_raises_the_rate_of_b_alone_on_top_of_the_layer_decay(opt_folder):
    parts = {"vision": "lora", "qformer": "full", "projection": "full", "language": "lora"}
    model = model_with(opt_folder, parts)
    plain = settings_of(model, vision_layer_decay=0.5)
    raised = settings_of(model, vision_layer_decay=0.5, lora_lr_ratio=16.0)
    assert {rate for name, (rate, _) in raised.items() if ".lora_B." in name} == {16, 8, 4}
    for name, (rate, decay) in raised.items():
        factor = 16 if ".lora_B." in name else 1
        assert (rate, decay) == (factor * plain[name][0], plain[name][1]), name


def test_the_rate_that_is_logged_is_the_one_of_neither_a_layer_nor_lora_b(opt_folder):
    model = model_with(opt_folder, {"vision": "lora"})
    ratios = {"vision_layer_decay": 0.5, "lora_lr_ratio": 16.0}
    optimizer = make_optimizer(model, lr=1e-3, **ratios)
    make_schedule(optimizer, steps=6, warmup_steps=2, lr=1e-3)
    assert optimizer.param_groups[0]["lr_scale"] != 1
    assert base_rate(optimizer) == pytest.approx(5e-4)  # the first step of a warm-up of two
    assert max(group["lr"] for group in optimizer.param_groups) > 1e-3


def test_without_layer_decay_all_learn_at_one_rate(opt_folder):
    settings = settings_of(model_with(opt_folder, ALL))
    assert {rate for rate, _ in settings.values()} == {1.0}


def test_layer_decay_reaches_adapters_too(opt_folder):
    settings = settings_of(model_with(opt_folder, {"vision": "lora"}), vision_layer_decay=0.5)
    first = {r for name, (r, _) in settings.items() if "layers.0." in name}
    second = {r for name, (r, _) in settings.items() if "layers.1." in name}
    assert (first, second) == ({0.25}, {0.5})


def test_vectors_and_biases_have_no_weight_decay(model_folder):
    model = model_with(model_folder, ALL)
    parameters = dict(model.named_parameters())
    for name, (_, decay) in settings_of(model).items():
        matrix = parameters[name].ndim > 1 and not name.endswith("bias")
        assert decay == (0.05 if matrix else 0.0), name
        if "norm" in name.lower():
            assert decay == 0.0, name


def test_fp16_is_refused(opt_folder):
    model = model_with(opt_folder, {"projection": "full"})
    model.language_projection.half()
    with pytest.raises(ValueError, match=r"language_projection\.\w+ trains in fp16"):
        parameter_groups(model, lr=1.0, weight_decay=0.05)


def test_a_model_in_which_nothing_trains_is_refused(opt_folder):
    model = model_with(opt_folder, {})
    with pytest.raises(ValueError, match="no parameter trains; set a part to full or lora"):
        make_optimizer(model, lr=1e-5)


def test_adamw_has_the_settings_it_is_given(opt_folder):
    model = model_with(opt_folder, {"projection": "full"})
    optimizer = make_optimizer(model, lr=1e-4, betas=(0.8, 0.98), weight_decay=0.1)
    decays = {group["weight_decay"] for group in optimizer.param_groups}
    assert {group["betas"] for group in optimizer.param_groups} == {(0.8, 0.98)}
    assert decays == {0.1, 0.0}


def factor(step, **options):
    settings = {"steps": 100, "warmup_steps": 10, "lr": 1e-4, "min_lr": 5e-5} | options
    return learning_rate_factor(step, **settings)


def test_warm_up_is_linear_and_its_first_step_isnt_wasted():
    assert factor(0) == pytest.approx(0.1)
    assert factor(4) == pytest.approx(0.5)
    assert factor(9) == pytest.approx(1.0)


def test_cosine_falls_at_every_step_to_the_minimum():
    assert factor(10) == pytest.approx(1.0)
    assert factor(55) == pytest.approx(0.75)
    assert factor(100) == pytest.approx(0.5)
    assert factor(1000) == pytest.approx(0.5)
    values = [factor(step) for step in range(10, 101)]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == len(values)


def test_without_a_minimum_the_rate_ends_at_zero():
    assert factor(100, min_lr=0.0) == pytest.approx(0.0)


def test_no_warm_up_begins_at_the_peak():
    assert factor(0, warmup_steps=0) == 1.0


def test_a_run_shorter_than_its_warm_up_never_divides_by_zero():
    assert factor(4, steps=5, warmup_steps=10) == pytest.approx(0.5)
    assert factor(10, steps=10, warmup_steps=10) == pytest.approx(1.0)


def test_every_group_keeps_its_own_scale_through_the_schedule():
    groups = [
        {"params": [nn.Parameter(torch.ones(1))], "lr": 1e-4},
        {"params": [nn.Parameter(torch.ones(1))], "lr": 5e-5},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-4)
    schedule = make_schedule(optimizer, steps=4, warmup_steps=2, lr=1e-4)
    seen = []
    for _ in range(5):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    assert [pair[0] for pair in seen] == pytest.approx([5e-5, 1e-4, 1e-4, 5e-5, 0.0])
    assert [pair[1] for pair in seen] == pytest.approx([pair[0] / 2 for pair in seen])


@pytest.mark.parametrize(("lr", "min_lr"), [(0.0, 0.0), (-1.0, 0.0), (1e-5, 1e-4), (1e-5, -1e-6)])
def test_a_rate_that_makes_no_sense_is_refused(lr, min_lr):
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(1))])
    with pytest.raises(ValueError, match="allowed is 0 <= min_lr <= lr, with lr above 0"):
        make_schedule(optimizer, steps=1, warmup_steps=0, lr=lr, min_lr=min_lr)
