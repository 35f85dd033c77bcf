"""Checkpoints: whole or not there, and all that a run needs to go on."""

import json
import os
import random

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

import blip2ft.training.checkpoint as checkpoint
from blip2ft.training.checkpoint import (
    checkpoint_of,
    list_checkpoints,
    load_checkpoint,
    load_weights,
    remove_old,
    rewrite_state,
    save_checkpoint,
)
from blip2ft.training.optimizer import make_schedule


class Run:
    """A model of two layers, the first frozen, with all that a checkpoint holds."""

    def __init__(self, seed: int = 0, lr: float = 0.1, **options) -> None:
        torch.manual_seed(seed)
        self.accelerator = Accelerator(cpu=True)
        self.model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
        self.model[0].requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.model[1].parameters(), lr=lr, **options)
        self.schedule = make_schedule(self.optimizer, steps=10, warmup_steps=2, lr=lr)

    def step(self) -> None:
        self.model(torch.randn(5, 4)).square().sum().backward()
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()

    def all(self):
        return {
            "accelerator": self.accelerator,
            "model": self.model,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
        }

    def save(self, folder, step: int):
        return save_checkpoint(folder, **self.all(), state={"step": step, "best": None})


def draws():
    return random.random(), np.random.rand(), np.random.randn(), torch.rand(1).item()


def test_a_round_trip_gives_everything_back(tmp_path):
    first = Run(seed=0)
    for _ in range(3):
        first.step()
    np.random.randn()  # leaves the second number of a pair behind
    path = first.save(tmp_path, 3)
    drawn = draws()

    second = Run(seed=1)
    assert load_checkpoint(path, **second.all()) == {"step": 3, "best": None}
    assert draws() == drawn
    assert torch.equal(second.model[1].weight, first.model[1].weight)
    assert not torch.equal(second.model[0].weight, first.model[0].weight)  # frozen: not saved
    before, after = first.optimizer.state_dict(), second.optimizer.state_dict()
    assert before["param_groups"] == after["param_groups"]
    for key, values in before["state"].items():
        for name, value in values.items():
            assert torch.equal(after["state"][key][name], value)
    assert second.schedule.get_last_lr() == first.schedule.get_last_lr()

    second.model[0].load_state_dict(first.model[0].state_dict())
    torch.manual_seed(5)
    first.step()
    torch.manual_seed(5)
    second.step()
    assert torch.equal(second.model[1].weight, first.model[1].weight)
    assert second.schedule.get_last_lr() == first.schedule.get_last_lr()


def test_a_resumed_run_has_the_settings_that_it_is_given(tmp_path):
    first = Run(seed=0)
    for _ in range(3):
        first.step()
    path = first.save(tmp_path, 3)

    second = Run(seed=1, lr=0.01, betas=(0.5, 0.7), weight_decay=0.3)
    load_checkpoint(path, **second.all())
    (group,) = second.optimizer.param_groups
    assert (group["betas"], group["weight_decay"]) == ((0.5, 0.7), 0.3)
    (rate,) = first.schedule.get_last_lr()
    assert second.schedule.get_last_lr() == [group["lr"]] == [pytest.approx(rate / 10)]
    first.step()
    second.step()
    (rate,) = first.schedule.get_last_lr()
    assert group["lr"] == pytest.approx(rate / 10)


def test_other_groups_of_parameters_are_refused(tmp_path):
    path = Run().save(tmp_path, 1)
    other = Run()
    weight, bias = other.model[1].parameters()
    other.optimizer = torch.optim.AdamW([{"params": [weight]}, {"params": [bias]}], lr=0.1)
    with pytest.raises(ValueError, match=r"1 groups .* this run's 2, .*vision_layer_decay must be"):
        load_checkpoint(path, **other.all())


def test_a_state_is_replaced_at_once(tmp_path, monkeypatch):
    path = Run().save(tmp_path, 1)
    names = {p.name for p in path.iterdir()}
    rewrite_state(path, {"step": 1, "best": 0.5})
    assert load_checkpoint(path, **Run().all()) == {"step": 1, "best": 0.5}
    assert {p.name for p in path.iterdir()} == names

    def killed(_path):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        rewrite_state(path, {"step": 1, "best": 0.9})
    assert load_checkpoint(path, **Run().all()) == {"step": 1, "best": 0.5}


