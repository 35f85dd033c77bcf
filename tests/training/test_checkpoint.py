"""Checkpoints: all that a run needs to go on, as it was at that step."""

import random
import threading
import weakref

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

import blip2ft.training.checkpoint as checkpoint
from blip2ft.training.background import Writer
from blip2ft.training.checkpoint import load_checkpoint, load_weights, save_checkpoint, take
from blip2ft.training.optimizer import make_schedule
from blip2ft.training.stored import damage_of


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

    def save(self, folder, step: int, **options):
        state = {"step": step, "best": None}
        return save_checkpoint(folder, **self.all(), state=state, **options)


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


def test_loading_copies_in_place(tmp_path):
    first, second = Run(0), Run(1)
    path = first.save(tmp_path, 0)
    weight = second.model[1].weight
    load_weights(path, second.model)
    assert second.model[1].weight is weight
    assert torch.equal(weight, first.model[1].weight)


def test_a_checkpoint_that_is_there_is_never_written_again(tmp_path, monkeypatch):
    run = Run()
    path = run.save(tmp_path, 1)
    content = {p.name: p.read_bytes() for p in path.iterdir()}
    run.step()
    taken = []
    monkeypatch.setattr(checkpoint, "take", lambda **_: taken.append(1))
    run.save(tmp_path, 1)
    with Writer() as writer:
        run.save(tmp_path, 1, writer=writer)
    assert taken == []  # nor is it taken to the host
    assert {p.name: p.read_bytes() for p in path.iterdir()} == content


def test_loading_holds_one_weight_at_a_time_and_keeps_nothing_of_the_files(tmp_path, monkeypatch):
    first, second = Run(0), Run(1)
    first.step()
    path = first.save(tmp_path, 1)
    content = {p.name: p.read_bytes() for p in path.iterdir()}
    held: list[weakref.ref] = []

    def like(own, tensor):
        assert not any(earlier() is not None for earlier in held)
        held.append(weakref.ref(tensor))
        return tensor

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "like", like)
        load_weights(path, second.model)
    assert len(held) == 2
    load_checkpoint(path, **second.all())
    for name, was in content.items():
        with (path / name).open("r+b") as file:  # in place: what is mapped would change
            file.write(bytes(len(was)))
    assert torch.equal(second.model[1].weight, first.model[1].weight)
    before, after = (run.optimizer.state_dict()["state"] for run in (first, second))
    for number, values in before.items():
        for name, value in values.items():
            assert torch.equal(after[number][name], value), name


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
    assert asked["mmap"] is True


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


def test_what_is_saved_in_the_background_is_what_was_at_its_step(tmp_path, monkeypatch):
    run, go_on = Run(), threading.Event()
    run.step()
    expected = run.save(tmp_path / "at-once", 1)
    write = checkpoint.write_checkpoint
    monkeypatch.setattr(
        checkpoint, "write_checkpoint", lambda *words: go_on.wait(60) and write(*words)
    )
    done = []
    with Writer() as writer:
        path = run.save(tmp_path, 1, writer=writer, then=lambda: done.append(path.exists()))
        run.step()  # of weights and averages none stays
        assert not path.exists()
        go_on.set()
    assert done == [True]
    assert damage_of(path) == ""
    names = sorted(p.name for p in expected.iterdir())
    for name in names:
        assert (path / name).read_bytes() == (expected / name).read_bytes(), name


def test_a_checkpoint_in_flight_isnt_written_again(tmp_path, monkeypatch):
    run, written = Run(), []
    write = checkpoint.write_checkpoint
    monkeypatch.setattr(
        checkpoint, "write_checkpoint", lambda *words: written.append(1) or write(*words)
    )
    with Writer() as writer:
        for _ in range(2):
            run.save(tmp_path, 1, writer=writer)
    assert written == [1]


def test_what_is_nested_in_an_optimizers_state_is_taken_too(tmp_path):
    """As 8-bit kinds nest it, with numbers and words beside tensors."""
    run = Run()
    run.step()
    inner = torch.arange(6.0).reshape(2, 3).t()  # not contiguous
    kept = {"codes": {"absmax": inner, "names": ["a", 1.5], "pair": (inner, None)}}
    run.optimizer.state[run.model[1].weight].update(kept)
    taken = take(**run.all())
    inner.zero_()
    found = taken.rest["optimizer"]["state"][0]["codes"]
    expected = torch.arange(6.0).reshape(2, 3).t()
    assert torch.equal(found["absmax"], expected)
    assert torch.equal(found["pair"][0], expected)
    assert (found["names"], found["pair"][1]) == (["a", 1.5], None)
    assert type(found["pair"]) is tuple
