"""Compose scenes, captions and questions from `data/emoji/`, in seconds and always the same.

    python scripts/make_scenes.py --out data/scenes

writes `{openmoji,noto}/{train,validation,test}.parquet` in the Hugging Face layout. Scene n of a
split is the same in both styles: only the drawings differ. A row holds

    image        128 x 128 JPEG, {bytes, path}
    image_id     unique over styles and splits
    captions     four to five true sentences
    things       one to three names; a row from left to right, a column from top to bottom
    relation     "left of" or "above": how each thing stands to the next one; null for one thing
    boxes        x0, y0, x1, y1 of each thing in pixels, x1 and y1 exclusive
    larger       of two things the clearly larger one, else null
    background, pattern   "blue" ..., and "plain", "gradient", "stripes" or "speckle"

and beside it `{train,validation,test}-questions.jsonl`, three questions about each scene, with
image_id, question_id, question, ten answers, answer_type and question_type (see
`scene_questions.py`), and {validation,test}-distinct.parquet, the scenes none of whose captions an
earlier one has: there a caption means one picture, which retrieval needs. These further files alone
are written anew where the scenes are there already.

Pairs of things are held out. Number the things as in `things.json`: things i and j meet in test
scenes only if (i + j) % 10 == 0, in validation scenes only if it is 5, and else in training. A test
scene of three shows at least one test pair and no validation pair, and the other way round.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import io
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from scene_questions import ask

ROOT = Path(__file__).resolve().parents[1]
EMOJI = ROOT / "data" / "emoji"
STYLES = ("openmoji", "noto")
SPLITS = ("train", "validation", "test")
RECIPE = 2  # raise it when the scenes of a seed change, so that older folders are refused
DERIVED = 2  # raise it when what is made of them changes, so that older files are written anew

SIDE = 128  # pixels, width and height of a scene
MARGIN = 3  # pixels that stay free at the border and between two things
SIZES = {1: (44, 76), 2: (40, 57), 3: (32, 38)}  # longer side of a thing, by how many there are
COUNTS = (0.25, 0.65, 0.1)  # how often a scene shows one, two and three things
CLEARLY = 1.25  # a thing is the larger one if its longer side is so much longer

COLOURS = {
    "white": (250, 250, 250),
    "gray": (165, 165, 168),
    "pink": (255, 185, 205),
    "yellow": (255, 240, 130),
    "orange": (255, 185, 95),
    "green": (165, 225, 150),
    "blue": (150, 200, 250),
    "purple": (200, 165, 240),
}
PATTERNS = ("plain", "gradient", "stripes", "speckle")
PLACES = (
    ("in the top left corner", "at the top", "in the top right corner"),
    ("on the left", "in the middle", "on the right"),
    ("in the bottom left corner", "at the bottom", "in the bottom right corner"),
)

Scene = tuple[Image.Image, dict[str, Any]]


class SceneError(Exception):
    """What is wrong and what to do about it, for the person at the terminal."""


class Cell(NamedTuple):
    """The square that a thing is drawn into: its centre is where the thing is."""

    x: int
    y: int
    side: int

    @property
    def centre(self) -> tuple[float, float]:
        return self.x + self.side / 2, self.y + self.side / 2


# Things and the pairs held out


@functools.cache
def load_things() -> dict[str, dict[str, str]]:
    """`things.json` by name, in its order."""
    path = EMOJI / "things.json"
    if not path.is_file():
        raise SceneError(f"{path} is missing: run this from a complete checkout.")
    return {thing["name"]: thing for thing in json.loads(path.read_text(encoding="utf-8"))}


@functools.cache
def numbers() -> dict[str, int]:
    return {name: number for number, name in enumerate(load_things())}


def split_of_pair(first: str, second: str) -> str:
    """Which split may show these two things together."""
    return {0: "test", 5: "validation"}.get((numbers()[first] + numbers()[second]) % 10, "train")


def splits_of(things: list[str]) -> set[str]:
    """The splits of all pairs in a scene."""
    return {split_of_pair(a, b) for a, b in combinations(things, 2)}


def draw_things(split: str, rng: np.random.Generator, count: int | None = None) -> list[str]:
    """One to three different names that `split` may show together."""
    names = list(load_things())
    count = count or int(rng.choice((1, 2, 3), p=COUNTS))
    allowed = {split} if split == "train" else {split, "train"}
    while True:
        things = [names[i] for i in rng.choice(len(names), size=count, replace=False)]
        splits = splits_of(things)
        if count == 1 or (split in splits and splits <= allowed):
            return things


# Pictures


@functools.cache
def sprite(name: str, style: str, side: int) -> Image.Image:
    """The drawing of a thing, RGBA, its longer side `side` pixels."""
    path = EMOJI / style / load_things()[name]["file"]
    if not path.is_file():
        raise SceneError(f"{path} is missing: run this from a complete checkout.")
    drawing = Image.open(path).convert("RGBA")
    scale = side / max(drawing.size)
    size = (max(1, round(drawing.width * scale)), max(1, round(drawing.height * scale)))
    return drawing.resize(size, Image.Resampling.LANCZOS)


def paint_background(colour: str, pattern: str, rng: np.random.Generator) -> Image.Image:
    """A ground of one colour in lighter and darker shades."""
    base = np.array(COLOURS[colour], dtype=np.float32) + rng.integers(-6, 7, size=3)
    angle = rng.uniform(0, np.pi)
    ys, xs = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
    along = xs * np.cos(angle) + ys * np.sin(angle)
    if pattern == "plain":
        shade = np.zeros_like(along)
    elif pattern == "gradient":
        shade = (along - along.min()) / (along.max() - along.min()) * 40 - 28
    elif pattern == "stripes":
        width = rng.uniform(8, 24)
        shade = np.where(np.floor(along / width) % 2 == 0, 8.0, -16.0)
    else:
        coarse = rng.normal(0, 14, size=(SIDE // 8, SIDE // 8))
        shade = np.kron(coarse, np.ones((8, 8))) + rng.normal(0, 3, size=(SIDE, SIDE))
    pixels = base + shade[..., None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8), "RGB")


def place_in_line(sides: list[int], rng: np.random.Generator) -> list[Cell]:
    """Cells one after another from left to right, so that the order can't be mistaken.

    The centres move to the right at least twice as far as up or down, cells keep MARGIN apart, and
    of two the first has its centre in the left half and the second in the right half.
    """
    slack = SIDE - 2 * MARGIN - sum(sides) - MARGIN * (len(sides) - 1)
    if slack < 0:
        raise ValueError(f"things of {sides} pixels don't fit into {SIDE}")
    while True:
        cuts = np.sort(rng.integers(0, slack + 1, size=len(sides)))
        x, cells = MARGIN, []
        for cut, before, side in zip(cuts, [0, *cuts], sides, strict=False):
            x += int(cut - before)
            y = int(rng.integers(MARGIN, SIDE - MARGIN - side + 1))
            cells.append(Cell(x, y, side))
            x += side + MARGIN
        centres = [cell.centre for cell in cells]
        steps = list(pairwise(centres))
        clear = all(abs(b[1] - a[1]) <= (b[0] - a[0]) / 2 for a, b in steps)
        halves = len(cells) != 2 or centres[0][0] < SIDE / 2 - 4 < SIDE / 2 + 4 < centres[1][0]
        if clear and halves:
            return cells


def place(count: int, rng: np.random.Generator) -> tuple[list[Cell], str | None]:
    """Cells for `count` things, and the relation of each to the next."""
    low, high = SIZES[count]
    sides = [int(side) for side in rng.integers(low, high + 1, size=count)]
    if count == 1:
        x, y = rng.integers(MARGIN, SIDE - MARGIN - sides[0] + 1, size=2)
        return [Cell(int(x), int(y), sides[0])], None
    cells = place_in_line(sides, rng)
    if rng.random() < 0.5:
        return cells, "left of"
    return [Cell(cell.y, cell.x, cell.side) for cell in cells], "above"


def compose(things: list[str], style: str, rng: np.random.Generator) -> Scene:
    """One scene: the picture, and its fields but for the id.

    things: one to three different names, drawn in this order from left to right or top to bottom.
    style: "openmoji" or "noto". The same `rng` state gives the same layout in either.
    """
    unknown = [name for name in things if name not in load_things()]
    if unknown or not 1 <= len(things) <= 3 or len(set(things)) < len(things):
        raise SceneError(
            f"things={things}: give one to three different names of data/emoji/things.json."
        )
    if style not in STYLES:
        raise SceneError(f"style={style!r}: choose one of {', '.join(STYLES)}.")
    cells, relation = place(len(things), rng)
    colour, pattern = str(rng.choice(list(COLOURS))), str(rng.choice(PATTERNS))
    picture = paint_background(colour, pattern, rng)
    boxes = []
    for name, cell in zip(things, cells, strict=True):
        drawing = sprite(name, style, cell.side)
        x = cell.x + (cell.side - drawing.width) // 2
        y = cell.y + (cell.side - drawing.height) // 2
        picture.paste(drawing, (x, y), drawing)
        boxes.append([x, y, x + drawing.width, y + drawing.height])
    return picture, {
        "captions": describe(things, relation, colour, place_name(cells[0])),
        "things": things,
        "relation": relation,
        "boxes": boxes,
        "larger": find_larger(things, cells),
        "background": colour,
        "pattern": pattern,
    }


# Sentences


def find_larger(things: list[str], cells: list[Cell]) -> str | None:
    if len(things) != 2:
        return None
    order = sorted(zip((cell.side for cell in cells), things, strict=True))
    return order[1][1] if order[1][0] >= CLEARLY * order[0][0] else None


def place_name(cell: Cell) -> str | None:
    """Where in the picture a single thing is, or None when a viewer could say either of two."""

    def third(centre: float) -> int | None:
        position = centre / SIDE
        bands = ((0, 0.38), (0.43, 0.57), (0.62, 1))
        return next((i for i, (low, high) in enumerate(bands) if low <= position <= high), None)

    column, row = third(cell.centre[0]), third(cell.centre[1])
    return None if column is None or row is None else PLACES[row][column]


def with_article(name: str) -> str:
    return f"{load_things()[name]['article']} {name}"


def describe(
    things: list[str], relation: str | None, background: str, where: str | None
) -> list[str]:
    """All the captions of a scene."""
    named = [with_article(name) for name in things]
    if len(things) == 1:
        return describe_one(things[0], background, where)
    if len(things) == 2:
        return describe_two(named[0], named[1], relation)
    return describe_three(named[0], named[1], named[2], relation)


def describe_one(name: str, background: str, where: str | None) -> list[str]:
    thing = with_article(name)
    article = "an" if background == "orange" else "a"
    captions = [
        f"{thing} on {article} {background} background",
        f"{thing} by itself",
        f"a single {name}",
        f"nothing but {thing}",
    ]
    return [*captions, f"{thing} {where}"] if where else captions


def describe_two(first: str, second: str, relation: str | None) -> list[str]:
    if relation == "left of":
        return [
            f"{first} to the left of {second}",
            f"{second} to the right of {first}",
            f"{first} on the left and {second} on the right",
            f"{second} on the right and {first} on the left",
        ]
    return [
        f"{first} above {second}",
        f"{second} below {first}",
        f"{first} at the top and {second} at the bottom",
        f"{second} at the bottom and {first} at the top",
    ]


def describe_three(first: str, second: str, third: str, relation: str | None) -> list[str]:
    there, back, forth = (
        ("left", "right", "from left to right")
        if relation == "left of"
        else ("top", "bottom", "from top to bottom")
    )
    return [
        f"{first}, {second} and {third} {forth}",
        f"{third}, {second} and {first} from {back} to {there}",
        f"{forth}: {first}, {second}, {third}",
        f"from {back} to {there}: {third}, {second}, {first}",
    ]


# Files


def encode(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def compose_split(
    style: str, split: str, count: int, seed: int, twins: bool = False
) -> Iterator[dict[str, Any]]:
    """The rows of one file. Each scene has its own generator: a longer split begins the same.

    twins: every other scene shows the things of the one before in another order.
    """
    for number in range(count):
        rng = np.random.default_rng([seed, SPLITS.index(split), number])
        things = draw_things(split, rng)
        if twins and number % 2:
            before = np.random.default_rng([seed, SPLITS.index(split), number - 1])
            others = draw_things(split, before)
            shift = int(rng.integers(1, max(2, len(others))))
            things = others[shift:] + others[:shift]
        picture, fields = compose(things, style, rng)
        image_id = f"{style}-{split}-{number:06d}"
        image = {"bytes": encode(picture), "path": f"{image_id}.jpg"}
        yield {"image": image, "image_id": image_id, **fields}


def write_parquet(rows: list[dict[str, Any]], path: Path) -> None:
    """The scenes of one file."""
    import pyarrow
    import pyarrow.parquet
    from datasets import Features, List, Value
    from datasets import Image as ImageColumn

    text = Value("string")
    features = Features(
        {
            "image": ImageColumn(),
            "image_id": text,
            "captions": List(text),
            "things": List(text),
            "relation": text,
            "boxes": List(List(Value("int32"))),
            "larger": text,
            "background": text,
            "pattern": text,
        }
    )
    table = pyarrow.Table.from_pylist(rows, schema=features.arrow_schema)
    with replacing(path) as partial:
        pyarrow.parquet.write_table(table, partial, row_group_size=100)


def write_questions(scenes: Path, path: Path, split: str, seed: int) -> None:
    """The questions about the scenes of one file. Each scene has its own generator, as above.

    Every other scene has yes for an answer to its question of yes or no, so that half of them do.
    """
    import pyarrow.parquet

    columns = ["image_id", "captions", "things", "relation", "larger", "background"]
    rows = pyarrow.parquet.read_table(scenes, columns=columns).to_pylist()
    with replacing(path) as partial, open(partial, "w", encoding="utf-8") as file:
        for number, scene in enumerate(rows):
            # 1 is the recipe of the questions
            rng = np.random.default_rng([seed, SPLITS.index(split), number, 1])
            image_id = scene["image_id"]
            for count, fields in enumerate(ask(scene, load_things(), number % 2 == 0, rng)):
                ids = {"image_id": image_id, "question_id": f"{image_id}-{count}"}
                file.write(json.dumps(ids | fields) + "\n")


def write_distinct(scenes: Path, path: Path) -> None:
    """The scenes of one file none of whose captions an earlier scene of it has."""
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(scenes)
    seen: set[str] = set()
    distinct = []
    for number, captions in enumerate(table.column("captions").to_pylist()):
        if seen.isdisjoint(captions):
            distinct.append(number)
        seen.update(captions)
    with replacing(path) as partial:
        pyarrow.parquet.write_table(table.take(distinct), partial, row_group_size=100)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file to write, so that `path` is complete or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def fingerprint() -> str:
    """A hash over the drawings and their list, so that changed ones are noticed."""
    digest = hashlib.sha256()
    for path in sorted([EMOJI / "things.json", *EMOJI.glob("*/*.png")]):
        digest.update(path.relative_to(EMOJI).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def read_manifest(out: Path, settings: dict[str, Any]) -> tuple[dict[str, int], dict[str, int]]:
    """Sizes of the files of scenes, and of those made of them, that `out` has with these settings.

    Derived files of another recipe count as absent. Raises SceneError for scenes of other settings.
    """
    manifest = out / "manifest.json"
    if not manifest.is_file():
        return {}, {}
    try:
        made = json.loads(manifest.read_text(encoding="utf-8"))
        found, scenes = made["settings"], made["bytes"]
        further = made.get("derived", {"recipe": 0})
        derived = further["bytes"] if further["recipe"] == DERIVED else {}
    except (ValueError, KeyError, TypeError) as error:
        raise SceneError(f"{manifest} is unreadable ({error}): delete {out} and rerun.") from error
    if found != settings:
        keys = [key for key in settings if found.get(key) != settings[key]]
        differ = ", ".join(f"{key} {found.get(key)} there, {settings[key]} asked" for key in keys)
        raise SceneError(
            f"{out} holds other scenes ({differ}). Delete that folder, or give another --out."
        )
    return scenes, derived


def are_there(out: Path, sizes: dict[str, int]) -> bool:
    """Whether all these files are complete."""
    files = {name: out / name for name in sizes}
    return bool(files) and all(
        path.is_file() and path.stat().st_size == sizes[name] for name, path in files.items()
    )


def make(
    out: Path,
    counts: dict[str, int],
    seed: int = 0,
    styles: Sequence[str] = STYLES,
    twins: bool = False,
) -> bool:
    """Write all scenes and what is made of them, the manifest last; False if they are there.

    Scenes that are there stay as they are. Raises SceneError when they are of other settings.
    """
    if seed < 0 or min(counts.values()) < 1:
        raise SceneError(f"seed {seed} and counts {counts}: a seed from 0, and counts from 1.")
    settings = {"recipe": RECIPE, "seed": seed, **counts, "drawings": fingerprint()}
    if tuple(styles) != STYLES:
        settings["styles"] = list(styles)
    if twins:
        settings["twins"] = True
    scenes, derived = read_manifest(out, settings)
    keep = are_there(out, scenes)
    if keep and are_there(out, derived):
        return False
    scenes, derived = {} if not keep else scenes, {}
    for style in styles:
        for split in SPLITS:
            path = out / style / f"{split}.parquet"
            if not keep:
                rows = compose_split(style, split, counts[split], seed, twins and split == "train")
                write_parquet(list(rows), path)
                scenes[path.relative_to(out).as_posix()] = path.stat().st_size
            made = [path.with_name(f"{split}-questions.jsonl")]
            write_questions(path, made[0], split, seed)
            if split != "train":
                made.append(path.with_name(f"{split}-distinct.parquet"))
                write_distinct(path, made[1])
            derived |= {file.relative_to(out).as_posix(): file.stat().st_size for file in made}
    content = {
        "settings": settings,
        "bytes": scenes,
        "derived": {"recipe": DERIVED, "bytes": derived},
    }
    with replacing(out / "manifest.json") as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return True


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "scenes")
    parser.add_argument("--seed", type=int, default=0)
    for split, default in zip(SPLITS, (6000, 500, 1000), strict=True):
        parser.add_argument(
            f"--{split}",
            type=int,
            default=default,
            metavar="N",
            help=f"scenes of each style, default {default}",
        )
    parser.add_argument("--styles", nargs="+", choices=STYLES, default=STYLES, help="default both")
    parser.add_argument(
        "--twins",
        action="store_true",
        help="every other training scene shows the things of the one before in another order",
    )
    options = parser.parse_args(arguments)
    counts = {split: getattr(options, split) for split in SPLITS}
    start = time.perf_counter()
    try:
        made = make(options.out, counts, options.seed, options.styles, options.twins)
    except KeyboardInterrupt:
        print("make_scenes: interrupted; run it again to finish.", file=sys.stderr)
        return 130
    except (SceneError, OSError) as error:
        print(f"make_scenes: {error}", file=sys.stderr)
        return 2
    if not made:
        print(f"{options.out}: these scenes are there already")
        return 0
    size = sum(path.stat().st_size for path in options.out.glob("*/*.*")) / 1e6
    total = len(options.styles) * sum(counts.values())
    took = time.perf_counter() - start
    print(f"{options.out}: {total} scenes with questions, {size:.0f} MB, {took:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
