import hashlib
import json
import re
from itertools import combinations, pairwise
from pathlib import Path

import make_scenes
import numpy as np
import pyarrow.parquet as pq
import pytest
import scene_captions
import scene_layout
import scene_pictures
import scene_things
from datasets import Image as ImageColumn
from datasets import load_dataset

COUNTS = {"train": 60, "validation": 12, "test": 12}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes")
    assert make_scenes.make(out, COUNTS)
    return out


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    """Fields of many scenes of every split."""
    return [
        {**row, "split": split}
        for split in make_scenes.SPLITS
        for row in make_scenes.compose_split("openmoji", split, 150, seed=3)
    ]


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.*"))
    }


def read_questions(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_same_seed_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    make_scenes.make(tmp_path, COUNTS)
    assert hashes(tmp_path) == hashes(folder)


def test_another_seed_gives_other_scenes() -> None:
    def first(seed: int) -> bytes:
        return next(make_scenes.compose_split("noto", "train", 1, seed))["image"]["bytes"]

    assert first(0) != first(1)


def test_a_longer_split_begins_like_a_shorter_one() -> None:
    long = list(make_scenes.compose_split("noto", "test", 5, 0))
    assert long[:3] == list(make_scenes.compose_split("noto", "test", 3, 0))


def test_both_styles_show_the_same_scenes_in_other_drawings() -> None:
    first, second = (
        list(make_scenes.compose_split(style, "train", 20, 0)) for style in scene_pictures.STYLES
    )
    for a, b in zip(first, second, strict=True):
        assert a["captions"] == b["captions"]
        assert a["image"]["bytes"] != b["image"]["bytes"]


def test_splits_never_share_a_pair_that_is_held_out() -> None:
    rng = np.random.default_rng(0)
    pairs: dict[str, set[tuple[str, ...]]] = {split: set() for split in make_scenes.SPLITS}
    for split, seen in pairs.items():
        for _ in range(3000):
            scene = sorted(scene_things.draw_things(split, rng))
            seen.update(combinations(scene, 2))
            own = [p for p in combinations(scene, 2) if scene_things.split_of_pair(*p) == split]
            assert len(scene) == 1 or own
    held_out = {
        split: {pair for pair in pairs[split] if scene_things.split_of_pair(*pair) == split}
        for split in ("validation", "test")
    }
    assert not pairs["train"] & (held_out["validation"] | held_out["test"])
    assert not pairs["validation"] & held_out["test"]
    assert not pairs["test"] & held_out["validation"]
    names = set(scene_things.load_things())
    assert all({name for pair in held_out[s] for name in pair} == names for s in held_out)


def test_things_are_whole_apart_and_clearly_placed(rows: list[dict]) -> None:
    for row in rows:
        boxes = row["boxes"]
        assert len(boxes) == len(row["things"])
        assert all(0 <= x0 < x1 <= scene_layout.SIDE for x0, _, x1, _ in boxes)
        assert all(0 <= y0 < y1 <= scene_layout.SIDE for _, y0, _, y1 in boxes)
        assert (row["relation"] is None) == (len(boxes) == 1)
        along, across = (0, 1) if row["relation"] == "left of" else (1, 0)
        for a, b in pairwise(boxes):
            assert a[along + 2] < b[along]
            step = [(b[i] + b[i + 2] - a[i] - a[i + 2]) / 2 for i in range(2)]
            assert abs(step[across]) <= step[along] / 2 + 1.5  # a box may be a pixel off centre


def test_captions_say_where_the_boxes_are(rows: list[dict]) -> None:
    sentences = {
        r"^(?P<a>.+) to the left of (?P<b>.+)$": 0,
        r"^(?P<b>.+) to the right of (?P<a>.+)$": 0,
        r"^(?P<a>.+) on the left and (?P<b>.+) on the right$": 0,
        r"^(?P<b>.+) on the right and (?P<a>.+) on the left$": 0,
        r"^(?P<a>.+) above (?P<b>.+)$": 1,
        r"^(?P<b>.+) below (?P<a>.+)$": 1,
        r"^(?P<a>.+) at the top and (?P<b>.+) at the bottom$": 1,
        r"^(?P<b>.+) at the bottom and (?P<a>.+) at the top$": 1,
    }
    for row in (row for row in rows if len(row["things"]) == 2):
        centres = {
            scene_captions.with_article(name): ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
            for name, box in zip(row["things"], row["boxes"], strict=True)
        }
        assert len(set(row["captions"])) == 4
        for caption in row["captions"]:
            matches = [(re.match(pattern, caption), axis) for pattern, axis in sentences.items()]
            found, axis = next((found, axis) for found, axis in matches if found)
            assert found is not None
            first, second = centres[found["a"]][axis], centres[found["b"]][axis]
            assert first < second
            if " and " in caption:
                assert first < scene_layout.SIDE / 2 < second


def test_captions_of_three_name_them_in_order(rows: list[dict]) -> None:
    for row in (row for row in rows if len(row["things"]) == 3):
        for caption in row["captions"]:
            backwards = "from right to left" in caption or "from bottom to top" in caption
            axis = 0 if "left" in caption else 1
            order = sorted(row["things"], key=lambda name: caption.index(f"{name}"))
            places = [row["boxes"][row["things"].index(name)][axis] for name in order]
            assert places == sorted(places, reverse=backwards)


def test_captions_of_one_tell_background_and_place(rows: list[dict]) -> None:
    for row in (row for row in rows if len(row["things"]) == 1):
        assert f" {row['background']} background" in row["captions"][0]
        assert 4 <= len(row["captions"]) <= 5
        if len(row["captions"]) == 5:
            x0, y0, x1, y1 = row["boxes"][0]
            x, y, caption = (x0 + x1) / 2, (y0 + y1) / 2, row["captions"][4]
            assert ("left" in caption) == (x < 0.4 * scene_layout.SIDE)
            assert ("right" in caption) == (x > 0.6 * scene_layout.SIDE)
            assert ("at the top" in caption or "top " in caption) == (y < 0.4 * scene_layout.SIDE)
            assert ("bottom" in caption) == (y > 0.6 * scene_layout.SIDE)


def test_articles_are_right(rows: list[dict]) -> None:
    for caption in (caption for row in rows for caption in row["captions"]):
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", caption), caption


def test_the_larger_thing_has_the_longer_side(rows: list[dict]) -> None:
    for row in rows:
        sides = [max(x1 - x0, y1 - y0) for x0, y0, x1, y1 in row["boxes"]]
        if row["larger"] is not None:
            longest = row["things"][sides.index(max(sides))]
            assert row["larger"] == longest
            assert max(sides) >= scene_layout.CLEARLY * min(sides)
        elif len(sides) == 2:
            assert max(sides) < scene_layout.CLEARLY * min(sides)


@pytest.mark.parametrize("style", scene_pictures.STYLES)
def test_datasets_sees_decoded_images(folder: Path, tmp_path: Path, style: str) -> None:
    files = {split: str(folder / style / f"{split}.parquet") for split in COUNTS}
    splits = load_dataset("parquet", data_files=files, cache_dir=str(tmp_path))
    assert isinstance(splits["test"].features["image"], ImageColumn)
    ids = [image_id for split in splits.values() for image_id in split["image_id"]]
    assert len(set(ids)) == len(ids) == sum(COUNTS.values())
    for row in splits["validation"]:
        row["image"].load()
        assert row["image"].size == (scene_layout.SIDE, scene_layout.SIDE)
        assert row["image"].mode == "RGB"


def test_every_drawing_is_there_in_both_styles() -> None:
    assert len(scene_things.load_things()) == 60
    for style in scene_pictures.STYLES:
        for name in scene_things.load_things():
            drawing = scene_pictures.sprite(name, style, 30)
            assert max(drawing.size) == 30
            assert drawing.getchannel("A").getextrema()[1] == 255


def test_a_complete_set_is_kept(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}
    assert not make_scenes.make(folder, COUNTS)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")} == before


def test_an_incomplete_set_is_made_again(tmp_path: Path) -> None:
    few = {"train": 2, "validation": 1, "test": 1}
    make_scenes.make(tmp_path, few)
    expected = hashes(tmp_path)
    (tmp_path / "noto" / "test.parquet").unlink()
    (tmp_path / "openmoji" / "train.parquet").write_bytes(b"cut")
    assert make_scenes.make(tmp_path, few)
    assert hashes(tmp_path) == expected
    assert not [path for path in tmp_path.rglob(".*")]


def test_questions_are_about_the_scenes_beside_them(folder: Path) -> None:
    for style in scene_pictures.STYLES:
        for split, count in COUNTS.items():
            questions = read_questions(folder / style / f"{split}-questions.jsonl")
            scenes = pq.read_table(folder / style / f"{split}.parquet", columns=["image_id"])
            assert len(questions) == 3 * count
            assert [q["image_id"] for q in questions[::3]] == scenes["image_id"].to_pylist()
            assert len({q["question_id"] for q in questions}) == len(questions)
            said = [q["answers"] for q in questions if q["answer_type"] == "yes/no"]
            assert [answers.count("yes") > 5 for answers in said] == [True, False] * (count // 2)


def test_both_styles_are_asked_the_same(folder: Path) -> None:
    first, second = (
        read_questions(folder / style / "train-questions.jsonl") for style in scene_pictures.STYLES
    )
    names = ("question", "answers", "answer_type", "question_type")
    assert [[q[n] for n in names] for q in first] == [[q[n] for n in names] for q in second]


def test_a_caption_of_the_distinct_scenes_means_one_picture(tmp_path: Path) -> None:
    make_scenes.make(tmp_path, {"train": 1, "validation": 150, "test": 1}, styles=["noto"])
    assert not (tmp_path / "openmoji").exists()
    scenes = pq.read_table(tmp_path / "noto" / "validation.parquet")
    distinct = pq.read_table(tmp_path / "noto" / "validation-distinct.parquet")
    captions = [set(captions) for captions in distinct["captions"].to_pylist()]
    assert 50 < len(captions) < len(scenes)
    assert len(set().union(*captions)) == sum(map(len, captions))
    assert distinct.schema.equals(scenes.schema, check_metadata=True)  # also the image column's


def test_twins_show_the_same_things_in_another_order() -> None:
    rows = list(make_scenes.compose_split("openmoji", "train", 40, seed=3, twins=True))
    alone = list(make_scenes.compose_split("openmoji", "train", 40, seed=3))
    assert [row["captions"] for row in rows[::2]] == [row["captions"] for row in alone[::2]]
    for one, twin in zip(rows[::2], rows[1::2], strict=True):
        assert set(one["things"]) == set(twin["things"])
        assert len(one["things"]) == 1 or one["things"] != twin["things"]


def test_what_is_made_of_scenes_is_made_for_those_that_are_there(tmp_path: Path) -> None:
    few = {"train": 2, "validation": 1, "test": 1}
    make_scenes.make(tmp_path, few)
    expected = hashes(tmp_path)
    drawn = [p for p in tmp_path.rglob("*.parquet") if not p.stem.endswith("-distinct")]
    scenes = {path: path.stat().st_mtime_ns for path in drawn}
    manifest = tmp_path / "manifest.json"
    made = json.loads(manifest.read_text())
    for older in ({}, {"derived": {"recipe": 0, "bytes": {}}}, {"derived": made["derived"]}):
        content = {"settings": made["settings"], "bytes": made["bytes"], **older}
        manifest.write_text(json.dumps(content))
        (tmp_path / "noto" / "test-questions.jsonl").unlink()
        assert make_scenes.make(tmp_path, few)
        assert hashes(tmp_path) == expected
        assert not make_scenes.make(tmp_path, few)
    assert {path: path.stat().st_mtime_ns for path in drawn} == scenes
    assert not [path for path in tmp_path.rglob(".*")]


def test_other_settings_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(scene_things.SceneError, match=r"seed 0 there, 1 asked.*another --out"):
        make_scenes.make(folder, COUNTS, seed=1)
    assert make_scenes.main(["--out", str(folder), "--test", "7"]) == 2
    assert "test 12 there, 7 asked" in capsys.readouterr().err


def test_an_unreadable_manifest_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(scene_things.SceneError, match="unreadable"):
        make_scenes.make(tmp_path, COUNTS)
    for content in ([1], {"settings": {}, "bytes": {}, "derived": {}}):
        (tmp_path / "manifest.json").write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(scene_things.SceneError, match="unreadable"):
            make_scenes.make(tmp_path, COUNTS)


@pytest.mark.parametrize(("seed", "train"), [(-1, 5), (0, 0)])
def test_impossible_numbers_are_refused(tmp_path: Path, seed: int, train: int) -> None:
    with pytest.raises(scene_things.SceneError, match="a seed from 0, and counts from 1"):
        make_scenes.make(tmp_path, COUNTS | {"train": train}, seed)


def test_compose_names_what_it_was_given() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(scene_things.SceneError, match=r"unicorn.*one to three different names"):
        scene_pictures.compose(["unicorn"], "noto", rng)
    with pytest.raises(scene_things.SceneError, match="one to three different names"):
        scene_pictures.compose(["key", "key"], "noto", rng)
    with pytest.raises(scene_things.SceneError, match=r"'oil'.*openmoji, noto"):
        scene_pictures.compose(["key"], "oil", rng)


def test_things_too_large_for_a_scene_are_refused() -> None:
    with pytest.raises(ValueError, match="don't fit"):
        scene_layout.place_in_line([80, 80], np.random.default_rng(0))
