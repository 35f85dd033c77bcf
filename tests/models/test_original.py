"""Files of the original are read as tensors alone, and nothing in them is passed over."""

import logging
import os
from pathlib import Path

import pytest
import torch
from transformers import Blip2Config

from blip2ft.models.original import compare, read_original, report_differences

GOLDEN = Path(__file__).parents[1] / "golden"


class Code:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrapped", [True, False])
def test_wrapped_and_bare_state_dicts_are_read(tmp_path, wrapped, zipped):
    state = {"query_tokens": torch.randn(1, 2, 3), "temp": torch.tensor(0.07)}
    content = {"model": state} if wrapped else state
    torch.save(content, tmp_path / "c.pth", _use_new_zipfile_serialization=zipped)
    read = read_original(tmp_path / "c.pth")
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], state[name]) for name in state)


def test_what_lies_beside_the_model_is_named(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    state = {"temp": torch.tensor(0.07)}
    torch.save({"model": state, "optimizer": {"state": {}}, "epoch": 4}, tmp_path / "c.pth")
    assert list(read_original(tmp_path / "c.pth")) == ["temp"]
    assert "it holds optimizer, epoch, left out" in caplog.text


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Code()}, "c.pth")
    with pytest.raises(ValueError, match=r"c\.pth holds code \(posix.mkdir\), which was not run"):
        read_original("c.pth")
    assert not Path("ran").exists()


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"\x80\x02}q\x01i"])
def test_what_torch_cannot_read_is_refused(tmp_path, content):
    (tmp_path / "c.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"c\.pth is no checkpoint of torch, or damaged \("):
        read_original(tmp_path / "c.pth")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_half_a_download_is_refused(tmp_path, share):
    whole = (GOLDEN / "stage1_a" / "lavis.pth").read_bytes()
    (tmp_path / "c.pth").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ValueError, match=r"or damaged \(.*\); download it again"):
        read_original(tmp_path / "c.pth")


def test_a_folder_or_no_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"is a folder, .* pass --to lavis"):
        read_original(tmp_path)
    with pytest.raises(ValueError, match=r"there is no file .*none\.pth"):
        read_original(tmp_path / "none.pth")


@pytest.mark.parametrize("content", [torch.zeros(2), {}, {"model": {}}, [1]])
def test_no_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "c.pth")
    with pytest.raises(ValueError, match="holds no state dict; it must be"):
        read_original(tmp_path / "c.pth")


@pytest.mark.parametrize("content", [{"model": {"epoch": 3}}, {"model": 3}, {"step": {}}])
def test_a_state_dict_of_other_things_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "c.pth")
    with pytest.raises(ValueError, match=r"holds a (int|dict) as '\w+' and no state dict"):
        read_original(tmp_path / "c.pth")


def differences(**changed):
    expected = {"a": torch.zeros(2, 3), "b": torch.zeros(()), "c": torch.zeros(1)}
    found = {name: t for name, t in (expected | changed).items() if t is not None}
    return compare(found, expected)


def test_equal_shapes_make_no_difference():
    assert differences() == ((), (), {})
    report_differences("x", differences(), allow_partial=False)


def test_each_tensor_that_does_not_fit_is_listed(caplog):
    found = differences(a=torch.zeros(3, 2), c=None, d=torch.zeros(1))
    assert found == (("c",), ("d",), {"a": ((3, 2), (2, 3))})
    with pytest.raises(
        ValueError,
        match=r"x: 1 tensors are missing, 1 unexpected and 1 misshapen .* such as missing c; check",
    ):
        report_differences("x", found, allow_partial=False)
    listed = [record.message for record in caplog.records]
    assert listed == [
        "missing     c",
        "unexpected  d",
        "misshapen   a: [3, 2], expected is [2, 3]",
    ]
    caplog.clear()
    report_differences("x", found, allow_partial=True)
    assert [record.message for record in caplog.records] == listed


def test_another_image_size_is_named():
    expected = {"visual_encoder.pos_embed": torch.zeros(1, 17, 8)}
    found = compare({"visual_encoder.pos_embed": torch.zeros(1, 26, 8)}, expected)
    with pytest.raises(ValueError, match="its images have 70 pixels: set image_size in the"):
        report_differences("x", found, False, Blip2Config(vision_config={"patch_size": 14}))


def test_a_vit_of_another_width_is_not_of_another_image_size():
    expected = {"visual_encoder.pos_embed": torch.zeros(1, 17, 8)}
    found = compare({"visual_encoder.pos_embed": torch.zeros(1, 26, 9)}, expected)
    with pytest.raises(ValueError, match="check that the config is this model's"):
        report_differences("x", found, False, Blip2Config())


def test_another_language_model_is_named():
    found = compare({"opt_proj.bias": torch.zeros(1)}, {"opt_proj.bias": torch.zeros(2)})
    with pytest.raises(ValueError, match="pass the language model that it was trained with"):
        report_differences("x", found, allow_partial=False)
