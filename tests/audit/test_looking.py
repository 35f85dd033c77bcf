"""All images are looked at, by any number of processes, and past one that kills its process."""

import os
from pathlib import Path

import pytest
from pictures import encoded, picture

import blip2ft.audit.looking
from blip2ft.audit.contents import Picture
from blip2ft.audit.looking import look_at_all
from blip2ft.audit.looks import Look, look_at


@pytest.fixture
def pictures(tmp_path: Path) -> list[Picture]:
    """A hundred images, of which the 40th and the 41st are named as deadly."""
    found = []
    for number in range(100):
        name = f"deadly-{number}.jpg" if number in (40, 41) else f"{number}.jpg"
        (tmp_path / name).write_bytes(encoded(picture(number)))
        found.append(Picture(tmp_path / name, name, f"x.csv:{number + 2}"))
    return found


def seen(pictures: list[Picture], numbers: list[int], workers: int) -> dict[int, Look]:
    told: list[tuple[int, Look]] = []
    for some, looks in look_at_all(pictures, numbers, workers):
        told += zip(some, looks, strict=True)
    assert len(dict(told)) == len(told)
    return dict(told)


@pytest.mark.parametrize("workers", [0, 2])
def test_each_of_the_asked_is_looked_at_once(pictures, workers):
    asked = [n for n in range(100) if n % 3]
    assert seen(pictures, asked, workers) == {n: look_at(pictures[n].image) for n in asked}


@pytest.mark.slow
def test_an_image_that_kills_its_process_is_told_and_the_others_are_looked_at(
    pictures, monkeypatch
):
    parent = os.getpid()

    def deadly(source):
        if "deadly" in source.name and os.getpid() != parent:
            os._exit(9)
        return look_at(source)

    monkeypatch.setattr(blip2ft.audit.looking, "look_at", deadly)
    looks = seen(pictures, list(range(100)), workers=2)
    faults = {number: look.fault for number, look in looks.items() if look.fault}
    assert faults == {40: "unreadable", 41: "unreadable"}
    assert looks[40].reason.startswith("the process that opened it died")
    assert looks[42] == look_at(pictures[42].image)


@pytest.mark.parametrize("workers", [0, 1])
def test_other_errors_are_raised(pictures, monkeypatch, workers):
    def fail(_):
        raise RuntimeError("no such thing")

    monkeypatch.setattr(blip2ft.audit.looking, "look_at", fail)
    with pytest.raises(RuntimeError, match="no such thing"):
        seen(pictures, [1, 2], workers)
