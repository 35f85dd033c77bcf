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
import hashlib
import io
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scene_pictures import STYLES, compose
from scene_questions import ask
from scene_things import EMOJI, ROOT, SceneError, draw_things, load_things

from blip2ft.whole import whole

SPLITS = ("train", "validation", "test")
RECIPE = 2  # raise it when the scenes of a seed change, so that older folders are refused
DERIVED = 2  # raise it when what is made of them changes, so that older files are written anew


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
    with whole(path) as partial:
        pyarrow.parquet.write_table(table, partial, row_group_size=100)


def write_questions(scenes: Path, path: Path, split: str, seed: int) -> None:
    """The questions about the scenes of one file. Each scene has its own generator, as above.

    Every other scene has yes for an answer to its question of yes or no, so that half of them do.
    """
    import pyarrow.parquet

    columns = ["image_id", "captions", "things", "relation", "larger", "background"]
    rows = pyarrow.parquet.read_table(scenes, columns=columns).to_pylist()
    with whole(path) as partial, open(partial, "w", encoding="utf-8") as file:
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
    with whole(path) as partial:
        pyarrow.parquet.write_table(table.take(distinct), partial, row_group_size=100)


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
    with whole(out / "manifest.json") as partial:
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
