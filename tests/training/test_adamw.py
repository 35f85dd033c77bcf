"""AdamW of torch and of bitsandbytes: the same steps, with averages of fewer bytes."""

import importlib.util
from types import SimpleNamespace

import pytest
import torch
from small_run import PAPER, small_run

from blip2ft.models.adapters import attach_lora
from blip2ft.models.load import load_captioner
from blip2ft.models.parts import set_trainable
from blip2ft.training import adamw
from blip2ft.training.adamw import (
    KINDS,
    average_bytes,
    check_kind,
    make_adamw,
    page_again,
    parameters_in_8_bits,
)
from blip2ft.training.optimizer import make_optimizer
from blip2ft.training.stored import checkpoint_of

ALL = dict.fromkeys(("vision", "qformer", "projection", "language"), "full")
# of `wide_folder`: matrices of 4096 numbers and more, 64 x 64, but no table of words or positions
IN_8_BITS = {"vision_model.embeddings.patch_embedding.weight"}
IN_8_BITS |= {
    f"vision_model.encoder.layers.{i}.{name}.weight"
    for i in (0, 1)
    for name in ("self_attn.qkv", "self_attn.projection", "mlp.fc1", "mlp.fc2")
}
IN_8_BITS |= {
    f"language_model.model.decoder.layers.{i}.{name}.weight"
    for i in (0, 1)
    for name in (*(f"self_attn.{k}_proj" for k in ("q", "k", "v", "out")), "fc1", "fc2")
}
CPU, GPU = torch.device("cpu"), torch.device("cuda")
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs blip2ft[quantize]"
)


def stepped(folder, kind, parts=ALL, steps=3, **options):
    """A model after some steps on the same random gradients, and its optimizer."""
    model, _ = load_captioner(folder)
    attach_lora(model, parts, r=64)
    set_trainable(model, parts)
    optimizer = make_optimizer(model, lr=1e-2, kind=kind, **options)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return model, optimizer


def bits_of(model, optimizer):
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: 8 * s["state1"].element_size() for p, s in optimizer.state.items()}


@needs_bitsandbytes
def test_averages_of_large_matrices_have_8_bits_and_all_others_32(wide_folder):
    model, optimizer = stepped(wide_folder, "adamw_8bit", steps=1)
    found = bits_of(model, optimizer)
    assert found.keys() == dict(model.named_parameters()).keys()
    assert {name for name, bits in found.items() if bits == 8} == IN_8_BITS
    assert {bits for name, bits in found.items() if name not in IN_8_BITS} == {32}


@needs_bitsandbytes
def test_large_tables_without_a_module_stay_in_32_bits():
    model = torch.nn.Module()
    model.query_tokens = torch.nn.Parameter(torch.zeros(1, 32, 768))
    model.vision_model = torch.nn.Module()
    model.vision_model.embeddings = torch.nn.Module()
    model.vision_model.embeddings.class_embedding = torch.nn.Parameter(torch.zeros(1, 1, 8192))
    model.vision_model.embeddings.position_embedding = torch.nn.Parameter(torch.zeros(1, 257, 64))
    patches = model.vision_model.embeddings.patch_embedding = torch.nn.Conv2d(3, 64, 14)
    model.layer = torch.nn.Linear(64, 8192)
    assert list(parameters_in_8_bits(model)) == [patches.weight, model.layer.weight]


@needs_bitsandbytes
def test_the_factors_of_a_lora_have_8_bits(wide_folder):
    parts = {"language": "lora"}
    model, optimizer = stepped(wide_folder, "adamw_8bit", parts, steps=1)
    assert set(bits_of(model, optimizer).values()) == {8}


@needs_bitsandbytes
def test_8_bits_step_nearly_as_32_do(wide_folder):
    start, _ = stepped(wide_folder, "adamw", steps=0)
    exact, _ = stepped(wide_folder, "adamw", steps=5)
    near, _ = stepped(wide_folder, "adamw_8bit", steps=5)
    begun, wanted = dict(start.named_parameters()), dict(exact.named_parameters())
    in_8_bits = set(map(id, parameters_in_8_bits(near)))
    for name, parameter in near.named_parameters():
        step = wanted[name] - begun[name]
        error = (parameter - wanted[name]).norm() / step.norm()
        assert error < (0.15 if id(parameter) in in_8_bits else 1e-4), name


@needs_bitsandbytes
def test_weight_decay_and_rates_are_those_of_the_groups(wide_folder):
    _, expected = stepped(wide_folder, "adamw", steps=0, vision_layer_decay=0.5)
    _, optimizer = stepped(wide_folder, "adamw_8bit", steps=0, vision_layer_decay=0.5)
    for own, other in zip(optimizer.param_groups, expected.param_groups, strict=True):
        for key in ("lr", "weight_decay", "betas", "eps", "part"):
            assert own[key] == other[key]


@needs_bitsandbytes
def test_two_optimizers_of_a_process_know_nothing_of_each_other(wide_folder):
    from bitsandbytes.optim import GlobalOptimManager

    _, first = stepped(wide_folder, "adamw_8bit", steps=1)
    _, second = stepped(wide_folder, "adamw_8bit", steps=0)
    assert first.mng is not second.mng
    assert not GlobalOptimManager.get_instance().index2config


