"""What was pushed is loaded by its name on the hub, with the base that it was trained on."""

import json
import shutil
import types
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from peft import PeftModel
from transformers import Blip2ForConditionalGeneration

import blip2ft
from blip2ft.finetuned import load_finetuned, load_mixed
from blip2ft.models.adapters import attach_lora, describe_training, save_trained
from blip2ft.models.hub_adapter import holds_adapter, is_on_hub, read_notes
from blip2ft.models.identity import identify
from blip2ft.models.load import load_retriever
from blip2ft.models.parts import PARTS, set_trainable


@pytest.fixture(autouse=True)
def card(monkeypatch):
    made = types.SimpleNamespace(text="---\nlicense: mit\n---\n", missing=[])
    monkeypatch.setattr("blip2ft.publish.outgoing.model_card", lambda *_: made)


def files_of(folder):
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture
def base(hub, opt_folder):
    """The base of `run_folder`, on the hub; its commit."""
    repo = hub.put("anna/base", files_of(opt_folder))
    return repo.branches["main"][-1].oid


@pytest.fixture
def birds(hub, base, run_folder, push):
    """`run_folder` on the hub."""
    status, _, err = push(run_folder, "--base-repo", "anna/base")
    assert (status, err) == (0, "")
    return hub.repos["anna/birds"]


@pytest.fixture
def captions_of(blip2ft_main, photo_folder):
    def call(*options):
        status, out, err = blip2ft_main("caption", photo_folder / "photo0.jpg", *options)
        assert status == 0, err
        return json.loads(out)["caption"]

    return call


def test_a_pushed_adapter_captions_as_its_run_does(birds, captions_of, run_folder, opt_folder):
    caption = captions_of("--adapter", run_folder)
    assert caption != captions_of("--model", opt_folder)
    assert captions_of("--model", "anna/birds") == caption
    assert captions_of("--adapter", "anna/birds") == caption
    assert captions_of("--adapter", "anna/birds", "--model", opt_folder) == caption


def test_the_base_is_pinned_to_its_commit(hub, birds, base, captions_of, run_folder):
    description = json.loads(birds.files["blip2ft.json"])
    assert (description["base"], description["revision"]) == ("anna/base", base)
    settings = json.loads(birds.files["adapter_config.json"])
    assert settings["base_model_name_or_path"] == "anna/base"
    assert settings["revision"] == base
    hub.put("anna/base", {"model.safetensors": b"another"}, "Changed")
    assert captions_of("--model", "anna/birds") == captions_of("--adapter", run_folder)


def test_a_revision_is_that_of_the_adapter(hub, birds, captions_of):
    first = birds.branches["main"][-1].oid
    caption = captions_of("--model", "anna/birds")
    hub.put("anna/birds", {"blip2ft.json": b"{"}, "Damaged")
    for options in (
        ("--model", "anna/birds", "--revision", first),
        ("--adapter", f"anna/birds@{first}"),
    ):
        assert captions_of(*options) == caption


def test_python_loads_it_alike(birds, run_folder):
    model, _, description = blip2ft.load_finetuned("anna/birds")
    expected, _, _ = load_finetuned(run_folder)
    assert description["prompt"] == "the photo of"
    for name, parameter in expected.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), parameter, rtol=0, atol=0)
    adapters, _, _ = load_mixed({"anna/birds": 0.5, str(run_folder): 0.5})
    assert adapters.active == {"anna/birds": 0.5, str(run_folder): 0.5}


def test_other_commands_take_it_too(birds, blip2ft_main, run_folder, photo_folder, tmp_path):
    asked = ("ask", photo_folder / "photo0.jpg", "a cat", "--prompt", "a {} on")
    expected = blip2ft_main(*asked, "--adapter", run_folder)
    assert expected[0] == 0
    assert blip2ft_main(*asked, "--model", "anna/birds") == expected
    status, out, _ = blip2ft_main("inspect", "anna/birds")
    assert status == 0
    assert "model            anna/base\ntrained weights  anna/birds\n" in out
    status, _, err = blip2ft_main("export", "anna/birds", "--out", tmp_path / "out")
    assert (status, err) == (0, "")
    assert (tmp_path / "out" / "config.json").is_file()


