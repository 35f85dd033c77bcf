"""Indexes of photos: what is kept, what is done again, what is found, what is refused."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import blip2ft.index
from blip2ft.data.images import open_image
from blip2ft.index import index_photos, search_photos
from blip2ft.photos import nearest, shards
from blip2ft.photos.encoder import Encoder
from blip2ft.photos.files import find_photos, read_photos
from blip2ft.photos.search import PhotoIndex
from blip2ft.photos.shards import read_shards
from blip2ft.whole import alone

WORDS = ("a red cat", "the dog on the left", "bird", "a photo of an apple with a car")


@pytest.fixture
def photos(tmp_path) -> Path:
    """Twelve photos of noise in two folders, one of them on its side."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(12):
        # one colour stands out, so that features differ by more than noise
        pixels = rng.integers(0, 256, (30 + i, 40, 3), dtype=np.uint8) // 2
        pixels[..., i % 3] += np.uint8(10 * i)
        Image.fromarray(pixels).save(folder / ("more" if i % 2 else "") / f"{i:02}.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(folder / "00.png").save(folder / "side.png", exif=exif)
    return folder


@pytest.fixture
def index(photos, retriever_folder, tmp_path) -> Path:
    index_photos(photos, tmp_path / "index", model=retriever_folder)
    return tmp_path / "index"


@pytest.fixture
def other_model(retriever_folder, tmp_path) -> Path:
    """The same with one weight changed."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "other"
    shutil.copytree(retriever_folder, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["query_tokens"][0, 0, 0] += 1e-3
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(blip2ft.index, "SHARD_PHOTOS", 5)


def encoded(index: Path) -> int:
    """How many rows all shards hold."""
    return sum(len(shard.features()) for shard in shards.read_shards(index))


def stock_scores(folder: Path, paths: list[str], text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Similarities and matching logits by the stock class, one photo at a time."""
    from transformers import Blip2ForImageTextRetrieval

    stock = Blip2ForImageTextRetrieval.from_pretrained(folder).eval()
    encoder = Encoder(folder, None)
    ids = encoder.ids(text)
    both = []
    for path in paths:
        pixels = encoder.transform(open_image(path))[None]
        with torch.no_grad():
            similar = stock(pixels, ids, torch.ones_like(ids)).logits_per_image
            matched = stock(pixels, ids, torch.ones_like(ids), use_image_text_matching_head=True)
        both.append((similar.flatten()[0], matched.logits_per_image[0, 1]))
    return torch.tensor([s for s, _ in both]), torch.tensor([m for _, m in both])


@pytest.mark.parametrize("text", WORDS)
def test_first_stage_and_matching_equal_stock(index, retriever_folder, text, small_shards):
    found = search_photos(index, text, top=13, rerank=0)
    paths = [match.path for match in found]
    similar, matched = stock_scores(retriever_folder, paths, text)
    ours = torch.tensor([match.score for match in found])
    torch.testing.assert_close(ours, similar, atol=2e-3, rtol=0)  # kept in fp16
    assert ours.tolist() == sorted(ours.tolist(), reverse=True)

    again = {m.path: m.score for m in search_photos(index, text, top=13, rerank=5)}
    assert list(again.values()) == sorted(again.values(), reverse=True)
    for path, both in zip(paths, similar + matched, strict=True):
        assert again[path] == pytest.approx(both.item(), abs=1e-4)


def test_only_the_most_similar_are_matched(index, monkeypatch):
    opened = []
    monkeypatch.setattr(
        "blip2ft.photos.search.read_photos",
        lambda photos, *args, **options: (
            opened.extend(p.path for p in photos),
            read_photos(photos, *args, **options),
        )[1],
    )
    similar = [m.path for m in search_photos(index, WORDS[0], top=13, rerank=0)]
    assert opened == []
    found = search_photos(index, WORDS[0], top=2, rerank=6)
    assert opened == similar[:6]
    assert len(found) == 2


def test_a_photo_is_most_like_itself(index, photos):
    found = search_photos(index, image=photos / "more" / "03.png", top=3)
    assert found[0].path == str(photos / "more" / "03.png")
    assert found[0].score == pytest.approx(1, abs=2e-3)
    opened = PhotoIndex(index)
    features = torch.cat([shard.features() for shard in opened.shards]).float()
    paths = [photo.path for photo in opened.photos]
    like = features[paths.index(found[0].path)]
    naive = torch.stack([(like @ photo.T).max(1).values.mean() for photo in features])
    for match in found:
        assert match.score == pytest.approx(naive[paths.index(match.path)].item(), abs=2e-3)
    assert naive.topk(3).indices.tolist() == [paths.index(match.path) for match in found]


def test_a_photo_on_its_side_is_read_upright(index, photos, tmp_path):
    upright = open_image(photos / "side.png")
    assert upright.size == (30, 40)
    upright.save(tmp_path / "upright.png")
    best = search_photos(index, image=tmp_path / "upright.png", top=1)[0]
    assert best.path == str(photos / "side.png")


def test_an_unchanged_folder_is_left_alone(index, photos, monkeypatch):
    monkeypatch.setattr(blip2ft.index, "Encoder", None)  # no model is loaded
    done = index_photos(photos, index)
    assert (done.added, done.kept, done.gone) == (0, 13, 0)
    assert encoded(index) == 13


def test_an_index_is_extended_by_what_is_new_or_changed(index, photos, tmp_path, caplog):
    Image.new("RGB", (40, 40), "red").save(photos / "01-new.png")
    Image.new("RGB", (40, 40), "blue").save(photos / "02.png")
    (photos / "04.png").unlink()
    done = index_photos(photos / "more" / "..", index)
    assert (done.added, done.moved, done.kept, done.gone) == (2, 0, 11, 1)

    second = tmp_path / "second"
    second.mkdir()
    Image.new("RGB", (40, 40), "green").save(second / "green.png")
    done = index_photos(second, index)
    assert (done.added, done.kept, done.gone) == (1, 0, 0)

    found = search_photos(index, WORDS[0], top=100, rerank=0)
    paths = [match.path for match in found]
    assert sorted(paths) == sorted(p.path for f in (photos, second) for p in find_photos(f))
    assert "left out, as gone from the disk: 1 photo" in caplog.text
    assert search_photos(index, image=photos / "02.png", top=1)[0].path == str(photos / "02.png")


def test_moved_and_touched_photos_are_not_encoded_again(index, photos, monkeypatch, caplog):
    before = {m.image_id: m.score for m in search_photos(index, WORDS[1], top=99, rerank=0)}
    moved = photos.with_name("elsewhere")
    photos.rename(moved)
    with pytest.raises(ValueError, match=r"none of the 13 photos .* is there now"):
        search_photos(index, WORDS[1])
    os.utime(moved / "00.png", (1, 1))
    monkeypatch.setattr(Encoder, "photos", None)
    done = index_photos(moved, index)
    assert (done.added, done.moved, done.kept) == (0, 13, 0)
    after = search_photos(index, WORDS[1], top=99, rerank=0)
    assert all(Path(match.path).is_relative_to(moved) for match in after)
    assert {match.image_id: match.score for match in after} == before
    assert "left out, as gone from the disk: 13 photos" in caplog.text


def test_a_photo_changed_since_is_told(index, photos, caplog):
    Image.new("RGB", (40, 40), "blue").save(photos / "02.png")
    search_photos(index, WORDS[0], top=99, rerank=0)
    assert "changed since, so index again: 1 photo" in caplog.text


def test_matching_leaves_out_what_broke_since(index, photos, caplog):
    (photos / "02.png").write_bytes(b"broken")
    found = search_photos(index, WORDS[0], top=99)
    assert len(found) == 12
    assert "left out" in caplog.text


def test_after_ctrl_c_another_run_goes_on(
    photos, retriever_folder, tmp_path, monkeypatch, small_shards
):
    encode, calls = Encoder.photos, []

    def stop_at_the_fourth(self, pixels):
        calls.append(len(pixels))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return encode(self, pixels)

    monkeypatch.setattr(Encoder, "photos", stop_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        index_photos(photos, tmp_path / "index", model=retriever_folder, batch_size=2)
    assert [len(s.photos) for s in shards.read_shards(tmp_path / "index")] == [5, 1]
    done = index_photos(photos, tmp_path / "index", batch_size=2)
    assert (done.added, done.kept) == (7, 6)
    index_photos(photos, tmp_path / "whole", model=retriever_folder, batch_size=3)
    expected, found = (
        search_photos(tmp_path / name, WORDS[0], top=99, rerank=0) for name in ("whole", "index")
    )
    assert [m.path for m in found] == [m.path for m in expected]


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("at", range(1, 8))
def test_a_kill_at_any_write_loses_no_whole_shard(
    photos, retriever_folder, tmp_path, monkeypatch, at
):
    """Nothing more reaches the disk from one step on: index.json, features and lines of shards."""
    out, replace, calls = tmp_path / "index", os.replace, []

    def killed(*paths):
        calls.append(paths)
        if len(calls) >= at:
            raise SystemExit(9)
        replace(*paths)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(SystemExit):
            index_photos(photos, out, model=retriever_folder)
    whole = max(0, at - 2) // 2  # of index.json, then two files for each of three shards
    held = [len(shard.photos) for shard in shards.read_shards(out)]
    assert held == [5] * whole
    done = index_photos(photos, out, model=retriever_folder)
    assert (done.added, done.kept) == (13 - 5 * whole, 5 * whole)
    assert encoded(out) == 13
    assert len(search_photos(out, WORDS[0], top=99, rerank=0)) == 13


def test_slow_encoding_writes_shards_by_time(photos, retriever_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(blip2ft.index, "SHARD_SECONDS", 0.0)
    index_photos(photos, tmp_path / "index", model=retriever_folder, batch_size=4)
    assert len(shards.read_shards(tmp_path / "index")) > 2


def test_workers_change_nothing(photos, retriever_folder, tmp_path, index):
    index_photos(photos, tmp_path / "second", model=retriever_folder, workers=2, batch_size=4)
    theirs, ours = (shards.read_shards(folder)[0] for folder in (index, tmp_path / "second"))
    assert ours.photos == theirs.photos
    torch.testing.assert_close(ours.features(), theirs.features(), atol=1e-3, rtol=1e-3)


def test_one_photo_and_one_result(retriever_folder, tmp_path):
    (tmp_path / "one").mkdir()
    Image.new("RGB", (9, 90), "red").save(tmp_path / "one" / "only.jpg")
    index_photos(tmp_path / "one", tmp_path / "index", model=retriever_folder)
    for rerank in (0, 7):
        (match,) = search_photos(tmp_path / "index", "a red", rerank=rerank)
        assert match.path == str(tmp_path / "one" / "only.jpg")


def test_hidden_files_are_left_out(photos):
    (photos / ".thumbnails").mkdir()
    shutil.copy(photos / "00.png", photos / ".thumbnails" / "00.png")
    (photos / "._00.png").write_bytes(b"resource fork")
    (photos / "notes.txt").write_text("no photo")
    assert len(find_photos(photos)) == 13


def test_names_that_are_no_text_survive(photos, retriever_folder, tmp_path):
    odd = os.fsencode(photos) + b"/caf\xe9.png"
    shutil.copy(photos / "00.png", odd)
    index_photos(photos, tmp_path / "index", model=retriever_folder)
    paths = [match.path for match in search_photos(tmp_path / "index", "a cat", top=99, rerank=0)]
    assert os.fsdecode(odd) in paths


def test_a_long_query_is_cut_with_a_log_line(index, caplog):
    found = search_photos(index, "a red cat " * 40, top=2, rerank=2)
    assert len(found) == 2
    assert "the query has 122 tokens and the model reads 32" in caplog.text


def test_another_model_is_refused(index, photos, other_model, retriever_folder):
    named = f"made with {retriever_folder} .* {other_model} is another"
    with pytest.raises(ValueError, match=named):
        search_photos(index, "a cat", model=other_model)
    with pytest.raises(ValueError, match=named):
        index_photos(photos, index, model=other_model)
    with pytest.raises(ValueError, match="made with image_size None, not 56"):
        index_photos(photos, index, image_size=56)


def test_the_same_model_elsewhere_is_taken(index, retriever_folder, tmp_path):
    shutil.copytree(retriever_folder, tmp_path / "copy")
    assert search_photos(index, "a cat", model=tmp_path / "copy")


def test_a_model_that_changed_or_went_is_told(photos, other_model, retriever_folder, tmp_path):
    index = tmp_path / "index"
    index_photos(photos, index, model=other_model)
    shutil.copy(retriever_folder / "model.safetensors", other_model / "model.safetensors")
    with pytest.raises(ValueError, match="the model there has changed since"):
        search_photos(index, "a cat")
    shutil.rmtree(other_model)
    with pytest.raises(ValueError, match=r"which isn't there; name where it is now \(--model\)"):
        search_photos(index, "a cat")


def test_an_image_size_is_kept_for_searches(photos, retriever_folder, tmp_path):
    index = tmp_path / "index"
    index_photos(photos, index, model=retriever_folder, image_size=56)
    assert PhotoIndex(index).encoder.transform.size == 56


@pytest.mark.parametrize(
    ("query", "options", "message"),
    [
        (" ", {}, "the query is empty"),
        (None, {}, "one of the two"),
        ("a cat", {"image": "cat.png"}, "one of the two"),
        ("a cat", {"top": 0}, "top is 0"),
        ("a cat", {"rerank": -1}, "rerank is -1"),
        (None, {"image": "missing.png"}, "missing.png: no such image file"),
        (None, {"image": __file__}, "not an image that can be read"),
        (None, {"image": "cat.png", "faiss": True}, "by features alone"),
    ],
)
def test_wrong_searches_are_refused_before_anything_is_read(tmp_path, query, options, message):
    with pytest.raises(ValueError, match=message):
        search_photos(tmp_path / "nothing", query, **options)


def test_what_is_no_index_is_refused(photos, retriever_folder, opt_folder, tmp_path, index):
    with pytest.raises(ValueError, match="is no photo index; make one"):
        search_photos(tmp_path / "nothing", "a cat")
    with pytest.raises(ValueError, match="in use and is no index"):
        index_photos(photos, photos, model=retriever_folder)
    with pytest.raises(ValueError, match="is a new index: name a model"):
        index_photos(photos, tmp_path / "new")
    with pytest.raises(ValueError, match="a checkpoint that generates text"):
        index_photos(photos, tmp_path / "new", model=opt_folder)
    assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match="is a file; choose a folder"):
        index_photos(photos, photos / "00.png", model=retriever_folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no image"):
        index_photos(tmp_path / "empty", index)
    with pytest.raises(ValueError, match="there is no folder"):
        index_photos(tmp_path / "missing", index)
    with pytest.raises(ValueError, match="dtype is 'fp8'"):
        index_photos(photos, tmp_path / "new", model=retriever_folder, dtype="fp8")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("output: run\n")
    with pytest.raises(ValueError, match="it is a run: blip2ft export"):
        index_photos(photos, tmp_path / "new", model=tmp_path / "run")


def test_damage_is_named_with_what_to_do(index, photos):
    lines = index / "shards" / "000000.jsonl"
    features = lines.with_suffix(".safetensors")
    whole = features.read_bytes()
    for damaged in (b"", whole[:-8], whole[: len(whole) // 2]):
        features.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"000000.safetensors is damaged .*; remove"):
            search_photos(index, "a cat")
    features.write_bytes(whole)
    lines.write_text("".join(lines.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ValueError, match="12 lines, 13 rows"):
        search_photos(index, "a cat")
    lines.write_text("{")
    with pytest.raises(ValueError, match=r"000000.jsonl is damaged"):
        search_photos(index, "a cat")
    lines.unlink()
    with pytest.raises(ValueError, match="holds no photo yet"):
        search_photos(index, "a cat")
    assert index_photos(photos, index).added == 13

    described = json.loads((index / "index.json").read_text())
    (index / "index.json").write_text(json.dumps({**described, "format": 2}))
    with pytest.raises(ValueError, match="format 2, this blip2ft reads 1"):
        search_photos(index, "a cat")
    (index / "index.json").write_text("{")
    with pytest.raises(ValueError, match=r"index.json is damaged"):
        search_photos(index, "a cat")


def test_two_runs_do_not_extend_one_index(index, photos):
    with (
        alone(index),
        pytest.raises(ValueError, match="another run is extending"),
    ):
        index_photos(photos, index)


@pytest.mark.slow
def test_two_processes_share_the_photos(index, photos, retriever_folder, tmp_path):
    together = tmp_path / "together"
    (photos / "broken.jpg").write_bytes(b"no photo")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += ["--nproc_per_node", "2", "-m", "blip2ft", "index", photos, "--out", together]
    launcher += ["--model", retriever_folder]

    def launch() -> subprocess.CompletedProcess:
        return subprocess.run(list(map(str, launcher)), capture_output=True, text=True)

    found = launch()
    assert f"{together}: 13 photos added, 0 there already\n" == found.stdout, found.stderr[-3000:]
    assert found.stderr.count("error: 1 photo couldn't be read") == 1
    assert len(list((together / "shards").glob("*.jsonl"))) == 2
    features = [features_of(of) for of in (index, together)]
    assert features[0].keys() == features[1].keys()
    for path, expected in features[0].items():
        torch.testing.assert_close(features[1][path], expected, rtol=0, atol=1e-3)
    again = launch().stdout
    assert f"{together}: 0 photos added, 13 there already\n" == again
    with alone(together):
        assert "another run is extending" in launch().stderr


def features_of(index: Path) -> dict[str, torch.Tensor]:
    found = read_shards(index)
    return {p.path: shard.row(row) for shard in found for row, p in enumerate(shard.photos)}


def test_processes_that_add_shards_at_once_take_numbers_of_their_own(index):
    (shard,) = read_shards(index)
    for rank in (1, 0, 2, 1):
        shards.add_shard(index, shard.photos, list(shard.features()), rank=rank, world=3)
    names = [int(path.stem) for path in (index / "shards").glob("*.jsonl")]
    assert sorted(names) == [0, 1, 3, 5, 7]


def test_what_a_kill_left_of_a_shard_is_removed(index, photos):
    left = index / "shards" / ".partial-1-000009.safetensors"
    left.write_bytes(b"half")
    index_photos(photos, index)
    assert not left.exists()


@pytest.fixture
def faiss():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("faiss")


@pytest.mark.usefixtures("faiss", "small_shards")
@pytest.mark.parametrize("text", WORDS)
@pytest.mark.parametrize("rerank", [0, 4])
def test_faiss_finds_what_the_exact_search_finds(index, photos, text, rerank):
    exact = search_photos(index, text, top=4, rerank=rerank, faiss=False)
    found = search_photos(index, text, top=4, rerank=rerank, faiss=True)
    assert [m.path for m in found] == [m.path for m in exact]
    assert [m.score for m in found] == pytest.approx([m.score for m in exact], abs=1e-5)


@pytest.mark.usefixtures("faiss")
def test_faiss_follows_changes_and_skips_what_is_gone(index, photos, small_shards):
    search_photos(index, WORDS[0], rerank=0, faiss=True)
    first = list((index / "faiss").iterdir())
    Image.new("RGB", (40, 40), "red").save(photos / "new.png")
    Image.new("RGB", (40, 40), "blue").save(photos / "02.png")
    index_photos(photos, index)
    best = search_photos(index, WORDS[0], top=6, rerank=0, faiss=False)
    for match in best[:5]:
        Path(match.path).unlink()
    exact, found = (
        search_photos(index, WORDS[0], top=3, rerank=0, faiss=use) for use in (False, True)
    )
    assert found[0].path == best[5].path
    assert [m.path for m in found] == [m.path for m in exact]
    (second,) = (index / "faiss").iterdir()
    assert [second] != first


@pytest.mark.usefixtures("faiss")
def test_faiss_takes_an_inverted_file_for_many(index, monkeypatch, photos):
    monkeypatch.setattr(nearest, "FLAT_UP_TO", 8)
    exact = search_photos(index, WORDS[0], top=4, rerank=0)
    for _ in range(2):  # made, then read from the disk
        found = search_photos(index, WORDS[0], top=4, rerank=0, faiss=True)
        assert [m.path for m in found] == [m.path for m in exact]
    assert next((index / "faiss").iterdir()).name.startswith("ivf-")


def test_faiss_is_used_from_a_million_photos_where_it_is_installed(index, monkeypatch):
    def arranged(*args):
        raise RuntimeError("arranged")

    monkeypatch.setattr("blip2ft.photos.search.arrange", arranged)
    monkeypatch.setattr("blip2ft.photos.search.find_spec", lambda name: name)
    search_photos(index, "a cat", rerank=0)
    monkeypatch.setattr("blip2ft.photos.search.FAISS_FROM", 13)
    search_photos(index, "a cat", rerank=0, faiss=False)
    with pytest.raises(RuntimeError, match="arranged"):
        search_photos(index, "a cat", rerank=0)
    monkeypatch.setattr("blip2ft.photos.search.find_spec", lambda name: None)
    search_photos(index, "a cat", rerank=0)


def test_without_faiss_the_install_command_is_named(index, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ValueError, match=r'pip install "blip2ft\[search\]"'):
        search_photos(index, "a cat", faiss=True)


def test_commands_index_and_find(blip2ft_main, photos, retriever_folder, tmp_path):
    index, sheet = tmp_path / "index", tmp_path / "found.html"
    status, out, err = blip2ft_main("index", photos, "--model", retriever_folder, "--out", index)
    assert (status, out) == (0, f"{index}: 13 photos added, 0 there already\n")
    status, out, err = blip2ft_main("search", index, "a red cat", "--top", 3, "--html", sheet)
    assert status == 0
    assert out.splitlines()[0].split() == ["rank", "score", "file"]
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["1", "2", "3"]
    assert "a red cat" in sheet.read_text()
    status, _, err = blip2ft_main("search", index, "a red cat", "--html", sheet)
    assert status == 2
    assert "exists and is not overwritten" in err
    for _ in range(2):
        assert blip2ft_main("search", index, "--image", photos / "00.png")[0] == 0
    names = sorted(path.name for path in (index / "searches").iterdir())
    assert names == ["like-00-2.html", "like-00.html"]


def test_broken_photos_are_listed_and_the_index_is_usable(
    blip2ft_main, photos, retriever_folder, tmp_path
):
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    (photos / "empty.png").touch()
    (photos / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    index = tmp_path / "index"
    status, out, err = blip2ft_main("index", photos, "--model", retriever_folder, "--out", index)
    assert status == 1
    assert "13 photos added" in out
    for name in ("broken.jpg", "empty.png", "dangling.png"):
        assert f"error: {photos / name}: " in err
    assert err.rstrip().endswith("error: 3 photos couldn't be read")
    status, out, _ = blip2ft_main("search", index, "a cat", "--rerank", 0)
    assert status == 0
    assert len(out.splitlines()) == 14


def test_errors_are_one_line(blip2ft_main, index):
    status, _, err = blip2ft_main("search", index, "  ")
    assert status == 2
    assert err.startswith("error: the query is empty")
    assert err.count("\n") == 1


if find_spec("faiss") is not None:  # its wrappers warn when they are first imported
    pytestmark = pytest.mark.filterwarnings("ignore:builtin type .*:DeprecationWarning")
