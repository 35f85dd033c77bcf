"""CapFilt: what is kept, that no run depends on batches, processes or a kill, what is refused."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from PIL import Image
from safetensors.torch import load_file, save_file

import blip2ft.capfilt
from blip2ft.capfilt import Rules, capfilt
from blip2ft.cli import main
from blip2ft.data.images import open_image, transforms_for
from blip2ft.data.pairs import pair_layout
from blip2ft.data.records import read_records
from blip2ft.data.stream import open_stream
from blip2ft.models.load import load_retriever
from blip2ft.tasks.candidates import Scorer, score_texts
from blip2ft.webimages.folder import Counts, read_counts

SIZES = (5, 4, 3)  # samples of the shards
WORDS = ("a red cat", "the dog on the left", "a bird", "a photo of an apple with a car")
SHORT = Rules(candidates=3, max_new_tokens=4)


def picture(number: int, kind: str = "JPEG") -> bytes:
    rng = np.random.default_rng(number)
    file = io.BytesIO()
    pixels = rng.integers(0, 256, (30 + number, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def write_tar(path: Path, files: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def read_tar(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def told(path: Path) -> dict[str, dict]:
    """What the .json of each sample of a tar says, by key."""
    files = read_tar(path)
    return {
        name.removesuffix(".json"): json.loads(data)
        for name, data in files.items()
        if name.endswith(".json")
    }


@pytest.fixture(scope="session")
def web(tmp_path_factory) -> Path:
    """Three shards as of the web; each sample has a .json, a caption and a file besides."""
    folder, number = tmp_path_factory.mktemp("web"), 0
    for shard, size in enumerate(SIZES):
        files = {}
        for _ in range(size):
            fields = {"caption": WORDS[number % 4], "url": f"https://example.org/{number}"}
            files[f"{number:04}.jpg"] = picture(number)
            files[f"{number:04}.json"] = json.dumps(fields).encode()
            files[f"{number:04}.txt"] = WORDS[number % 4].encode()
            files[f"{number:04}.cls"] = b"7"
            number += 1
        write_tar(folder / f"{shard:03}.tar", files)
    return folder


@pytest.fixture
def run(opt_folder, retriever_folder, web, tmp_path):
    """capfilt on the shards of the web with the small models, into OUT below tmp_path."""

    def call(source: str | Path = web, out: str = "out", **options):
        defaults = {"captioner": opt_folder, "scorer": retriever_folder, "rules": SHORT}
        cache = tmp_path / "cache"
        return capfilt(source, tmp_path / out, **{**defaults, "cache": cache, **options})

    return call


@pytest.fixture(scope="session")
def done(opt_folder, retriever_folder, web, tmp_path_factory) -> Path:
    """What an uninterrupted run writes."""
    folder = tmp_path_factory.mktemp("done")
    models = {"captioner": opt_folder, "scorer": retriever_folder}
    capfilt(web, folder / "out", **models, rules=SHORT, cache=folder / "cache")
    return folder / "out"


def same_folders(ours: Path, theirs: Path) -> bool:
    """Whether two folders hold the same bytes; those of locks aside."""
    files = [sorted(p.name for p in at.iterdir() if p.name[0] != ".") for at in (ours, theirs)]
    return files[0] == files[1] and all(
        (ours / name).read_bytes() == (theirs / name).read_bytes() for name in files[0]
    )


def test_samples_keep_all_but_their_captions(done, web):
    assert sorted(p.name for p in done.glob("*.tar")) == ["000.tar", "001.tar", "002.tar"]
    for path in done.glob("*.tar"):
        before, after = read_tar(web / path.name), read_tar(path)
        assert set(after) == {name for name in before if not name.endswith(".txt")}
        for name, data in after.items():
            if not name.endswith(".json"):
                assert data == before[name]
        for key, fields in told(path).items():
            said = json.loads(before[f"{key}.json"])
            assert fields["url"] == said["url"]
            assert "caption" not in fields
            assert fields["web_captions"] == [said["caption"]]


def test_the_best_captions_are_kept_in_order(done):
    for path in done.glob("*.tar"):
        for fields in told(path).values():
            scores = [candidate["score"] for candidate in fields["candidates"]]
            assert scores == sorted(scores, reverse=True)
            assert fields["captions"] == [c["text"] for c in fields["candidates"][:2]]
            origins = [candidate["origin"] for candidate in fields["candidates"]]
            assert origins.count("web") == 1
            assert 1 <= origins.count("synthetic") <= SHORT.candidates


@pytest.mark.parametrize("score", ["itm", "itc", "itc+itm"])
def test_scores_are_the_retrievers_of_images_as_it_sees_them(
    run, tmp_path, retriever_folder, web, score
):
    folder = tmp_path / "scorer"
    shutil.copytree(retriever_folder, folder)
    processor = json.loads((folder / "processor_config.json").read_text())
    processor["image_processor"]["image_mean"] = [0.1, 0.2, 0.3]  # the captioner's is another
    (folder / "processor_config.json").write_text(json.dumps(processor))
    run(web / "000.tar", scorer=folder, rules=replace(SHORT, score=score))
    model, processor = load_retriever(folder, objectives={"itm": 1.0})
    _, resize = transforms_for(processor.image_processor)
    assert resize.mean == (0.1, 0.2, 0.3)
    scorer = Scorer(model, pair_layout(model, processor, 32), resize)
    for key, fields in told(tmp_path / "out/000.tar").items():
        pixels = resize(open_image(read_tar(web / "000.tar")[f"{key}.jpg"]))
        texts = [candidate["text"] for candidate in fields["candidates"]]
        expected = score_texts(scorer, pixels[None], [texts], score)[0]
        found = [candidate["score"] for candidate in fields["candidates"]]
        assert found == pytest.approx(expected, abs=3e-6)


def test_what_is_written_is_read_as_records_and_as_a_stream(done, web, tmp_path):
    records = read_records(done)
    assert [record.image_id for record in records] == [f"{i:04}" for i in range(sum(SIZES))]
    assert all(len(record.captions) == 2 for record in records)
    stream = open_stream([{"source": str(done / "index.json")}], cache=tmp_path)
    assert len(stream) == len(records)
    for i, record in enumerate(records):
        assert stream.records[i].captions == record.captions
        assert stream.records[i].image == picture(i)
    index = json.loads((done / "index.json").read_text())["shardlist"]
    assert [(shard["url"], shard["nsamples"]) for shard in index] == [
        (f"{i:03}.tar", size) for i, size in enumerate(SIZES)
    ]
    assert (done / "skipped.jsonl").read_text() == ""


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("workers", [0, 1])
def test_batches_and_workers_change_no_caption(run, done, tmp_path, batch_size, workers):
    run(batch_size=batch_size, workers=workers)
    for path in done.glob("*.tar"):
        ours, theirs = told(tmp_path / "out" / path.name), told(path)
        for key, fields in ours.items():
            pairs = [
                sorted((c["text"], c["origin"], c["score"]) for c in f["candidates"])
                for f in (fields, theirs[key])
            ]
            assert [p[:2] for p in pairs[0]] == [p[:2] for p in pairs[1]]
            scores = [[p[2] for p in own] for own in pairs]
            assert scores[0] == pytest.approx(scores[1], abs=3e-6)


@pytest.mark.parametrize("world", [2, 5])
def test_processes_share_the_shards_and_the_last_writes_the_index(
    run, done, tmp_path, monkeypatch, world
):
    monkeypatch.setenv("WORLD_SIZE", str(world))
    for rank in range(world):
        monkeypatch.setenv("RANK", str(rank))
        last = rank == min(world, len(SIZES)) - 1
        assert (run() is not None) == last
        assert (tmp_path / "out/index.json").is_file() == (rank >= min(world, len(SIZES)) - 1)
    assert same_folders(tmp_path / "out", done)


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_a_stopped_run_goes_on_to_the_same_bytes(run, done, tmp_path, monkeypatch, kept):
    """As after SIGKILL: some whole shards, and one half-written."""
    real = blip2ft.capfilt.write_shard

    def stop(out, name, outcomes):
        if name == f"{kept:03}.tar":
            next(outcomes)
            (out / f".partial-1-{name}").write_bytes(b"half")
            raise KeyboardInterrupt
        real(out, name, outcomes)

    monkeypatch.setattr(blip2ft.capfilt, "write_shard", stop)
    with pytest.raises(KeyboardInterrupt):
        run()
    monkeypatch.setattr(blip2ft.capfilt, "write_shard", real)
    assert not (tmp_path / "out/index.json").exists()
    whole = {p: p.stat().st_ino for p in (tmp_path / "out").glob("[!.]*.tar")}
    assert len(whole) == kept
    run()
    assert same_folders(tmp_path / "out", done)
    assert not list((tmp_path / "out").glob(".partial-*"))
    assert all(path.stat().st_ino == inode for path, inode in whole.items())


def test_an_error_leaves_no_partial_shard(run, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no space")
        yield

    monkeypatch.setattr(blip2ft.capfilt, "_outcomes", fail)
    with pytest.raises(OSError, match="no space"):
        run()
    assert not list((tmp_path / "out").glob(".partial-*"))


def test_a_complete_run_loads_no_model_and_tells_its_counts_again(run, done, tmp_path, monkeypatch):
    first = run()
    monkeypatch.setattr(blip2ft.capfilt, "open_scorer", None)
    assert run() == first
    (tmp_path / "out/001.tar").unlink()
    monkeypatch.undo()
    assert run() == first
    assert same_folders(tmp_path / "out", done)


def test_counts_say_what_became_of_the_samples(run, done, tmp_path):
    names = [f"{i:03}.tar" for i in range(len(SIZES))]
    samples = [fields for name in names for fields in told(done / name).values()]
    web = [c for fields in samples for c in fields["candidates"] if c["origin"] == "web"]
    kept = [c for fields in samples for c in fields["candidates"][:2]]
    web_kept = sum(c["origin"] == "web" for c in kept)
    counts = read_counts(done, names)
    assert 0 < web_kept < len(web)
    assert counts == Counts(
        samples=12,
        replaced=12 - web_kept,
        web=12,
        web_kept=web_kept,
        kept=24,
        web_score=pytest.approx(sum(c["score"] for c in web)),
        kept_score=pytest.approx(sum(c["score"] for c in kept)),
    )


def test_nothing_below_the_least_score_is_kept_and_samples_without_are_dropped(
    run, done, tmp_path, web
):
    best = sorted(f["candidates"][0]["score"] for p in done.glob("*.tar") for f in told(p).values())
    least = (best[5] + best[6]) / 2
    counts = run(rules=replace(SHORT, min_score=least))
    assert (counts.samples, counts.dropped) == (12, 6)
    for name in ("000.tar", "001.tar", "002.tar"):
        before, after = told(done / name), told(tmp_path / "out" / name)
        for key, fields in before.items():
            good = [c["text"] for c in fields["candidates"][:2] if c["score"] >= least]
            assert after.get(key, {"captions": []})["captions"] == good
    assert len(read_records(tmp_path / "out")) == 6


def test_more_can_be_kept(run, tmp_path, web):
    run(web / "002.tar", rules=replace(SHORT, keep=4))
    for fields in told(tmp_path / "out/002.tar").values():
        assert fields["captions"] == [c["text"] for c in fields["candidates"]]


def test_equal_images_get_captions_of_their_own(run, tmp_path):
    write_tar(tmp_path / "web/0.tar", {f"{name}.jpg": picture(1) for name in "ab"})
    write_tar(tmp_path / "web/1.tar", {"a.jpg": picture(1)})
    run(tmp_path / "web")
    found = [*told(tmp_path / "out/0.tar").values(), *told(tmp_path / "out/1.tar").values()]
    texts = [sorted(c["text"] for c in fields["candidates"]) for fields in found]
    assert texts[0] != texts[1] != texts[2] != texts[0]


def test_images_without_a_caption_get_synthetic_ones(run, tmp_path):
    files = {"a.jpg": picture(1), "b.jpg": picture(2), "b.txt": b" ", "c.jpg": picture(3)}
    write_tar(tmp_path / "web/0.tar", files | {"c.txt": b"a red cat"})
    counts = run(tmp_path / "web")
    found = told(tmp_path / "out/0.tar")
    assert [found[key]["web_captions"] for key in "abc"] == [[], [], ["a red cat"]]
    assert all(len(fields["captions"]) == 2 for fields in found.values())
    assert (counts.samples, counts.web) == (3, 1)
    assert counts.replaced == 1 - counts.web_kept


def test_several_captions_of_the_web_are_candidates_and_equal_ones_merged(run, tmp_path):
    captions = ["A red  cat", "a red cat", "a dog", "a bird on the car"]
    files = {"a.jpg": picture(1), "a.json": json.dumps({"captions": captions}).encode()}
    write_tar(tmp_path / "web/0.tar", files)
    run(tmp_path / "web")
    fields = told(tmp_path / "out/0.tar")["a"]
    assert fields["web_captions"] == captions
    web = [c["text"] for c in fields["candidates"] if c["origin"] == "web"]
    assert sorted(web) == ["A red  cat", "a bird on the car", "a dog"]


def test_other_fields_do_not_hide_the_captions(run, tmp_path):
    fields = {"caption": "alt text", "captions": ["more"], "title": "a red cat", "image_id": 5}
    write_tar(tmp_path / "web/0.tar", {"a.jpg": picture(1), "a.json": json.dumps(fields).encode()})
    run(tmp_path / "web", caption_column="title")
    found = told(tmp_path / "out/0.tar")["a"]
    assert found["web_captions"] == ["a red cat"]
    assert (found["other_caption"], found["other_captions"]) == ("alt text", ["more"])
    (record,) = read_records(tmp_path / "out")
    assert (record.image_id, list(record.captions)) == (5, found["captions"])


def test_what_cannot_be_read_is_left_out_and_named(run, tmp_path):
    files = {
        "a.jpg": picture(1),
        "a.txt": b"a red cat",
        "b.jpg": b"no image",
        "b.txt": b"a dog",
        "c.txt": b"no image beside",
        "d.jpg": picture(2),
        "d.json": b"{",
        "e.jpg": picture(3),
        "e.json": b'{"caption": 7}',
        "g.jpg": picture(4),
        "g.txt": b"a red <image>",
    }
    tar = write_tar(tmp_path / "web/0.tar", files)
    write_tar(tmp_path / "web/1.tar", {"f.jpg": b"", "f.txt": b"a dog"})
    counts = run(tmp_path / "web", batch_size=2)
    assert (counts.samples, counts.skipped) == (1, 6)
    lines = [json.loads(x) for x in (tmp_path / "out/skipped.jsonl").read_text().splitlines()]
    assert [line["origin"] for line in lines[:5]] == [f"{tar}: {key}" for key in "bcdeg"]
    reasons = ["not an image that", "no image", "its .json can't be read", "isn't text", "<image>"]
    reasons.append("empty")
    for line, reason in zip(lines, reasons, strict=True):
        assert reason in line["reason"]
    assert list(told(tmp_path / "out/0.tar")) == ["a"]
    assert len(read_records(tmp_path / "out")) == 1


def test_a_damaged_shard_gives_an_empty_one(run, web, tmp_path):
    shutil.copytree(web, tmp_path / "web")
    run(tmp_path / "web", out="whole")
    entries = json.loads((tmp_path / "whole/index.json").read_text())["shardlist"]
    for entry in entries:
        entry["filesize"] = (tmp_path / "web" / entry["url"]).stat().st_size
    (tmp_path / "web/index.json").write_text(json.dumps({"shardlist": entries}))
    data = bytearray((tmp_path / "web/001.tar").read_bytes())
    data[512:] = bytes(len(data) - 512)
    (tmp_path / "web/001.tar").write_bytes(data)
    counts = run(tmp_path / "web")
    assert (counts.samples, counts.skipped) == (8, 4)
    assert told(tmp_path / "out/001.tar") == {}
    assert len(read_records(tmp_path / "out")) == 8


@pytest.mark.parametrize("ids", [False, True])
def test_parquet_files_become_tars(run, tmp_path, ids):
    rows = [{"bytes": picture(i, "PNG" if i else "JPEG"), "path": None} for i in range(5)]
    columns = {"image": rows, "text": [*WORDS, ""], "size": [3, 4, 5, 6, 7]}
    if ids:
        columns["image_id"] = [f"id {i}" for i in range(5)]
    pq.write_table(pa.table(columns), tmp_path / "web.parquet")
    counts = run(tmp_path / "web.parquet")
    assert (counts.samples, counts.skipped) == (5, 0)
    files = read_tar(tmp_path / "out/web.tar")
    assert files["000000000.jpg"] == rows[0]["bytes"]
    assert files["000000001.png"] == rows[1]["bytes"]
    records = read_records(tmp_path / "out")
    assert [r.image_id for r in records] == [f"id {i}" if ids else f"{i:09}" for i in range(5)]
    assert [record.fields["size"] for record in records] == [3, 4, 5, 6, 7]
    assert records[4].fields["web_captions"] == []  # those of a model alone
    assert records[2].fields["web_captions"] == [WORDS[2]]


def test_a_parquet_file_needs_no_captions(run, tmp_path):
    rows = [{"bytes": picture(i), "path": None} for i in range(2)]
    pq.write_table(pa.table({"image": rows}), tmp_path / "web.parquet")
    counts = run(tmp_path / "web.parquet")
    assert (counts.samples, counts.web) == (2, 0)
    assert len(read_records(tmp_path / "out")) == 2


def test_half_a_character_in_another_field_is_kept(run, tmp_path):
    text = b'{"caption": "a red cat", "page": "\\ud83d"}'
    write_tar(tmp_path / "web.tar", {"a.jpg": picture(1), "a.json": text})
    run(tmp_path / "web.tar")
    assert told(tmp_path / "out/web.tar")["a"]["page"] == "\ud83d"


def test_pieces_of_a_parquet_file_are_tars_of_their_own(run, tmp_path, monkeypatch):
    monkeypatch.setattr("blip2ft.data.row_groups.ROWS", 2)
    rows = [{"bytes": picture(i), "path": None} for i in range(4)]
    table = pa.table({"image": rows, "caption": WORDS})
    pq.write_table(table, tmp_path / "web.parquet", row_group_size=2)
    run(tmp_path / "web.parquet")
    names = ["web-000000000.tar", "web-000000002.tar"]
    assert sorted(p.name for p in (tmp_path / "out").glob("*.tar")) == names
    assert list(told(tmp_path / "out" / names[1])) == ["000000002", "000000003"]


def test_a_remote_source_gives_the_same(run, done, web, tmp_path):
    shutil.copytree(web, tmp_path / "web")
    shards = [
        {"url": f"{i:03}.tar", "nsamples": n, "filesize": (web / f"{i:03}.tar").stat().st_size}
        for i, n in enumerate(SIZES)
    ]
    (tmp_path / "web/index.json").write_text(json.dumps({"shardlist": shards}))
    run(f"file://{tmp_path}/web/index.json")
    for path in done.glob("*.tar"):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_an_encoder_decoder_captions_too(run, t5_folder, web, tmp_path):
    counts = run(web / "002.tar", captioner=t5_folder)
    assert counts.kept >= counts.samples


def test_another_seed_or_prompt_gives_other_captions(run, done, tmp_path, web):
    for i, options in enumerate(({"rules": replace(SHORT, seed=1)}, {"prompt": "the"})):
        run(web / "000.tar", out=f"out{i}", **options)
        assert told(tmp_path / f"out{i}/000.tar") != told(done / "000.tar")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rules": replace(SHORT, keep=1)}, r"other settings: keep was 2 and is 1. Give those"),
        ({"rules": replace(SHORT, seed=5, top_p=0.5)}, r"top_p was 0.9 and is 0.5, seed was 0 and"),
        ({"prompt": "the"}, r"prompt was 'a photo of' and is 'the'"),
        ({"dtype": "bf16"}, r"dtype was 'fp32' and is 'bf16'"),
        ({"captioner": "another/model"}, r"captioner was '.*' and is 'another/model'"),
    ],
)
def test_a_run_goes_on_with_its_own_settings_alone(run, done, tmp_path, changes, message):
    shutil.copytree(done, tmp_path / "out")
    with pytest.raises(ValueError, match=message):
        run(**changes)


def test_a_run_goes_on_with_its_own_source_alone(run, done, web, tmp_path):
    shutil.copytree(done, tmp_path / "out")
    with pytest.raises(ValueError, match=r"another source: its shard 001.tar was one of 4 samples"):
        run(web / "000.tar")
    shutil.copytree(web, tmp_path / "moved")
    assert run(tmp_path / "moved").samples == sum(SIZES)
    files = {"0000.jpg": picture(0), "0000.txt": b"a cat"}
    size = write_tar(tmp_path / "moved/000.tar", files).stat().st_size
    message = (
        rf"000.tar was one of 5 samples and \d+ bytes, and now is one of 1 samples and {size} b"
    )
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "moved")


def test_a_run_goes_on_with_its_own_weights_alone(run, done, opt_folder, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(opt_folder, model)
    run(captioner=model)
    (tmp_path / "out/002.tar").unlink()
    tensors = load_file(model / "model.safetensors")
    tensors["query_tokens"][0, 0, 0] += 1e-3
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"captioner_weights was '\w{16}' and is '\w{16}'"):
        run(captioner=model)


def test_a_folder_in_use_is_refused(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"in use \(notes.txt\) and isn't capfilt's; choose anoth"):
        run()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"file is a file; choose a folder for the shards"):
        run(out="file")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"capfilt.json is damaged \(.*\); choose another --out"),
        ('{"format": 2, "settings": {}, "shards": {}}', r"has format 2, this blip2ft writes 1"),
    ],
)
def test_a_damaged_or_later_folder_is_refused(run, tmp_path, text, message):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/capfilt.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        run()


def test_two_runs_do_not_write_the_same_shards(run, tmp_path):
    (tmp_path / "out").mkdir()
    with (
        FileLock(tmp_path / "out/.lock-0"),
        pytest.raises(ValueError, match=r"another run is writing to .*out; wait for its end"),
    ):
        run()


def test_shards_of_the_same_name_are_refused(run, tmp_path):
    files = {"a.jpg": picture(1), "a.txt": b"a cat"}
    for folder in ("one", "two"):
        write_tar(tmp_path / "web" / folder / "0.tar", files)
    with pytest.raises(ValueError, match=r"would both be written as 0.tar; give one folder"):
        run(tmp_path / "web")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"candidates": 0}, r"candidates is 0: allowed is 1 or more"),
        ({"keep": 5}, r"keep is 5: allowed is 1 to 4, all candidates and a caption of the web"),
        ({"keep": 0}, r"keep is 0: allowed is 1 to 4"),
        ({"score": "clip"}, r"score is 'clip': allowed is itm, itc, itc\+itm"),
        ({"min_score": 1.5}, r"min_score is 1.5: allowed is 0 to 1 with score itm"),
        ({"top_p": 0.0}, r"top_p is 0.0: allowed is above 0, to 1"),
        ({"max_new_tokens": 0}, r"max_new_tokens is 0: allowed is 1 or more"),
    ],
)
def test_rules_out_of_range_are_refused(run, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run(rules=replace(SHORT, **changes))
    assert not (tmp_path / "out").exists()


def test_other_options_out_of_range_are_refused(run):
    with pytest.raises(ValueError, match="batch_size is 0: allowed is 1 or more"):
        run(batch_size=0)
    with pytest.raises(ValueError, match="dtype is 'fp8': allowed are auto, fp32, bf16"):
        run(dtype="fp8")


def test_models_of_the_wrong_kind_are_refused(run, opt_folder, retriever_folder, tmp_path):
    with pytest.raises(ValueError, match="generates text and compares none; for retrieval start"):
        run(scorer=opt_folder)
    with pytest.raises(ValueError, match="retrieval checkpoint without a language model, so it c"):
        run(captioner=retriever_folder)
    assert not (tmp_path / "out").exists()


def test_a_scorer_that_was_tuned_without_the_score_is_refused(run, retriever_folder, tmp_path):
    scorer = tmp_path / "scorer"
    shutil.copytree(retriever_folder, scorer)
    (scorer / "blip2ft.json").write_text('{"objectives": {"itc": 1.0}, "max_text_tokens": 20}')
    message = r"scorer was tuned without itm \(itc\), so its score itc\+itm means nothing; choose"
    with pytest.raises(ValueError, match=message):
        run(scorer=scorer, rules=replace(SHORT, score="itc+itm"))
    assert run(scorer=scorer, rules=replace(SHORT, score="itc")).samples == 12


def test_a_run_is_a_captioner_with_the_prompt_it_was_tuned_on(run, run_folder, done, web, tmp_path):
    run(web / "000.tar", captioner=run_folder)
    made = json.loads((tmp_path / "out/capfilt.json").read_text())["settings"]
    assert made["prompt"] == "the photo of"
    assert told(tmp_path / "out/000.tar") != told(done / "000.tar")
    with pytest.raises(ValueError, match="is a run of the task caption, and one of retrieval is n"):
        run(out="other", scorer=run_folder)


def test_the_command_prints_what_became_of_the_samples(
    opt_folder, retriever_folder, web, done, tmp_path, capsys
):
    argv = ["capfilt", str(web), "--out", str(tmp_path / "out")]
    argv += ["--captioner", str(opt_folder), "--scorer", str(retriever_folder)]
    argv += ["--candidates", "3", "--max-new-tokens", "4", "--cache", str(tmp_path / "cache")]
    with pytest.raises(SystemExit) as status:
        main(argv)
    assert status.value.code == 0
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines()]
    counts = read_counts(done, [f"{i:03}.tar" for i in range(len(SIZES))])
    assert ["samples", "12"] in rows
    assert ["captions", "of", "the", "web", "12", f"{counts.web_score / 12:.4f}"] in rows
    assert ["kept", str(counts.web_kept)] in rows
    assert ["captions", "kept", "24", f"{counts.kept_score / 24:.4f}"] in rows
    assert printed.endswith("out: 12 samples; 0 couldn't be read\n")
    assert same_folders(tmp_path / "out", done)
    with pytest.raises(SystemExit) as status:
        main([*argv, "--keep", "9"])
    assert status.value.code == 2
    assert "error: keep is 9: allowed is 1 to 4" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*argv, "--scorer", "nowhere/at/all"])
    assert "there is no folder nowhere/at/all" in capsys.readouterr().err


STOPPING = """
import os, signal, sys
import blip2ft.capfilt as module
from blip2ft.cli import main

