"""Spikes and dead parts are told, and what is usual isn't."""

import logging
from collections import OrderedDict

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from blip2ft.training.watch import DEAD_AFTER, Watch


@pytest.fixture
def model():
    torch.manual_seed(0)
    parts = OrderedDict(vision_model=nn.Linear(2, 2), language_projection=nn.Linear(2, 2))
    return nn.Sequential(parts)


def run(model, losses, *, lr=0.1, uses=("vision_model", "language_projection")):
    watch = Watch(model, Accelerator(cpu=True))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for step, loss in enumerate(losses, 1):
        sum(getattr(model, name)(torch.ones(1, 2)).sum() for name in uses).backward()
        watch.gradients()
        optimizer.step()
        optimizer.zero_grad()
        watch.step(step, loss)


@pytest.fixture
def warnings(caplog):
    caplog.set_level(logging.WARNING, "blip2ft.training.watch")
    return caplog


def test_a_spike_is_told_once(model, warnings):
    usual = [2.0 + 0.1 * (i % 3) for i in range(40)]
    run(model, [*usual, 30.0, 31.0, *usual])
    (record,) = warnings.records
    assert record.getMessage().startswith(
        "step 41: the loss is 30, and the median of the 40 before 2.1; if it stays"
    )


@pytest.mark.parametrize("kind", ["falling", "noisy", "flat", "jump while it starts"])
def test_usual_curves_are_no_spikes(model, warnings, kind):
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(200, generator=generator).tolist()
    curves = {
        "falling": [10 / (1 + i / 5) for i in range(200)],
        "noisy": [2 + value for value in noise],
        "flat": [0.5] * 100,
        "jump while it starts": [2.0, 9.0, 2.0] + [2.0] * 50,
    }
    run(model, curves[kind])
    assert not warnings.records


def test_a_part_that_no_gradient_reaches_is_told(model, warnings):
    run(model, [1.0] * (DEAD_AFTER + 5), uses=("language_projection",))
    (record,) = warnings.records
    assert record.getMessage() == (
        f"part 'vision' trains, but in {DEAD_AFTER} steps no gradient has reached it: set it to "
        "frozen, or mend the model"
    )


def test_parts_that_do_not_move_are_told(model, warnings):
    run(model, [1.0] * DEAD_AFTER, lr=1e-12)
    said = [record.getMessage() for record in warnings.records]
    assert len(said) == 2
    assert f"in {DEAD_AFTER} steps none of its weights has changed: raise optimizer.lr" in said[0]


def test_frozen_parts_are_left_alone(model, warnings):
    model.vision_model.requires_grad_(False)
    run(model, [1.0] * DEAD_AFTER, uses=("language_projection",))
    assert not warnings.records
