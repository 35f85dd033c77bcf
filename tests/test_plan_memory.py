"""What a plan says of memory: known numbers, what a real step keeps, and what each switch does."""

from dataclasses import replace

import pytest
import torch
from models.test_full_size import QFORMER, VISION, flan_t5_xl, opt_2_7b
from safetensors.torch import load_file
from torch import nn
from transformers import Blip2Config

from blip2ft.models.adapters import attach_lora, save_trained
from blip2ft.models.load import load_captioner
from blip2ft.models.parts import set_trainable
from blip2ft.models.source import read_config
from blip2ft.plan.batch import TextLength, longest_batch, text_length
from blip2ft.plan.cuda_like import CudaLike
from blip2ft.plan.gpu import GIB, read_gpu
from blip2ft.plan.memory import LOSSES, memory_at, rehearse_sizes
from blip2ft.plan.model import Setup, build, weigh
from blip2ft.plan.packed import PackedLinear, packed_bytes
from blip2ft.plan.rehearsal import GRADIENTS, rehearse
from blip2ft.training.adamw import KINDS

FULL = {"vision": "full", "qformer": "full", "projection": "full", "language": "frozen"}
LORA = {"r": 2, "alpha": 4, "dropout": 0.0, "dora": False, "rslora": False}
ALL = {"itc": 1.0, "itm": 1.0, "itg": 1.0}
TEXT = TextLength(5, 12)


def setup_of(folder, task="caption", **changes) -> Setup:
    config = read_config(str(folder))
    setup = Setup(task, config, "fp32", None, (), FULL, LORA, {}, ALL)
    return replace(setup, **changes)


def full_size(text, **changes) -> Setup:
    config = Blip2Config(
        vision_config=VISION | {"image_size": 224},
        qformer_config=QFORMER,
        text_config=text,
        num_query_tokens=32,
        image_token_index=5,
    )
    setup = Setup("caption", config, "bf16", 364, ("vision",), FULL, LORA, {})
    return replace(setup, **changes)


def passing(setup: Setup, size: int = 2) -> int:
    """Bytes of activations at the peak of a step."""
    memory = memory_at(setup, TEXT, size, accumulates=True, processes=1, waiting=0)
    return sum(memory.activations.values())


def saved_bytes(model: nn.Module, run) -> int:
    """Bytes of all that autograd keeps of a forward pass, each storage once, weights left out."""
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    kept = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own and tensor.is_floating_point():
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize(
    ("text", "trained", "frozen"),
    [(opt_2_7b, 1_093_674_496, 2_651_678_720), (flan_t5_xl, 1_093_280_768, 2_783_959_040)],
)
def test_full_size_weights_are_held_as_the_run_holds_them(text, trained, frozen):
    parts = weigh(build(full_size(text())))
    assert sum(part.trained for part in parts.values()) == trained
    assert parts["language"].frozen == frozen
    assert parts["language"].size == 2 * frozen  # bf16
    assert parts["vision"].size == 4 * parts["vision"].trained  # fp32


def test_nf4_takes_4_127_bits_of_each_weight_of_linear_layers():
    parts = weigh(build(full_size(opt_2_7b(), quantize={"language": "nf4"})))
    packed = sum(
        p.numel()
        for n, p in build(full_size(opt_2_7b())).named_parameters()
        if n.startswith("language_model") and "embed" not in n and "norm" not in n and p.ndim == 2
    )
    others = parts["language"].frozen - packed
    bits = (parts["language"].size - 2 * others) * 8 / packed
    assert bits == pytest.approx(4.127, abs=0.01)
    assert parts["language"].dtypes == ("bfloat16", "nf4")


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_packed_matrix_is_as_large_as_that_of_bitsandbytes(kind):
    functional = pytest.importorskip("bitsandbytes").functional
    weight = torch.randn(160, 192)
    if kind == "nf4":
        packed, state = functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
        nested = state.state2
        held = [packed, state.absmax, state.code, state.offset, nested.absmax, nested.code]
    else:
        held = functional.int8_vectorwise_quant(weight.half())[:2]
    assert packed_bytes(weight.numel(), 160, kind) == sum(t.nbytes for t in held)


@pytest.mark.parametrize("fixture", ["wide_folder", "t5_folder"])
def test_the_layers_that_are_packed_are_those_that_are_quantised(fixture, request):
    pytest.importorskip("bitsandbytes")
    folder = request.getfixturevalue(fixture)
    loaded, _ = load_captioner(folder, quantize={"language": "nf4"})
    planned = build(setup_of(folder, quantize={"language": "nf4"}))
    quantised = {n for n, m in loaded.named_modules() if type(m).__name__ == "Linear4bit"}
    assert {n for n, m in planned.named_modules() if isinstance(m, PackedLinear)} == quantised
    assert not any(name.endswith(".wo") for name in quantised)


