"""Which weights a name stands for: told by their values, wherever and however they are kept."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from blip2ft.models.identity import check_base, identify, weight_files


@pytest.fixture
def folder(opt_folder, tmp_path):
    return shutil.copytree(opt_folder, tmp_path / "copy")


def change(folder, tensors):
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_a_copy_is_the_same_and_its_folder_is_told_in_full(opt_folder, folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    here, there = identify("copy"), identify(str(opt_folder))
    assert here.base_digest == there.base_digest
    assert here.base == str(folder.resolve())
    assert here.revision is None


def test_another_dtype_pickles_and_several_files_are_the_same_weights(opt_folder, folder):
    expected = identify(str(opt_folder)).base_digest
    state = load_file(folder / "model.safetensors")
    change(folder, {name: tensor.bfloat16() for name, tensor in state.items()})
    assert identify(str(folder)).base_digest == expected
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    assert identify(str(folder)).base_digest == expected
    (folder / "pytorch_model.bin").unlink()
    names = sorted(state)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, keys in halves.items():
        save_file({key: state[key] for key in keys}, folder / file)
    table = {key: file for file, keys in halves.items() for key in keys}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": table}))
    assert [path.name for path in weight_files(str(folder))] == ["a.safetensors", "b.safetensors"]
    assert identify(str(folder)).base_digest == expected


def test_other_names_and_tied_weights_written_twice_are_the_same_weights(opt_folder, folder):
    state = load_file(folder / "model.safetensors")
    twice = {f"model.{name}": tensor for name, tensor in state.items()}
    embedding = next(name for name in twice if name.endswith("embed_tokens.weight"))
    torch.save({**twice, "lm_head.weight": twice[embedding]}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert identify(str(folder)).base_digest == identify(str(opt_folder)).base_digest


@pytest.mark.parametrize("what", ["value", "shape"])
def test_other_weights_are_told_apart(opt_folder, folder, what):
    state = load_file(folder / "model.safetensors")
    name = "language_model.model.decoder.layers.1.fc2.weight"
    tensor = state.pop(name)
    if what == "value":
        state[name] = tensor * 1.01
    else:
        state[name] = tensor[None]
    change(folder, state)
    assert identify(str(folder)).base_digest != identify(str(opt_folder)).base_digest


def test_a_hub_id_is_pinned_to_its_commit(opt_folder, tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "models--some--model"
    shutil.copytree(opt_folder, repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = identify("some/model")
    assert (found.base, found.revision) == ("some/model", commit)
    assert found.base_digest == identify(str(opt_folder)).base_digest
    recorded = {"base": "some/model", "revision": commit, "base_digest": "0"}
    said = "r was trained on some/model at 0123456789ab, which has changed since: the weights"
    with pytest.raises(ValueError, match=said):
        check_base("r", recorded, "some/model")


def test_a_base_is_checked_by_its_weights(opt_folder, t5_folder):
    recorded = {"base": "/gone", "base_digest": identify(str(opt_folder)).base_digest}
    check_base("run", recorded, str(opt_folder))
    check_base("run", {"base": "/gone"}, str(t5_folder))  # nothing is known
    with pytest.raises(ValueError, match=r"run was trained on /gone, and .*t5.* is another: "):
        check_base("run", recorded, str(t5_folder))


def test_a_folder_without_weights_is_named(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="copy holds no weights; download or export the model"):
        identify(str(folder))
