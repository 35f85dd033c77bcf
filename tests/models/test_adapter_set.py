"""Several adapters on one base: each answers as if it were alone, mixes by a formula, leaves."""

import copy
import json
import shutil
import threading
from pathlib import Path

import pytest
import torch
from PIL import Image

from blip2ft.captioner import caption
from blip2ft.data.batches import Sample, text_layout
from blip2ft.finetuned import load_mixed
from blip2ft.models.adapter_set import Adapters
from blip2ft.models.adapters import (
    attach_lora,
    describe_training,
    load_trained,
    merge_lora,
    save_trained,
    trainable_state,
)
from blip2ft.models.identity import identify
from blip2ft.models.load import load_captioner, load_retriever
from blip2ft.models.parts import set_trainable
from blip2ft.models.vqa import load_vqa

# name -> how the parts train, and LoRA's switches
KINDS = {
    "lora": ({"vision": "lora", "qformer": "full", "language": "lora"}, {"r": 2}),
    "pissa": ({"language": "lora", "projection": "full"}, {"r": 3, "init": "pissa"}),
    "dora": ({"vision": "lora", "language": "lora"}, {"r": 2, "dora": True, "rslora": True}),
    "full": ({"qformer": "full", "projection": "full"}, {}),
}


def train(model, folder, parts, seed, *, task="caption", base, image_size=28, **options) -> Path:
    """Save in `folder` what a short run of `model` might have learned."""
    torch.manual_seed(seed)
    lora = attach_lora(model, parts, **options)
    set_trainable(model, parts)
    with torch.no_grad():
        for tensor in trainable_state(model).values():
            tensor += 0.05 * torch.randn_like(tensor)
    description = describe_training(task, identify(str(base)), image_size=image_size)
    save_trained(model, folder, lora, description)
    return folder


@pytest.fixture(scope="module")
def base(opt_folder):
    return load_captioner(opt_folder)


@pytest.fixture(scope="module")
def batch(base):
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    batch = text_layout(*base, 8).collate([Sample(p, "a photo of", "a cat") for p in pixels])
    return {key: value for key, value in batch.items() if key != "labels"}


@pytest.fixture(scope="module")
def folders(base, opt_folder, tmp_path_factory):
    made = {}
    for seed, (name, (parts, options)) in enumerate(KINDS.items()):
        folder = tmp_path_factory.mktemp("adapters") / name
        made[name] = train(copy.deepcopy(base[0]), folder, parts, seed, base=opt_folder, **options)
    return made


@pytest.fixture
def adapters(base, folders):
    adapters = Adapters(copy.deepcopy(base[0]))
    for name, folder in folders.items():
        adapters.load(folder, name)
    return adapters


@torch.no_grad()
def logits(model, batch):
    return model(**batch).logits


def merged(base, folder):
    """The weights of the base with the adapter in `folder` alone."""
    model = copy.deepcopy(base[0])
    load_trained(model, folder)
    merge_lora(model)
    return model.state_dict()


def test_each_answers_as_if_it_were_alone_in_any_order(adapters, base, folders, batch):
    plain = logits(base[0], batch)
    assert torch.equal(logits(adapters.model, batch), plain)  # loading alone changes nothing
    for name in ("dora", "full", "lora", "pissa", None, "lora", "dora"):
        adapters.switch(name)
        if name is None:
            assert torch.equal(logits(adapters.model, batch), plain)
            continue
        alone = copy.deepcopy(base[0])
        load_trained(alone, folders[name])
        assert torch.equal(logits(adapters.model, batch), logits(alone.eval(), batch)), name
        assert adapters.active == {name: 1.0}


@pytest.mark.parametrize(
    "weights",
    [
        {"lora": 0.3, "pissa": 0.9},
        {"full": 0.5, "lora": 0.5},
        {"pissa": -1.0, "dora": 0.7, "lora": 0.4, "full": 0.25},
        {"dora": 0.5},
        {"lora": 2.0, "full": 0.0},
    ],
    ids=str,
)
def test_a_mix_is_the_weighted_sum_of_the_changes(adapters, base, folders, batch, weights):
    expected = copy.deepcopy(base[0])
    own = expected.state_dict()
    start = {name: tensor.clone() for name, tensor in own.items()}
    with torch.no_grad():
        for name, weight in weights.items():
            for key, tensor in merged(base, folders[name]).items():
                if key != "language_model.lm_head.weight":  # tied
                    own[key] += weight * (tensor - start[key])
    adapters.switch("dora")  # what was on before leaves no trace
    adapters.mix(weights)
    torch.testing.assert_close(
        logits(adapters.model, batch), logits(expected, batch), rtol=1e-4, atol=1e-4
    )


