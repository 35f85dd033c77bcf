"""What is told of an image that was seen, from which sizes on."""

from dataclasses import replace

import pytest

from blip2ft.audit.faults import image_faults
from blip2ft.audit.looks import Look

GOOD = Look(digest="1", format="JPEG", mode="RGB", width=400, height=300)


def kinds(look: Look, name: str = "a.jpg", image_size: int = 224) -> list[str]:
    return [kind for kind, _ in image_faults(look, name, image_size)]


def test_of_a_good_image_nothing_is_told():
    assert kinds(GOOD) == []
    assert kinds(GOOD, "a.JPEG") == kinds(GOOD, "") == kinds(GOOD, "a.jpg.part") == []


def test_of_a_broken_image_only_that_is_told():
    look = replace(GOOD, fault="truncated", reason="cut", frames=3, width=1)
    assert list(image_faults(look, "a.png", 224)) == [("truncated", "cut")]


@pytest.mark.parametrize(("side", "told"), [(112, []), (111, ["tiny"])])
def test_tiny_is_less_than_half_of_what_the_model_reads(side, told):
    assert kinds(replace(GOOD, height=side)) == told
    assert kinds(replace(GOOD, width=side, height=side)) == told


@pytest.mark.parametrize(("width", "told"), [(1200, []), (1201, ["long-sided"])])
def test_sides_may_differ_four_times(width, told):
    assert kinds(replace(GOOD, width=width)) == told
    assert kinds(replace(GOOD, width=300, height=width)) == told


@pytest.mark.parametrize(
    ("changes", "name", "told"),
    [
        ({"blank": True}, "a.jpg", ["blank"]),
        ({"turned": True}, "a.jpg", ["rotated"]),
        ({"format": "PNG"}, "a.jpg", ["extension"]),
        ({"format": "MPO", "frames": 2}, "a.jpg", []),
        ({"format": "TIFF", "frames": 2}, "a.tif", []),
        ({"format": "GIF", "frames": 2, "mode": "P"}, "a.gif", ["animated"]),
        ({"mode": "CMYK"}, "a.jpg", ["mode"]),
        ({"mode": "L"}, "a.jpg", []),
        ({"format": "PNG", "mode": "I;16", "deep": True}, "a.png", ["mode"]),
        ({"format": "PNG", "mode": "P", "transparent": True}, "a.png", ["mode"]),
        ({"format": "PNG", "mode": "RGBA", "transparent": True}, "a.png", ["mode"]),
        ({"format": "PNG", "mode": "RGBA"}, "a.png", []),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_what_is_unusual_is_told(changes, name, told):
    assert kinds(replace(GOOD, **changes), name) == told