@needs_bitsandbytes
@pytest.mark.parametrize("kind", ["adamw", "adamw_8bit"])
def test_the_bytes_that_are_planned_are_those_that_are_held(wide_folder, kind):
    model, optimizer = stepped(wide_folder, kind, steps=1)
    held = sum(
        tensor.nbytes
        for state in optimizer.state.values()
        for name, tensor in state.items()
        if name != "step"
    )
    if kind == "adamw_8bit":  # the tables of the two codes, which all share
        held -= 2 * 4 * 256 * sum(1 for _ in parameters_in_8_bits(model))
    assert {paged for _, _, paged in average_bytes(kind, model)} == {0}
    assert sum(planned for _, planned, _ in average_bytes(kind, model)) == held


def test_only_large_averages_are_planned_in_pages():
    model = torch.nn.Sequential(torch.nn.Linear(500, 400), torch.nn.Linear(400, 4))
    small = [("0.bias", 8 * 400, 0), ("1.weight", 8 * 1600, 0), ("1.bias", 8 * 4, 0)]
    large = ("0.weight", 0, 8 * 500 * 400)
    assert list(average_bytes("paged_adamw", model)) == [large, *small]
    large = ("0.weight", 8 * -(-500 * 400 // 256), 2 * 500 * 400)
    assert list(average_bytes("paged_adamw_8bit", model)) == [large, *small]


@needs_bitsandbytes
def test_a_resumed_run_with_8_bits_is_the_uninterrupted_one(wide_folder, photo_folder, tmp_path):
    options = {"batch_size": 6, "micro": 3, "kind": "adamw_8bit"}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    small_run(wide_folder, photo_folder, whole, steps=5, **options)
    small_run(wide_folder, photo_folder, parts, steps=3, **options)
    middle = checkpoint_of(parts / "checkpoints", 3)
    torch.manual_seed(99)
    small_run(wide_folder, photo_folder, parts, steps=5, resume_from=middle, **options)
    ends = [checkpoint_of(run / "end", 5) for run in (whole, parts)]
    states = [torch.load(end / "rest.pt")["optimizer"]["state"] for end in ends]
    packed = "__bnb_optimizer_quant_state__"
    dtypes = set()
    for key, expected in states[0].items():
        assert expected["step"] == states[1][key]["step"] == 5
        for name, tensor in expected[packed].items():
            dtypes.add(tensor.dtype)
            assert torch.equal(tensor, states[1][key][packed][name]), (key, name)
    assert dtypes == {torch.uint8, torch.float32}
    assert (ends[0] / "trained.safetensors").read_bytes() == (
        ends[1] / "trained.safetensors"
    ).read_bytes()


@needs_bitsandbytes
@pytest.mark.parametrize(("then", "now"), [("adamw", "adamw_8bit"), ("adamw_8bit", "adamw")])
def test_averages_of_another_kind_are_refused(wide_folder, photo_folder, tmp_path, then, now):
    small_run(wide_folder, photo_folder, tmp_path, steps=2, kind=then)
    checkpoint = checkpoint_of(tmp_path / "checkpoints", 2)
    said = rf"can't be resumed with optimizer.kind {now}: .* go on with --optimizer.kind {then}$"
    with pytest.raises(ValueError, match=said):
        small_run(wide_folder, photo_folder, tmp_path, steps=3, kind=now, resume_from=checkpoint)


def test_averages_that_were_loaded_go_back_into_pages():
    parameter = torch.nn.Parameter(torch.zeros(3))
    state = {"step": 2, "state1": torch.ones(3), "state2": torch.full((3,), 2, dtype=torch.uint8)}
    made = []

    def page(parameter, dtype):
        made.append(torch.zeros_like(parameter, dtype=dtype))
        return made[-1]

    bare = SimpleNamespace(is_paged=True, state={parameter: state}, get_state_buffer=page)
    page_again(SimpleNamespace(optimizer=bare))
    assert [state["state1"], state["state2"]] == made
    assert state["state1"].tolist() == [1, 1, 1]
    assert (state["state2"].tolist(), state["state2"].dtype) == ([2, 2, 2], torch.uint8)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("paged")])
def test_pages_need_a_gpu(wide_folder, kind):
    model, _ = load_captioner(wide_folder)
    set_trainable(model, PAPER)
    said = rf"optimizer.kind is {kind}, but pages .* runs on cpu; take {kind[6:]}$"
    with pytest.raises(ValueError, match=said):
        make_adamw(kind, model, [], 1e-3, (0.9, 0.999))


def test_a_kind_that_cannot_be_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"optimizer.kind is 'adam': allowed are adamw, adamw_8b"):
        check_kind("adam", GPU)
    monkeypatch.setattr(adamw, "find_spec", lambda name: None)
    check_kind("adamw", CPU)
    said = r'optimizer.kind paged_adamw needs bitsandbytes: pip install "blip2ft\[quantize\]"'
    with pytest.raises(ValueError, match=said):
        check_kind("paged_adamw", GPU)
