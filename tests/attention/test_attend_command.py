"""blip2ft attend."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_each_image_gets_a_folder_and_a_line(blip2ft_main, opt_folder, photo_folder, tmp_path):
    (tmp_path / "more" / "photos").mkdir(parents=True)
    for name in ("photo0.jpg", "photo1.jpg"):
        shutil.copy(photo_folder / name, tmp_path / "more" / "photos")
    Image.new("RGB", (300, 20), "red").save(tmp_path / "photo1.png")
    status, out, err = blip2ft_main(
        *("attend", tmp_path / "photo1.png", tmp_path / "more", "--model", opt_folder),
        *("--out", tmp_path / "seen"),
    )
    assert (status, err) == (0, "")
    assert names(tmp_path / "seen") == ["photo0", "photo1", "photo1-2"]
    lines = out.splitlines()
    assert len(lines) == 3
    said = (
        rf"{tmp_path}/photo1\.png: {tmp_path}/seen/photo1, looks most at \d+ % across, \d+ % down"
    )
    assert re.fullmatch(said, lines[0])
    assert "text.png" not in names(tmp_path / "seen" / "photo1")
    said = json.loads((tmp_path / "seen" / "photo1" / "attention.json").read_text())
    assert said["size"] == [300, 20]
    assert said["image"] == str(tmp_path / "photo1.png")


@pytest.mark.parametrize("kind", ["opt", "t5", "retriever"])
def test_a_text_is_weighed(kind, blip2ft_main, request, photo_folder, tmp_path):
    model = request.getfixturevalue(f"{kind}_folder")
    status, out, err = blip2ft_main(
        *("attend", photo_folder / "photo0.jpg", "--text", "a red apple", "--model", model),
        *("--out", tmp_path / "seen"),
    )
    assert (status, err) == (0, "")
    meant = {"retriever": "probability of a match"}.get(kind, "mean probability of its tokens")
    assert re.search(rf", for the text at \d\d % across, \d\d % down \({meant} [\d.e-]+\)$", out)
    assert "text.png" in names(tmp_path / "seen" / "photo0")


def test_an_adapter_is_looked_through_with_its_own_prompt(
    blip2ft_main, opt_folder, run_folder, photo_folder, tmp_path
):
    given = ("attend", photo_folder / "photo0.jpg", "--text", "a cat")
    ways = {
        "run": ("--adapter", run_folder),
        "base": ("--model", opt_folder, "--prompt", "the photo of"),
        "other": ("--adapter", run_folder, "--prompt", "a photo of"),
    }
    maps = {}
    for name, way in ways.items():
        status, _, err = blip2ft_main(*given, *way, "--out", tmp_path / name)
        assert (status, err) == (0, "")
        with np.load(tmp_path / name / "photo0" / "attention.npz") as arrays:
            maps[name] = arrays["text_map"]
    said = json.loads((tmp_path / "run" / "photo0" / "attention.json").read_text())
    assert said["adapter"] == [str(run_folder)]
    assert not np.allclose(maps["run"], maps["base"])
    assert not np.allclose(maps["run"], maps["other"])


def test_a_broken_image_is_told_and_the_rest_drawn(
    blip2ft_main, opt_folder, photo_folder, tmp_path
):
    whole = (photo_folder / "photo0.jpg").read_bytes()
    (tmp_path / "broken.jpg").write_bytes(whole[:200])
    status, out, err = blip2ft_main(
        *("attend", tmp_path / "broken.jpg", photo_folder / "photo0.jpg", "--model", opt_folder),
        *("--out", tmp_path / "seen"),
    )
    assert status == 2
    assert re.search(r"error: \S+broken\.jpg: .*\nerror: 1 of 2 images couldn't be read\n", err)
    assert len(out.splitlines()) == 1
    assert names(tmp_path / "seen") == ["photo0"]


def test_what_is_wrong_is_told_before_anything_is_written(
    blip2ft_main, opt_folder, photo_folder, tmp_path
):
    photo, out = photo_folder / "photo0.jpg", tmp_path / "seen"
    wrong = {
        "say which model: --model ID_OR_FOLDER, or --adapter RUN": (photo, "--out", out),
        "there is no image at": (tmp_path / "no.jpg", "--model", opt_folder, "--out", out),
        "is in use and is not overwritten": (photo, "--model", opt_folder, "--out", photo_folder),
        "did you mean --model?": (photo, "--modle", opt_folder, "--out", out),
        "required: --out": (photo, "--model", opt_folder),
        "points at nothing": (photo, "--model", opt_folder, "--out", out, "--text", ""),
    }
    for message, given in wrong.items():
        status, _, err = blip2ft_main("attend", *given)
        assert status == 2
        assert message in err
        assert not out.exists()