def test_without_adapters_it_is_the_base_bit_for_bit(adapters, base):
    adapters.mix({"lora": 0.5, "full": 0.5, "dora": 0.1})
    for name in list(KINDS):
        adapters.unload(name)
    assert adapters.active == {}
    assert adapters.names == []
    state, expected = adapters.model.state_dict(), base[0].state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in state.items():
        assert torch.equal(tensor, expected[name]), name
    assert [type(m) for m in adapters.model.modules()] == [type(m) for m in base[0].modules()]
    assert not hasattr(adapters.model, "peft_config")


def test_the_others_answer_on_when_one_is_unloaded(adapters, batch):
    adapters.switch("pissa")
    expected = logits(adapters.model, batch)
    adapters.unload("dora")
    adapters.unload("lora")
    assert torch.equal(logits(adapters.model, batch), expected)
    assert adapters.names == ["pissa", "full"]


def test_the_base_is_kept_once_and_adapters_share_nothing_else(adapters, folders):
    places = {place for held in adapters._adapters.values() for place in held.full}
    assert adapters._base_tensors.keys() == places
    adapters.switch("full")
    adapters.unload("full")
    assert "query_tokens" in adapters._base_tensors  # of "lora"
    adapters.unload("lora")
    assert "query_tokens" not in adapters._base_tensors


def test_answers_under_way_end_with_the_adapter_that_they_began_with(
    adapters, base, folders, batch
):
    expected = {}
    for name in ("lora", "full"):
        adapters.switch(name)
        expected[name] = logits(adapters.model, batch)
    inside, go_on, order = threading.Event(), threading.Event(), []

    def answer_slowly():
        with adapters.answering("lora"):
            inside.set()
            go_on.wait(30)
            order.append("answered")
            assert torch.equal(logits(adapters.model, batch), expected["lora"])

    def switch():
        adapters.switch("full")
        order.append("switched")

    threads = [threading.Thread(target=answer_slowly), threading.Thread(target=switch)]
    threads[0].start()
    assert inside.wait(30)
    threads[1].start()
    threads[1].join(0.2)
    assert order == []
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert order == ["answered", "switched"]
    assert torch.equal(logits(adapters.model, batch), expected["full"])


def test_many_threads_get_the_answers_of_the_adapter_that_each_asked_for(adapters, batch):
    names = [None, "lora", "dora", "pissa", "full"]
    expected = {}
    for name in names:
        adapters.switch(name)
        expected[name] = logits(adapters.model, batch)
    wrong: list[object] = []

    def ask(turn):
        for i in range(6):
            name = names[(turn + i) % len(names)]
            try:
                with adapters.answering(name or {}):
                    if not torch.equal(logits(adapters.model, batch), expected[name]):
                        wrong.append(name)
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=ask, args=(turn,)) for turn in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert not any(thread.is_alive() for thread in threads)


def test_a_change_within_an_answer_is_refused(adapters):
    with adapters.answering("lora"):
        with adapters.answering():
            assert adapters.active == {"lora": 1.0}
        with pytest.raises(RuntimeError, match=r"to be changed within `answering`.*leave its body"):
            adapters.switch("full")
        with pytest.raises(RuntimeError, match="to be changed within `answering`"):
            adapters.answering("full").__enter__()
    adapters.switch("full")


