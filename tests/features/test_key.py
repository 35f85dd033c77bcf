"""What decides whether kept features are those of a model and an image."""

import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from blip2ft.data.images import EvalTransform, TrainTransform
from blip2ft.data.tar import Part
from blip2ft.features.key import Key, image_digest, transform_words, weights_digest

KEY = Key("vision", "ab", "28 px", "fp32", "bf16", (5, 32), "a model")
NORMAL = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.mark.parametrize(
    "change",
    [
        {"level": "queries"},
        {"weights": "ac"},
        {"transform": "56 px"},
        {"precision": "bf16"},
        {"dtype": "fp32"},
        {"shape": (17, 32)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_key_is_another_folder(change):
    assert replace(KEY, **change).name != KEY.name


def test_the_models_name_decides_nothing():
    assert replace(KEY, model="the same, moved").name == KEY.name


def test_another_transformers_computes_anew(monkeypatch):
    before = KEY.name
    monkeypatch.setattr("transformers.__version__", "0")
    assert KEY.name != before


def test_weights_differ_by_one_bit_by_name_dtype_and_shape():
    weight = torch.zeros(2, 3)
    changed = weight.clone()
    changed[1, 2] = 1e-45
    others = [
        [("a", changed)],
        [("b", weight)],
        [("a", weight.T)],
        [("a", weight.half())],
        [("a", weight), ("b", torch.tensor(0))],
    ]
    found = {weights_digest({}, tensors) for tensors in [[("a", weight)], *others]}
    assert len(found) == 6


def test_of_a_config_all_but_its_past_counts():
    config = {"layer_norm_eps": 1e-6, "inner": {"dtype": "float32", "size": 1}}
    same = {"layer_norm_eps": 1e-6, "inner": {"dtype": "bfloat16", "size": 1}, "model_type": "x"}
    other = {"layer_norm_eps": 1e-5, "inner": {"size": 1}}
    assert weights_digest(config, []) == weights_digest(same, [])
    assert weights_digest(config, []) != weights_digest(other, [])


def test_the_two_transforms_decode_differently_so_their_words_differ():
    plain = TrainTransform(28, *NORMAL, scale=None, flip=False)
    words = [transform_words(plain), transform_words(EvalTransform(28, *NORMAL))]
    words += [transform_words(replace(plain, size=56))]
    words += [transform_words(replace(plain, mean=(0.5, 0.5, 0.50001)))]
    assert len(set(words)) == 4


@pytest.mark.parametrize(
    "augmented",
    [{"scale": None, "flip": True}, {"scale": (0.5, 1.0), "flip": False}],
    ids=["flip", "crop"],
)
def test_augmented_images_are_refused(augmented):
    with pytest.raises(ValueError, match=r"set data\.crop_scale to null and data\.flip to false"):
        transform_words(TrainTransform(28, *NORMAL, **augmented))


def test_a_file_is_another_after_any_change(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"one")
    first = image_digest(path)
    assert image_digest(str(path)) == first
    os.utime(path, ns=(0, 12345))
    touched = image_digest(path)
    path.write_bytes(b"longer")
    os.utime(path, ns=(0, 12345))
    other = tmp_path / "b.jpg"
    other.write_bytes(b"longer")
    os.utime(other, ns=(0, 12345))
    assert len({first, touched, image_digest(path), image_digest(other)}) == 4
    assert all(len(digest) == 32 for digest in (first, touched))


def test_a_copy_in_the_same_place_is_the_same(tmp_path):
    """As where each job unpacks the data on its node: inode and ctime are others."""
    path = tmp_path / "a.jpg"
    path.write_bytes(b"one")
    first = image_digest(path)
    shutil.copy2(path, tmp_path / "copy")
    path.unlink()
    (tmp_path / "copy").rename(path)
    path.chmod(0o600)
    assert image_digest(path) == first


def test_bytes_and_rows_are_what_they_hold(tmp_path):
    class Row:
        def read(self):
            return b"one"

    assert image_digest(b"one") == image_digest(Row()) != image_digest(b"two")


def test_parts_of_a_tar_differ_by_their_place(tmp_path):
    tar = tmp_path / "a.tar"
    tar.write_bytes(np.arange(64, dtype=np.uint8).tobytes())
    found = {image_digest(Part(tar, offset, 8)) for offset in (0, 8)}
    assert len(found) == 2
    os.utime(tar, ns=(0, 12345))
    assert image_digest(Part(tar, 0, 8)) not in found


def test_a_file_that_isnt_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.jpg: can't be read \(No such file"):
        image_digest(tmp_path / "gone.jpg")