def test_each_kind_of_adamw_is_planned_by_its_bytes():
    model = build(full_size(opt_2_7b()))
    held, paged = {}, {}
    for kind in KINDS:
        parts = weigh(model, kind).values()
        held[kind] = sum(part.averages for part in parts)
        paged[kind] = sum(part.paged for part in parts)
    trained = sum(part.trained for part in parts)
    assert (held["adamw"], paged["adamw"]) == (8 * trained, 0)
    assert held["adamw_8bit"] / trained == pytest.approx(2.04, abs=0.02)
    assert held["paged_adamw"] < 0.01 * trained
    assert held["paged_adamw"] + paged["paged_adamw"] == 8 * trained
    assert held["paged_adamw_8bit"] + paged["paged_adamw_8bit"] == held["adamw_8bit"]


def test_only_averages_on_the_gpu_count(opt_folder):
    how = {"accumulates": False, "processes": 1, "waiting": 0}
    plain, small = (
        memory_at(setup_of(opt_folder, optimizer=kind), TEXT, 1, **how)
        for kind in ("adamw", "adamw_8bit")
    )
    assert plain.total - plain.optimizer == small.total - small.optimizer
    assert small.optimizer <= plain.optimizer == 8 * plain.trained


EAGER = {"attention": {"vision": "eager", "qformer": "eager"}}
FROM_FEATURES = {"level": "vision", "parts": FULL | {"vision": "frozen"}}
FROM_QUERIES = {"level": "queries", "parts": dict.fromkeys(FULL, "frozen") | {"language": "lora"}}


@pytest.mark.parametrize(
    ("task", "changes"),
    [
        pytest.param("opt", {}, id="opt"),
        pytest.param("t5", {}, id="t5"),
        pytest.param("retrieval", {}, id="retrieval"),
        pytest.param("opt", EAGER, id="eager"),
        pytest.param("opt", FROM_FEATURES, id="features"),
        pytest.param("retrieval", FROM_FEATURES, id="retrieval-features"),
        pytest.param("opt", FROM_QUERIES, id="queries"),
    ],
)
def test_a_rehearsal_keeps_the_bytes_that_a_real_step_keeps(task, changes, request):
    folder = request.getfixturevalue(
        "retriever_folder" if task == "retrieval" else f"{task}_folder"
    )
    setup = setup_of(folder, "retrieval" if task == "retrieval" else "caption", **changes)
    for part in (setup.config.vision_config, setup.config.qformer_config, setup.config.text_config):
        for name in ("dropout", "dropout_rate", "attention_dropout", "hidden_dropout_prob"):
            if hasattr(part, name):
                setattr(part, name, 0.0)
        if hasattr(part, "attention_probs_dropout_prob"):
            part.attention_probs_dropout_prob = 0.0
    batch = longest_batch(setup, TEXT, 2)
    shapes, real = build(setup), build(setup).to_empty(device="cpu")
    loss = LOSSES[setup.task]
    for tensor in (*real.parameters(), *real.buffers()):
        tensor.data.zero_() if not tensor.is_floating_point() else tensor.data.fill_(0.01)
    pixels = torch.randn(batch["pixel_values"].shape)
    measured = saved_bytes(real, lambda: loss(real, {**batch, "pixel_values": pixels}))
    # the hooks see the rehearsal as they see the real pass
    planned = saved_bytes(shapes, lambda: rehearse(shapes, loss, batch, CudaLike(None)))
    assert planned == pytest.approx(measured, rel=0.02)


def test_the_gradients_of_a_rehearsal_are_those_of_all_trained_weights(opt_folder):
    setup = setup_of(opt_folder)
    model = build(setup)
    line = rehearse(model, LOSSES["caption"], longest_batch(setup, TEXT, 2), CudaLike(None))
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    made = line.sizes[(line.owners == line.parts.index(GRADIENTS)) & (line.sizes > 0)].sum()
    assert made == trained
    assert line.peak(accumulates=True).by_part[GRADIENTS] >= trained


@pytest.mark.parametrize("accumulates", [True, False])
@pytest.mark.parametrize(("task", "tokens"), [("caption", 12), ("caption", 40), ("retrieval", 12)])
def test_two_small_micro_batches_tell_the_peak_of_a_large_one(
    task, tokens, accumulates, opt_folder, retriever_folder
):
    # of 40 tokens the losses are computed in several chunks, more of them in larger batches
    setup, text = setup_of(opt_folder), TextLength(5, tokens)
    if task == "retrieval":
        setup = setup_of(retriever_folder, task)
    told = rehearse_sizes(setup, text).memory(7, accumulates=accumulates, processes=1)
    seen = memory_at(setup, text, 7, accumulates=accumulates, processes=1, waiting=0)
    assert told.total == pytest.approx(seen.total, rel=1e-3)


