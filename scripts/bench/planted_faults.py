"""A folder of small images with captions in three splits, and in it faults of every kind."""

import csv
import io
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

SIDES = (96, 72)  # pixels of an ordinary image
EACH = 1000  # images with one fault of each kind among them
SCORED = 60  # images of validation and test, at least
WORDS = (
    "old red tall quiet wooden bright small heavy round striped",
    "dog lamp tree boat horse bridge child window kettle bicycle",
    "stands leans waits rests sleeps hangs turns shines falls sits",
    "behind near under above beside before on inside past beyond",
    "the a one this that her his their some another",
    "grey sunny narrow empty busy muddy frozen golden broken green",
    "street harbour garden kitchen meadow market river station hill roof",
)


class Planted(NamedTuple):
    """A fault: its kind, as `check` calls it, and the line on which its row begins."""

    kind: str
    split: str
    line: int


class Folder:
    """The folder while it is made: the rows of each split, and what was planted."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.rng = np.random.default_rng(seed)
        self.rows: dict[str, list[list[str]]] = {"train": [], "validation": [], "test": []}
        self.lines = dict.fromkeys(self.rows, 2)  # below the names of the columns
        self.planted: list[Planted] = []

    def add(self, split: str, *kinds: str, name: str = "", text: str | None = None) -> str:
        """A row with these faults, and an ordinary image and text where none is given."""
        if not name:
            name = f"{split}/{len(self.rows[split]):06d}.jpg"
            self.write(name, self.encoded(self.image()))
        self.add_row(split, kinds, [name, self.text() if text is None else text])
        return name

    def add_row(self, split: str, kinds: tuple[str, ...], cells: list[str]) -> None:
        """A row of the split's table; a cell may have several lines."""
        self.planted += [Planted(kind, split, self.lines[split]) for kind in kinds]
        self.rows[split].append(cells)
        self.lines[split] += 1 + sum(cell.count("\n") for cell in cells)

    def write(self, name: str, data: bytes) -> str:
        """A file in the folder."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return name

    def image(self, size: tuple[int, int] = SIDES) -> Image.Image:
        """Soft patches of random colours, no two alike."""
        patches = self.rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        return Image.fromarray(patches).resize(size, Image.Resampling.BICUBIC)

    def text(self) -> str:
        """A sentence of random words."""
        chosen = [words.split()[self.rng.integers(10)] for words in WORDS]
        adjective, noun, does, where, article, other, place = chosen
        return f"the {adjective} {noun} {does} {where} {article} {other} {place}"

    @staticmethod
    def encoded(image: Image.Image, format: str = "JPEG", **options: object) -> bytes:
        """The bytes of an image file."""
        data = io.BytesIO()
        image.save(data, format, **options)
        return data.getvalue()


def make_folder(folder: Path, images: int, seed: int) -> list[Planted]:
    """Write train.csv, validation.csv and test.csv with `images` images; every fault in them.

    All faults are there once for each `EACH` images, and once at least.
    """
    made = Folder(folder, seed)
    for number in range(max(1, images // EACH)):
        plant_images(made, f"odd-{number}")
        plant_places(made, f"odd-{number}")
        plant_copies(made, f"copies-{number}")
        plant_texts(made)
        plant_rows(made)
        plant_ordinary(made, f"kinds-{number}")
    scored = max(SCORED, images // 20)
    for split in ("validation", "test"):
        while len(made.rows[split]) < scored:
            made.add(split)
    repeated = max(12, images // 80)
    for number in range(repeated):
        kinds = ("repeated",) if number == 0 else ()
        made.add("train", *kinds, text="a nice photo of something")
    while sum(map(len, made.rows.values())) < images:
        made.add("train")
    for split, rows in made.rows.items():
        with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([["image", "caption"], *rows])
    return made.planted


def plant_images(made: Folder, folder: str) -> None:
    """Files that are images with something about them, or look so only."""
    jpeg, png = (made.encoded(made.image(), kind) for kind in ("JPEG", "PNG"))
    webp, gif = (made.encoded(made.image(), kind) for kind in ("WEBP", "GIF"))
    tiff = made.encoded(made.image(), "TIFF", compression="tiff_lzw")
    damaged = bytearray(png)
    damaged[len(png) // 2 : len(png) // 2 + 20] = bytes(20)
    frames = [made.image() for _ in range(3)]
    several = {"save_all": True, "append_images": frames[1:]}
    turned = Image.Exif()
    turned[0x0112] = 6
    deep = np.asarray(made.image().convert("L")).astype(np.uint16) * 257
    width, height = SIDES
    colours = b"".join(b"\0" + made.rng.bytes(6 * width) for _ in range(height))
    clear = made.image().quantize(16)
    rgba = made.image().convert("RGBA")
    rgba.putpixel((3, 3), (0, 0, 0, 0))
    files: list[tuple[str, bytes, str]] = [
        ("empty.jpg", b"", "empty"),
        ("cut.jpg", jpeg[: len(jpeg) // 2], "truncated"),
        ("cut.png", png[: len(png) // 2], "truncated"),
        ("cut.webp", webp[: len(webp) // 2], "truncated"),
        ("cut.gif", gif[: len(gif) // 2], "truncated"),
        ("cut.tif", tiff[: len(tiff) // 2], "truncated"),
        ("head.jpg", jpeg[:16], "truncated"),
        ("page.jpg", b"<html><body>404 not found</body></html>", "unreadable"),
        ("noise.png", made.rng.bytes(500), "unreadable"),
        ("damaged.png", bytes(damaged), "unreadable"),
        ("drawing.svg.png", b'<svg xmlns="http://www.w3.org/2000/svg"/>', "unreadable"),
        ("bomb.png", png_file(50_000, 50_000, 8, bytes(1000)), "huge"),
        ("tiny.jpg", made.encoded(made.image((20, 16))), "tiny"),
        ("long.jpg", made.encoded(made.image((400, 60))), "long-sided"),
        (
            "black.jpg",
            made.encoded(Image.new("RGB", SIDES, tuple(made.rng.integers(0, 256, 3).tolist()))),
            "blank",
        ),
        ("moving.gif", made.encoded(frames[0], "GIF", **several), "animated"),
        ("moving.webp", made.encoded(made.image(), "WEBP", **several), "animated"),
        ("moving.png", made.encoded(made.image(), "PNG", **several), "animated"),
        ("print.jpg", made.encoded(made.image().convert("CMYK")), "mode"),
        ("deep.png", made.encoded(Image.fromarray(deep), "PNG"), "mode"),
        ("deeper.png", png_file(*SIDES, 16, colours), "mode"),
        ("deep.tif", made.encoded(Image.fromarray(deep[::-1].copy()), "TIFF"), "mode"),
        ("palette.png", made.encoded(clear, "PNG", transparency=3), "mode"),
        ("clear.png", made.encoded(rgba, "PNG"), "mode"),
        ("turned.jpg", made.encoded(made.image(), exif=turned.tobytes()), "rotated"),
        ("other.jpg", made.encoded(made.image(), "PNG"), "extension"),
    ]
    for name, data, kind in files:
        made.add("train", kind, name=made.write(f"{folder}/{name}", data))


def plant_ordinary(made: Folder, folder: str) -> None:
    """Images of all kinds about which there is nothing to say."""
    kinds: list[tuple[str, Image.Image, dict[str, object]]] = [
        ("late.jpg", made.image(), {"progressive": True}),
        ("grey.JPG", made.image().convert("L"), {}),
        ("grey.png", made.image().convert("L"), {}),
        ("ink.png", made.image().convert("1"), {}),
        ("few.png", made.image().quantize(32), {}),
        ("solid.png", made.image().convert("RGBA"), {}),
        ("still.gif", made.image(), {}),
        ("exact.webp", made.image(), {"lossless": True}),
        ("plain.bmp", made.image(), {}),
        ("packed.tiff", made.image(), {"compression": "tiff_lzw"}),
        ("new.avif", made.image(), {}),
    ]
    for name, image, options in kinds:
        kind = Image.registered_extensions()[Path(name).suffix.lower()]
        made.add("train", name=made.write(f"{folder}/{name}", made.encoded(image, kind, **options)))


def png_file(width: int, height: int, depth: int, rows: bytes) -> bytes:
    """A PNG in colour of any header, with these rows, each behind a 0."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")