def test_loading_copies_in_place(tmp_path):
    first, second = Run(0), Run(1)
    path = first.save(tmp_path, 0)
    weight = second.model[1].weight
    load_weights(path, second.model)
    assert second.model[1].weight is weight
    assert torch.equal(weight, first.model[1].weight)


@pytest.mark.parametrize("failing", ["save_file", "torch.save", "json.dumps"])
def test_a_failure_while_writing_leaves_the_former_checkpoint_only(tmp_path, monkeypatch, failing):
    run = Run()
    former = run.save(tmp_path, 1)

    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(f"blip2ft.training.checkpoint.{failing}", full)
        with pytest.raises(OSError, match="No space left"):
            run.save(tmp_path, 2)
    assert list(tmp_path.iterdir()) == [former]
    load_checkpoint(former, **Run(1).all())

    assert run.save(tmp_path, 2) == checkpoint_of(tmp_path, 2)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-00000001", "step-00000002"]


def test_a_checkpoint_that_is_there_is_never_written_again(tmp_path):
    run = Run()
    path = run.save(tmp_path, 1)
    content = {p.name: p.read_bytes() for p in path.iterdir()}
    run.step()
    run.save(tmp_path, 1)
    assert {p.name: p.read_bytes() for p in path.iterdir()} == content


def test_only_whole_checkpoints_are_listed_in_the_order_of_their_steps(tmp_path):
    run = Run()
    for step in (100, 9, 20):
        run.save(tmp_path, step)
    (tmp_path / ".partial-step-00000200").mkdir()
    (tmp_path / ".partial-step-00000200" / "state.json").write_text("{}")
    (tmp_path / "step-00000300").mkdir()
    steps = [json.loads((p / "state.json").read_text())["step"] for p in list_checkpoints(tmp_path)]
    assert steps == [9, 20, 100]
    assert list_checkpoints(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("keep", "best", "left"),
    [
        (2, None, [4, 5]),
        (2, 1, [1, 4, 5]),
        (2, 5, [4, 5]),
        (9, 1, [1, 2, 3, 4, 5]),
        (0, 3, [3]),
    ],
)
def test_the_newest_and_the_best_are_kept(tmp_path, keep, best, left):
    for step in range(1, 6):
        path = checkpoint_of(tmp_path, step)
        path.mkdir()
        (path / "state.json").write_text("{}")
    remove_old(tmp_path, keep, best)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"step-{step:08d}" for step in left]


def test_a_removal_that_is_cut_short_leaves_nothing_that_looks_whole(tmp_path, monkeypatch):
    run = Run()
    for step in (1, 2):
        run.save(tmp_path, step)

    def killed(path, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        remove_old(tmp_path, 1, None)
    assert list_checkpoints(tmp_path) == [checkpoint_of(tmp_path, 2)]


def test_other_trainables_are_refused_by_name(tmp_path):
    path = Run().save(tmp_path, 1)
    other = Run()
    other.model[0].weight.requires_grad_(True)
    before = other.model[1].weight.clone()
    with pytest.raises(ValueError, match=r"differ in 1 trained tensors, such as 0\.weight"):
        load_checkpoint(path, **other.all())
    assert torch.equal(other.model[1].weight, before)


def test_code_in_a_checkpoint_is_never_run(tmp_path, monkeypatch):
    path = Run().save(tmp_path, 1)
    asked = {}
    load = torch.load
    monkeypatch.setattr(
        torch, "load", lambda *args, **options: asked.update(options) or load(*args, **options)
    )
    load_checkpoint(path, **Run().all())
    assert asked["weights_only"] is True


def test_random_states_of_another_number_of_processes_are_left_out(tmp_path):
    run = Run()
    path = run.save(tmp_path, 1)
    rest = torch.load(path / "rest.pt", weights_only=True)
    torch.save(rest | {"random": rest["random"] * 2}, path / "rest.pt")
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    load_checkpoint(path, **run.all())
    assert torch.equal(torch.rand(1), expected)