real, count = module.filter_images, [0]

def stop(*given):
    for outcome in real(*given):
        count[0] += 1
        if count[0] == int(os.environ.get("STOP_AT", "0")):
            os.kill(os.getpid(), signal.SIGKILL)
        yield outcome

module.filter_images = stop
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_killed_runs_of_two_processes_go_on_to_the_same_bytes(
    opt_folder, retriever_folder, web, done, tmp_path
):
    argv = ["capfilt", str(web), "--out", str(tmp_path / "out")]
    argv += ["--captioner", str(opt_folder), "--scorer", str(retriever_folder)]
    argv += ["--candidates", "3", "--max-new-tokens", "4", "--cache", str(tmp_path / "cache")]
    (tmp_path / "stopping.py").write_text(STOPPING)
    alone = [sys.executable, str(tmp_path / "stopping.py"), *argv]
    for at in (3, 8):  # in the first shard, and with one whole in the next but one
        killed = subprocess.run(alone, env={**os.environ, "STOP_AT": str(at)}, check=False)
        assert killed.returncode == -signal.SIGKILL
    assert list((tmp_path / "out").glob(".partial-*"))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    launched = subprocess.run(
        [*launch, "2", str(tmp_path / "stopping.py"), *argv], capture_output=True, text=True
    )
    assert launched.returncode == 0, launched.stderr
    assert launched.stdout.count("couldn't be read") == 1
    assert same_folders(tmp_path / "out", done)