def test_eager_attention_keeps_the_scores(opt_folder):
    setup = setup_of(opt_folder, image_size=112)
    vision = setup.config.vision_config
    tokens = (112 // vision.patch_size) ** 2 + 1
    scores = 4 * 2 * vision.num_attention_heads * tokens**2 * vision.num_hidden_layers
    more = passing(replace(setup, attention={"vision": "eager"})) - passing(setup)
    assert 0.95 * scores < more < 1.5 * scores  # less what sdpa keeps: one number a row


def test_what_features_are_taken_for_is_neither_held_nor_computed(opt_folder):
    setup = setup_of(opt_folder, parts=FROM_QUERIES["parts"])
    plain, from_features, from_queries = (
        memory_at(replace(setup, level=level), TEXT, 2, accumulates=True, processes=1, waiting=0)
        for level in (None, "vision", "queries")
    )
    blocks = sum(
        p.nbytes for n, p in build(setup).named_parameters() if n.startswith("vision_model.encoder")
    )
    for memory in (from_features, from_queries):
        assert plain.parts["vision"].size - memory.parts["vision"].size == blocks
        assert memory.activations.get("vision", 0) <= plain.activations.get("vision", 0)
    assert from_queries.activations.get("qformer", 0) == 0
    assert from_features.loss != from_queries.loss  # the batch has what each takes


@pytest.mark.parametrize(("init", "times"), [("default", 1), ("pissa", 2)])
def test_a_start_from_the_weights_is_held_and_saved(wide_folder, tmp_path, init, times):
    parts, lora = {"language": "lora"}, LORA | {"r": 8, "init": init}
    planned = memory_at(
        setup_of(wide_folder, parts=dict.fromkeys(FULL, "frozen") | parts, lora=lora),
        *(TEXT, 1),
        **{"accumulates": False, "processes": 1, "waiting": 0},
    )
    model, _ = load_captioner(wide_folder)
    config = attach_lora(model, parts, **lora)
    set_trainable(model, parts)
    save_trained(model, tmp_path, config, {"base": "any"})
    saved = sum(t.numel() for t in load_file(tmp_path / "adapter_model.safetensors").values())
    assert saved == planned.saved == times * planned.trained
    assert planned.parts["language"].size == sum(
        p.nbytes for n, p in model.named_parameters() if n.startswith("language_model")
    )


def test_each_switch_takes_less(opt_folder):
    setup = setup_of(opt_folder, image_size=56)
    full = passing(setup)
    assert passing(replace(setup, checkpointing=("vision",))) < full
    assert passing(replace(setup, checkpointing=("language",))) < full
    assert passing(replace(setup, parts=FULL | {"vision": "frozen"})) < full
    assert passing(replace(setup, image_size=28)) < full
    lora = replace(setup, parts=FULL | {"vision": "lora"})
    assert sum(p.trained for p in weigh(build(lora)).values()) < sum(
        p.trained for p in weigh(build(setup)).values()
    )


def test_autocast_halves_activations_and_keeps_a_copy_of_trained_matrices(opt_folder):
    setup = setup_of(opt_folder)
    single = memory_at(setup, TEXT, 8, accumulates=True, processes=1, waiting=0)
    half = replace(setup, precision="bf16")
    mixed = memory_at(half, TEXT, 8, accumulates=True, processes=1, waiting=0)
    assert single.casts == 0
    assert 1.5 * mixed.trained < mixed.casts <= 2 * mixed.trained
    assert mixed.activations["vision"] < single.activations["vision"]
    assert mixed.parts["language"].size < 0.6 * single.parts["language"].size


def test_several_processes_hold_the_gradients_twice(opt_folder):
    one, two = (
        memory_at(setup_of(opt_folder), TEXT, 2, accumulates=True, processes=n, waiting=0)
        for n in (1, 2)
    )
    assert two.total - one.total == 4 * one.trained


def test_the_longest_text_is_that_of_the_settings_or_of_the_tokens_given(opt_folder):
    setup = setup_of(opt_folder)
    assert text_length(setup, "a photo of", 64, None) == TextLength(5, 64)
    assert text_length(setup, "a photo of", 64, 20) == TextLength(5, 15)
    with pytest.raises(ValueError, match=r"--tokens is 4, and the prompt alone takes about 5"):
        text_length(setup, "a photo of", 64, 4)


def test_a_gpu_is_a_size_or_a_name():
    assert read_gpu("24GB").size == 24 * 10**9
    assert read_gpu("22.5 GiB").size == int(22.5 * GIB)
    assert not read_gpu("T4").bf16
    with pytest.raises(ValueError, match=r"allowed is a size such as 24GB.*mean a100-40"):
        read_gpu("a100-4")
    with pytest.raises(ValueError, match=r"--gpu is '24'.*did you mean 24GB\?$"):
        read_gpu("24")
    with pytest.raises(ValueError, match=r"did you mean a100-40 or a100-80\?$"):
        read_gpu("A100")
