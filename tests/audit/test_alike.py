"""Images that look the same are found, as comparing each with each finds them, and no others."""

import numpy as np
import pytest
from pictures import encoded, picture
from PIL import Image, ImageEnhance

import blip2ft.audit.alike
from blip2ft.audit.alike import LIKENESS, MEAN, MOST, alike_pairs, first_alike, patterns_of
from blip2ft.audit.looks import face_pixels, look_at


def pairs(faces: np.ndarray) -> set[tuple[int, int]]:
    found = [pair for a, b in alike_pairs(faces) for pair in zip(a, b, strict=True)]
    assert len(found) == len(set(found))
    return {(int(a), int(b)) for a, b in found}


def face(image: Image.Image, **options) -> np.ndarray:
    return face_pixels(look_at(encoded(image, **options)))


@pytest.mark.parametrize("block", [3, 16, 1024])
def test_the_search_finds_what_comparing_each_with_each_finds(monkeypatch, block):
    monkeypatch.setattr(blip2ft.audit.alike, "BLOCK", block)
    monkeypatch.setattr(blip2ft.audit.alike, "PAIRS", 5)
    rng = np.random.default_rng(0)
    first = np.stack([face(picture(seed)) for seed in range(30)])
    noise = rng.integers(-8, 9, (60, 216))
    faces = np.concatenate([first, np.clip(np.repeat(first, 2, 0) + noise, 0, 255)])
    faces = faces.astype(np.uint8)[rng.permutation(90)]
    patterns = patterns_of(faces)
    wanted = set()
    for i in range(90):
        for j in range(i + 1, 90):
            apart = np.abs(faces[i].astype(int) - faces[j])
            like = patterns[i] @ patterns[j] >= LIKENESS
            if apart.mean() <= MEAN and apart.max() <= MOST and like:
                wanted.add((i, j))
    assert len(wanted) > 20
    assert pairs(faces) == wanted


@pytest.mark.parametrize("seed", range(5))
def test_an_image_saved_or_scaled_anew_looks_the_same(seed):
    image = picture(seed)
    changed = [
        face(image, quality=40),
        face(image.resize((48, 36))),
        face(image.resize((300, 225)), format="WEBP"),
        face(ImageEnhance.Contrast(image).enhance(1.05)),
    ]
    found = pairs(np.stack([face(image), *changed, face(picture(seed + 100))]))
    assert {(0, 1), (0, 2), (0, 3), (0, 4)} <= found
    assert not any(5 in pair for pair in found)


def test_small_things_on_like_ground_are_not_the_same():
    ground = [Image.new("RGB", (96, 72), (160, 160, 170)) for _ in range(2)]
    ground[0].paste((120, 140, 150), (10, 10, 26, 26))
    ground[1].paste((120, 140, 150), (60, 40, 76, 56))
    faces = np.stack([face(image, format="PNG") for image in ground])
    assert np.abs(faces[0].astype(int) - faces[1]).mean() < MEAN
    assert pairs(faces) == set()
    assert pairs(faces[[0, 0]]) == {(0, 1)}


def test_one_face_or_none_has_no_pair():
    assert pairs(np.zeros((1, 216), np.uint8)) == set()


def test_the_first_alike_is_of_the_group_that_is_asked_for():
    one, other = face(picture(0)), face(picture(1))
    faces = np.stack([one, other, one, one, other])
    train = np.array([True, True, True, False, False])
    test = ~train
    found = first_alike(faces, {"train": train, "test": test}, {"both": ("test", "train")})
    assert found["train"].tolist() == [-1, -1, 0, -1, -1]
    assert found["test"].tolist() == [-1, -1, -1, -1, -1]
    assert found["both"].tolist() == [-1, -1, -1, 0, 1]


@pytest.mark.parametrize("kind", ["alike", "near"])
def test_of_many_that_come_near_each_is_compared_with_a_few(monkeypatch, kind):
    count, compared = 400, []
    same = blip2ft.audit.alike._same

    def counting(faces, patterns, first, second):
        compared.append(len(first))
        return same(faces, patterns, first, second)

    monkeypatch.setattr(blip2ft.audit.alike, "_same", counting)
    monkeypatch.setattr(blip2ft.audit.alike, "COMPARED", 10)
    monkeypatch.setattr(blip2ft.audit.alike, "BLOCK", 64)
    rng = np.random.default_rng(0)
    noise = rng.normal(0, {"alike": 1, "near": 10}[kind], (count, 216))
    faces = np.clip(face(picture(0)) + noise, 0, 255).astype(np.uint8)
    train = np.arange(count) < 300
    found = first_alike(faces, {"train": train, "test": ~train}, {"both": ("test", "train")})
    # in its group, and those of the test in the other: of all pairs there are 79,800
    assert sum(compared) <= 10 * (count + 100)
    if kind == "alike":
        assert np.flatnonzero(found["train"] == -1).tolist() == [0, *range(300, 400)]
        assert np.flatnonzero(found["test"] == -1).tolist() == [*range(301)]
        assert (found["both"][300:] >= 0).all()
        assert (found["both"] < 300).all()
        assert (found["train"][1:300] < np.arange(1, 300)).all()
    else:
        assert all((first == -1).all() for first in found.values())


def test_among_many_that_come_near_the_one_that_is_the_same_is_found(monkeypatch):
    monkeypatch.setattr(blip2ft.audit.alike, "COMPARED", 10)
    noise = np.random.default_rng(0).normal(0, 10, (200, 216))
    faces = np.clip(face(picture(0)) + noise, 0, 255).astype(np.uint8)
    faces[150] = faces[20]
    found = first_alike(faces, {"train": np.ones(200, bool)}, {})
    assert np.flatnonzero(found["train"] >= 0).tolist() == [150]
    assert found["train"][150] == 20