def test_adapters_of_other_bases_classes_and_sizes_change_nothing(
    adapters, base, folders, batch, opt_folder, tmp_path, request
):
    adapters.switch("lora")
    expected, names = logits(adapters.model, batch), adapters.names
    text = json.loads((folders["full"] / "blip2ft.json").read_text())
    said = {
        r"changed was trained on /other at abcdef012345, and .*opt.* is another: the weights": {
            "base": "/other",
            "revision": "abcdef0123456",
            "base_digest": "0",
        },
        r"changed was trained on .*opt.*, which has changed since: the weights differ": {
            "base_digest": "0"
        },
        r"trained on another base: its stage1 is '/bert', the model's None": {"stage1": "/bert"},
        r"trained for retrieval, on a Retriever; the model is a Blip2For": {"task": "retrieval"},
        r"trained for vqa, on a InstructBlipFor": {"task": "vqa"},
        r"trained at 42 px, the model is at 28 px; load the base with image_size=42": {
            "image_size": 42
        },
    }
    for message, change in said.items():
        folder = tmp_path / "changed"
        folder.mkdir(exist_ok=True)
        (folder / "blip2ft.json").write_text(json.dumps(text | change))
        with pytest.raises(ValueError, match=message):
            adapters.load(folder, "new")
    other = load_captioner(request.getfixturevalue("t5_folder"))[0]
    folder = train(other, tmp_path / "t5", {"language": "lora"}, 0, base=opt_folder, r=2)
    with pytest.raises(ValueError, match=r"doesn't fit .*lora_A.*has nothing of that name"):
        adapters.load(folder, "new")
    with pytest.raises(ValueError, match="an adapter 'full' is loaded already"):
        adapters.load(folders["full"], "full")
    assert torch.equal(logits(adapters.model, batch), expected)
    assert adapters.names == names


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"lora": float("nan")}, "the weight of adapter 'lora' is nan: allowed is a number"),
        ({"lora": 1, "full": float("inf")}, "the weight of adapter 'full' is inf"),
        ({"cats": 1.0}, r"there is no adapter 'cats'; loaded are 'lora', 'pissa', 'dora', 'full'"),
    ],
)
def test_weights_that_can_not_be_are_refused(adapters, weights, said):
    adapters.switch("pissa")
    with pytest.raises(ValueError, match=said):
        adapters.mix(weights)
    assert adapters.active == {"pissa": 1.0}


def test_a_dora_on_what_another_trained_in_full_is_not_mixed(base, opt_folder, tmp_path):
    dora = train(
        copy.deepcopy(base[0]), tmp_path / "a", {"qformer": "lora"}, 0, base=opt_folder, dora=True
    )
    full = train(copy.deepcopy(base[0]), tmp_path / "b", {"qformer": "full"}, 1, base=opt_folder)
    adapters = Adapters(copy.deepcopy(base[0]))
    adapters.load(dora, "dora")
    adapters.load(full, "full")
    with pytest.raises(ValueError, match="'dora' is a DoRA on weights that 'full' trained in full"):
        adapters.mix({"dora": 0.5, "full": 0.5})


def test_a_base_that_moved_is_the_same_base(base, folders, opt_folder, tmp_path):
    shutil.copytree(opt_folder, tmp_path / "moved")
    adapters = Adapters(load_captioner(tmp_path / "moved")[0])
    adapters.load(folders["lora"], "lora")
    assert adapters.names == ["lora"]


def test_a_model_must_be_known_by_name(base):
    model = copy.deepcopy(base[0])
    model.name_or_path = ""
    with pytest.raises(ValueError, match=r"what the model was loaded from isn't known; say it"):
        Adapters(model)


def test_a_model_with_a_lora_is_no_base(base):
    model = copy.deepcopy(base[0])
    attach_lora(model, {"language": "lora"})
    with pytest.raises(ValueError, match="has a LoRA already; start from the base, or merge it"):
        Adapters(model)


@pytest.mark.parametrize("task", ["retrieval", "vqa"])
def test_heads_temperature_and_the_other_classes_are_switched_too(
    task, retriever_folder, opt_folder, tmp_path
):
    folder = retriever_folder if task == "retrieval" else opt_folder
    stage1 = None if task == "retrieval" else str(retriever_folder)

    def load():
        if task == "retrieval":
            return load_retriever(folder)[0]
        return load_vqa(folder, stage1=stage1)[0]

    parts = {"vision": "lora", "qformer": "full", "projection": "full"}
    saved = train(load(), tmp_path / "a", parts, 0, task=task, base=folder)
    path = saved / "blip2ft.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"stage1": stage1}))
    model = load()
    adapters = Adapters(model, stage1=stage1)
    adapters.load(saved, "a")
    alone = load()
    load_trained(alone, saved)
    adapters.switch("a")
    state = model.state_dict()
    for name, tensor in alone.state_dict().items():
        assert torch.equal(state[name.replace("default", "adapter_1")], tensor), name
    adapters.unload("a")
    expected = load().state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_runs_are_loaded_and_mixed_in_one_call(folders, base):
    runs = {folders["lora"]: 0.5, folders["dora"]: 0.5}
    adapters, processor, description = load_mixed(runs)
    assert adapters.active == {str(folder): 0.5 for folder in runs}
    assert description["task"] == "caption"
    image = Image.new("RGB", (30, 20), "red")
    with adapters.answering():
        assert caption(adapters.model, processor, [image], max_new_tokens=3)
