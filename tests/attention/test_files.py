"""The folder of a look."""

import json

import numpy as np
import pytest
from PIL import Image

from blip2ft.attention.files import write_look
from blip2ft.attention.look import Look


def seen_of(weighed: bool) -> Look:
    attention = np.random.default_rng(0).random((2, 3, 5, 4, 4), dtype=np.float32) / 16
    image = Image.new("RGB", (90, 60))
    if not weighed:
        return Look(image, attention, (0, 2))
    return Look(image, attention, (0, 2), "ein Hündchen", 0.5, "chance", attention * 2)


@pytest.mark.parametrize("weighed", [False, True])
def test_pictures_and_arrays_are_all_there(weighed, tmp_path):
    seen = seen_of(weighed)
    write_look(tmp_path / "dog", seen, {"image": "dog.jpg"})
    pictures = {"attention.png", "queries.png", "layers.png"} | ({"text.png"} if weighed else set())
    found = {path.name for path in (tmp_path / "dog").iterdir()}
    assert found == pictures | {"attention.npz", "attention.json"}
    for name in pictures:
        with Image.open(tmp_path / "dog" / name) as picture:
            picture.load()
            assert picture.format == "PNG"
    said = json.loads((tmp_path / "dog" / "attention.json").read_text(encoding="utf-8"))
    with np.load(tmp_path / "dog" / "attention.npz", allow_pickle=False) as arrays:
        expected = {"attention": seen.attention, "map": seen.map}
        if weighed:
            expected |= {"weighed": seen.weighed, "text_map": seen.text_map}
        assert set(arrays) == set(said["arrays"]) == set(expected)
        for name, array in expected.items():
            np.testing.assert_array_equal(arrays[name], array)
            assert arrays[name].dtype == np.float32
            assert said["arrays"][name]["shape"] == list(array.shape)
            assert len(said["arrays"][name]["axes"]) == array.ndim
    assert said["image"] == "dog.jpg"
    assert (said["size"], said["grid"], said["layers"]) == ([90, 60], [4, 4], [0, 2])
    assert (said["text"], said["score"]) == (("ein Hündchen", 0.5) if weighed else (None, None))


def test_a_look_is_never_overwritten_nor_left_in_part(tmp_path, monkeypatch):
    write_look(tmp_path / "dog", seen_of(False), {})
    with pytest.raises(ValueError, match="in use and is not overwritten"):
        write_look(tmp_path / "dog", seen_of(False), {})

    def fail(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(OSError, match="no space left"):
        write_look(tmp_path / "cat", seen_of(False), {})
    assert [path.name for path in tmp_path.iterdir()] == ["dog"]