def plant_places(made: Folder, folder: str) -> None:
    """Paths where there is no file that could be an image."""
    odd = made.folder / folder
    made.add("train", "missing", name=f"{folder}/nothing.jpg")
    (odd / "folder.jpg").mkdir()
    made.add("train", "directory", name=f"{folder}/folder.jpg")
    links: list[tuple[str, str, str]] = [
        ("lost.jpg", "nowhere.jpg", "missing"),
        ("loop.jpg", "loop.jpg", "unreadable"),
    ]
    for name, target, kind in links:
        (odd / name).symlink_to(target)
        made.add("train", kind, name=f"{folder}/{name}")
    os.mkfifo(odd / "pipe.jpg")  # opening it would wait for ever
    made.add("train", "unreadable", name=f"{folder}/pipe.jpg")


def plant_copies(made: Folder, folder: str) -> None:
    """The same image twice, by its bytes or its looks, in one split or in two."""

    def copied(name: str, to: str) -> str:
        (made.folder / to).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(made.folder / name, made.folder / to)
        return to

    def changed(name: str, to: str, change: Callable[[Image.Image], Image.Image], **options) -> str:
        with Image.open(made.folder / name) as image:
            return made.write(to, made.encoded(change(image), **options))

    def smaller(image: Image.Image) -> Image.Image:
        return image.resize((image.width * 5 // 6, image.height * 5 // 6))

    originals = [made.add("train") for _ in range(8)]
    made.add("train", "duplicate", name=copied(originals[0], f"{folder}/same.jpg"))
    made.add("train", "duplicate", name=copied(originals[0], f"{folder}/again.jpg"))
    coarse = changed(originals[1], f"{folder}/coarse.jpg", lambda image: image, quality=40)
    made.add("train", "near-duplicate", name=coarse)
    made.add("train", "near-duplicate", name=changed(originals[2], f"{folder}/small.jpg", smaller))
    made.add("test", "leak", name=originals[3])
    made.add("validation", "leak", name=copied(originals[4], f"{folder}/leak.jpg"))
    made.add(
        "test", "near-leak", name=changed(originals[5], f"{folder}/near.png", smaller, format="PNG")
    )
    both = made.add("validation")
    made.add("test", "shared", name=copied(both, f"{folder}/both.jpg"))


def plant_texts(made: Folder) -> None:
    """Texts that teach nothing, or something else."""
    for kind, text in (
        ("long", "a very long story about a dog " * 400),
        ("cut", " ".join(["so"] * 80)),
        ("wordless", "12345"),
        ("wordless", "?!"),
        ("placeholder", "nan"),
        ("placeholder", "N/A"),
        ("garbled", "a cafÃ© at night"),
        ("garbled", "a caf\ufffd by day"),
        ("markup", "a <b>very</b> old tower"),
        ("markup", "see https://example.org/dog for more"),
        ("file-name", "IMG_0042.JPG"),
    ):
        made.add("train", kind, text=text)
    name = made.add("train", text="A dog that is told of twice")
    made.add("train", "twice", name=name, text="a dog  that is told of twice")
    for text in ("שועל ליד הנהר", "🐕 a dog and more", 'one "quoted", word\nand a line'):
        made.add("train", text=text)


def plant_rows(made: Folder) -> None:
    """Rows that can't be read."""
    made.add("train", "record", text="")
    made.add("train", "record", text="a dog <image> on a bench")
    made.add("train", "record", text="and so on " * 10_001)
    made.add("train", "record", name="../outside.jpg")
    made.add("train", "record", name="https://example.org/dog.jpg")
    made.add_row("train", ("record",), ["one.jpg", "a text", "and a cell too many"])