def test_what_was_loaded_once_needs_no_network(hub, birds, captions_of, monkeypatch):
    caption = captions_of("--model", "anna/birds")
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert captions_of("--model", "anna/birds") == caption
    assert hub.requests == []


def test_a_merged_model_is_loaded_with_its_prompt_and_decoding(
    hub, run_folder, push, captions_of, tmp_path
):
    status, _, err = push(run_folder, "--merged")
    assert (status, err) == (0, "")
    sent = hub.repos["anna/birds"].files
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= set(sent)
    assert not {name for name in sent if "adapter" in name or "trained" in name}
    assert "Model for caption" in hub.repos["anna/birds"].branches["main"][-1].title
    assert captions_of("--model", "anna/birds") == captions_of("--adapter", run_folder)
    assert read_notes("anna/birds")["prompt"] == "the photo of"
    assert not holds_adapter("anna/birds")


def test_a_merged_dry_run_needs_no_network(hub, run_folder, push, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    status, out, err = push(run_folder, "--merged", "--base-repo", "anna/base", "--dry-run")
    assert (status, err) == (0, "")
    assert "  model.safetensors\n" in out
    assert hub.requests == []


def test_a_base_that_is_gone_is_merged_from_the_hub(hub, base, run_folder, push, tmp_path):
    run = Path(shutil.copytree(run_folder, tmp_path / "run"))
    path = run / "adapter" / "blip2ft.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base": "/models/gone"}))
    status, _, err = push(run, "--merged")
    assert status == 2
    assert "was trained on /models/gone, which isn't there" in err
    assert push(run, "--merged", "--base-repo", "anna/base")[0] == 0
    assert json.loads(hub.repos["anna/birds"].files["blip2ft.json"])["base"] == "anna/base"


def test_a_merged_push_that_broke_off_sends_no_weight_twice(hub, run_folder, push):
    hub.fail("POST .*/commit/main", 500)
    assert push(run_folder, "--merged")[0] == 2
    assert push(run_folder, "--merged")[0] == 0
    assert len(hub.sent) == 1


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft's own
def test_peft_loads_the_lora_of_it(hub, birds, run_folder, opt_folder, tmp_path):
    for name, content in birds.files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    stock = Blip2ForConditionalGeneration.from_pretrained(opt_folder)
    theirs = PeftModel.from_pretrained(stock, tmp_path).get_base_model()
    ours, _, _ = load_finetuned(run_folder)
    mine = dict(ours.named_parameters())
    lora = [name for name, _ in theirs.named_parameters() if ".lora_" in name]
    assert len(lora) == len([name for name in mine if ".lora_" in name]) > 0
    for name in lora:
        torch.testing.assert_close(theirs.get_parameter(name), mine[name], rtol=0, atol=0)
    # what was trained in full isn't in peft's files
    projection = theirs.language_projection.weight
    assert not torch.equal(projection, mine["language_projection.weight"])


def test_another_model_is_not_taken_for_the_base(hub, run_folder, t5_folder, push):
    hub.put("anna/other", files_of(t5_folder))
    status, _, err = push(run_folder, "--base-repo", "anna/other")
    assert (status, err.count("\n")) == (2, 1)
    assert "and anna/other is another: the weights differ" in err
    assert "anna/birds" not in hub.repos


def test_a_base_that_is_not_there_is_told(hub, run_folder, push):
    status, _, err = push(run_folder, "--base-repo", "anna/gone")
    assert (status, err.count("\n")) == (2, 1)
    assert "can't load 'anna/gone'" in err


@pytest.mark.parametrize("option", ["--model", "--adapter"])
def test_a_name_that_is_not_there_is_told(hub, blip2ft_main, photo_folder, option):
    status, _, err = blip2ft_main("caption", photo_folder / "photo0.jpg", option, "anna/gone")
    assert (status, err.count("\n")) == (2, 1)
    assert "can't load 'anna/gone': it is no folder here, and the hub gave no such model" in err


