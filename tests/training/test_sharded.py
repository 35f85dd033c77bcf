"""What is cut into shards, and what is refused; shared_run.py trains with them."""

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from blip2ft.models.load import load_captioner, load_retriever
from blip2ft.training import sharded
from blip2ft.training.sharded import (
    Sharding,
    asked_sharding,
    check_sharded,
    gathered,
    layers_of,
    like,
    prepare,
    shard,
)


@pytest.fixture
def asked(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    return monkeypatch


def test_accelerate_says_whether_there_are_shards(monkeypatch):
    assert asked_sharding() is None
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match=r"FSDP's first version; set fsdp_version to 2"):
        asked_sharding()
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert asked_sharding() == Sharding(reshard=True)
    monkeypatch.setenv("FSDP_RESHARD_AFTER_FORWARD", "false")
    assert asked_sharding() == Sharding(reshard=False)


@pytest.mark.parametrize(
    ("variable", "instead"),
    [
        ("FSDP_OFFLOAD_PARAMS", "fsdp_offload_params: true; shards stay on the GPU"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "set it to false, and model.gradient_checkpointing"),
    ],
)
def test_what_shards_dont_do_is_refused(asked, variable, instead):
    asked.setenv(variable, "true")
    with pytest.raises(ValueError, match=instead):
        asked_sharding()


def test_an_optimizer_and_a_precision_that_shards_lack_are_refused(monkeypatch):
    check_sharded("adamw_8bit", "fp16")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(ValueError, match=r"optimizer\.kind is adamw_8bit, whose averages can't be"):
        check_sharded("adamw_8bit", "bf16")
    with pytest.raises(ValueError, match=r"model\.precision is fp16, which isn't done under FSDP"):
        check_sharded("adamw", "fp16")
    check_sharded("adamw", "bf16")


def names_of(model: nn.Module, layers: list[nn.Module]) -> list[str]:
    return [name for name, module in model.named_modules() if module in layers]


@pytest.mark.parametrize(
    ("folder", "stacks"),
    [
        ("opt", ["model.decoder.layers"]),
        ("t5", ["encoder.block", "decoder.block"]),
    ],
)
def test_layers_are_found_whatever_the_language_model(request, folder, stacks):
    model, _ = load_captioner(request.getfixturevalue(f"{folder}_folder"))
    found = names_of(model, layers_of(model))
    stacks = [f"language_model.{stack}" for stack in stacks]
    expected = ["vision_model.encoder.layers", "qformer.encoder.layer", *stacks]
    assert sorted(found) == sorted(f"{stack}.{i}" for stack in expected for i in range(2))


def test_a_retrievers_qformer_is_gathered_as_a_whole(retriever_folder):
    model, _ = load_retriever(retriever_folder)
    found = names_of(model, layers_of(model))
    assert found == ["vision_model.encoder.layers.0", "vision_model.encoder.layers.1"]


def test_one_process_has_no_shards(asked, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("it was cut")

    monkeypatch.setattr(sharded, "fully_shard", fail)
    accelerator = Accelerator(cpu=True)
    model = nn.Linear(2, 2)
    shard(model, accelerator)
    optimizer = torch.optim.AdamW(model.parameters())
    prepared, prepared_optimizer = prepare(accelerator, model, optimizer)
    assert prepared is model
    assert prepared_optimizer.optimizer is optimizer
    weight = model.weight
    with gathered(model):
        assert model.weight is weight
    full = torch.ones(2, 2)
    assert like(model.weight, full) is full
