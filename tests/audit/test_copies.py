"""Copies within a split and across splits: each told once, beside the first of its kind."""

from pathlib import Path

import pytest
from pictures import encoded, picture
from PIL import Image

from blip2ft.audit.contents import Contents, Item
from blip2ft.audit.copies import copy_findings
from blip2ft.audit.looks import look_at


def found(**splits: list[object]) -> list[tuple[str, str, str, str]]:
    """Kind, split, origin and detail of what is found; each image is a number or its bytes."""
    contents = Contents()
    for split, images in splits.items():
        rows = contents.splits.setdefault(split, [])
        for line, image in enumerate(images, 1):
            data = image if isinstance(image, bytes) else encoded(picture(int(str(image))))
            number = contents.number(data, f"{split}:{line}")
            rows.append(Item(number, f"{split}:{line}", ()))
    looks = [look_at(p.image) for p in contents.pictures]
    told = copy_findings(contents, looks)
    return sorted((f.kind, f.split, f.origin, f.detail) for f in told)


def again(seed: int) -> bytes:
    return encoded(picture(seed).resize((192, 144)), quality=60)


def test_different_images_are_no_copies():
    assert found(train=list(range(20)), validation=[20, 21], test=[22]) == []


def test_each_further_copy_is_told_beside_the_first():
    assert found(train=[1, 2, 1, 1]) == [
        ("duplicate", "train", "train:3", "train:1"),
        ("duplicate", "train", "train:4", "train:1"),
    ]


def test_an_image_of_training_is_a_leak_elsewhere():
    assert found(train=[1, 2], validation=[3, 2], test=[1]) == [
        ("leak", "test", "test:1", "in train: train:1"),
        ("leak", "validation", "validation:2", "in train: train:2"),
    ]


def test_validation_and_test_may_not_share_an_image_either():
    assert found(train=[1], validation=[3], test=[4, 3]) == [
        ("shared", "test", "test:2", "in validation: validation:1"),
    ]
    assert found(a=[1], b=[1]) == [("shared", "b", "b:1", "in a: a:1")]


def test_what_looks_the_same_is_told_once():
    assert found(train=[1, 2, again(1)], test=[again(2), 3]) == [
        ("near-duplicate", "train", "train:3", "train:1"),
        ("near-leak", "test", "test:1", "in train: train:2"),
    ]


def test_a_leak_by_bytes_is_no_leak_by_looks_too():
    assert found(train=[1, again(1)], test=[1]) == [
        ("leak", "test", "test:1", "in train: train:1"),
        ("near-duplicate", "train", "train:2", "train:1"),
    ]


@pytest.mark.parametrize("broken", [b"", b"<html>404</html>", encoded(picture(1))[:400]])
def test_broken_images_are_no_copies(broken):
    assert found(train=[broken, broken], test=[broken]) == []


def test_images_of_one_colour_do_not_look_the_same():
    plain = [encoded(Image.new("RGB", (96, 72), (200, 200, shade))) for shade in (200, 205)]
    assert found(train=plain) == []
    assert found(train=[plain[0], plain[0]]) == [("duplicate", "train", "train:2", "train:1")]


def test_one_file_that_many_rows_name_is_no_copy(tmp_path: Path):
    (tmp_path / "a.jpg").write_bytes(encoded(picture(0)))
    contents = Contents()
    numbers = [contents.number(tmp_path / "a.jpg", f"x:{line}") for line in (1, 2)]
    contents.splits["train"] = [Item(n, f"x:{n}", ()) for n in numbers]
    assert numbers == [0, 0]
    assert list(copy_findings(contents, [look_at(tmp_path / "a.jpg")])) == []