def test_a_revision_that_is_not_there_is_told(birds, blip2ft_main, photo_folder):
    for options in (("--model", "anna/birds", "--revision", "v9"), ("--adapter", "anna/birds@v9")):
        status, _, err = blip2ft_main("caption", photo_folder / "photo0.jpg", *options)
        assert (status, err.count("\n")) == (2, 1)
        assert "can't load 'anna/birds" in err


def test_a_repository_without_trained_weights_is_told(hub, base):
    with pytest.raises(ValueError, match=r"anna/base on the hub has no blip2ft.json, so it holds"):
        load_finetuned("anna/base")


def test_a_description_of_others_is_told(hub):
    hub.put("anna/odd", {"blip2ft.json": b'{"task": "caption"}'})
    with pytest.raises(ValueError, match=r"anna/odd: its blip2ft.json lacks base, image_size"):
        load_finetuned("anna/odd")


def test_a_connection_that_breaks_off_is_told(hub):
    hub.fail("HEAD .*", times=9)
    with pytest.raises(ValueError, match=r"connection to the hub broke off .* run the same"):
        load_finetuned("anna/birds")


def test_offline_only_what_was_loaded_before_is_there(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"can't load 'anna/birds': .* HF_HUB_OFFLINE"):
        load_finetuned("anna/birds")


def test_a_missing_folder_is_not_looked_for_on_the_hub(hub, tmp_path, monkeypatch):
    (tmp_path / "runs" / "birds").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"there is no folder runs/brids\. Did you mean 'birds'"):
        load_finetuned("runs/brids")
    assert not hub.requests
    assert not is_on_hub("runs/birds")
    assert not is_on_hub("/runs/birds")
    assert not is_on_hub("a/b/c")
    assert is_on_hub("anna/birds@refs/pr/1")


def test_photos_are_indexed_and_found_with_a_pushed_retriever(
    hub, retriever_folder, photo_folder, push, blip2ft_main, tmp_path
):
    run = make_retrieval_run(tmp_path / "run", retriever_folder)
    hub.put("anna/finder-base", files_of(retriever_folder))
    status, _, err = push(run, "--base-repo", "anna/finder-base")
    assert (status, err) == (0, "")
    found = []
    for name, model in (("hub", "anna/birds"), ("here", run), ("base", retriever_folder)):
        index = tmp_path / f"{name}.index"
        status, out, err = blip2ft_main("index", photo_folder, "--out", index, "--model", model)
        assert status == 0, err
        assert "8 photos added" in out
        status, out, err = blip2ft_main("search", index, "a red apple")
        assert status == 0, err
        found.append(out)
    assert found[0] == found[1] != found[2]


def test_an_index_needs_a_retriever(birds, blip2ft_main, photo_folder, tmp_path):
    status, _, err = blip2ft_main(
        "index", photo_folder, "--out", tmp_path / "index", "--model", "anna/birds"
    )
    assert (status, err.count("\n")) == (2, 1)
    assert "was trained for caption, and doesn't compare images with texts" in err


def test_an_index_keeps_to_the_image_size_of_the_run(
    retriever_folder, photo_folder, blip2ft_main, tmp_path
):
    run = make_retrieval_run(tmp_path / "run", retriever_folder)
    options = ("--out", tmp_path / "index", "--model", run, "--image-size", 42)
    status, _, err = blip2ft_main("index", photo_folder, *options)
    assert status == 2
    assert "was trained at 28 px, not 42; leave the image size out" in err


def make_retrieval_run(run, base):
    model, _ = load_retriever(base, objectives={"itc": 1.0, "itm": 1.0})
    parts = dict.fromkeys(PARTS, "frozen") | {"qformer": "lora", "projection": "full"}
    lora = attach_lora(model, parts, r=2)
    set_trainable(model, parts)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    description = describe_training(
        "retrieval",
        identify(str(base)),
        image_size=28,
        parts=parts,
        objectives={"itc": 1.0, "itm": 1.0},
        max_text_tokens=16,
    )
    run.mkdir()
    settings = "output: run\ndata: {test: null}\ntrain: {best_metric: mean_recall}\n"
    (run / "config.yaml").write_text(settings)
    save_trained(model, run / "adapter", lora, description)
    return run
