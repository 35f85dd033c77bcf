"""What a run needs is computed once, by all processes, and never served stale."""

import os
import pickle
import shutil
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from cached_run import Run
from PIL import Image

from blip2ft.data.loading import load_pixels
from blip2ft.features import build as module
from blip2ft.features import compute as compute_module
from blip2ft.features import together as together_module
from blip2ft.features.build import Kept, build
from blip2ft.features.level import QUERIES, VISION, cache_level
from blip2ft.features.manage import list_caches, remove
from blip2ft.features.serve import compute_features
from blip2ft.features.together import lock_together
from blip2ft.features.wanted import Wanted, want_features


@pytest.mark.parametrize("level", [VISION, QUERIES])
def test_what_is_served_is_what_the_model_computes(run, level):
    with torch.inference_mode():
        expected = [
            compute_features(run.model, level, load_pixels(record, run.transforms[1])[None])[0]
            for record in run.records
        ]
    augment, resize = run.use(level, evaluated=run.records)
    for transform in (augment, resize):
        for record, states in zip(run.records, expected, strict=True):
            found = load_pixels(record, transform)
            assert found.shape == states.shape
            torch.testing.assert_close(found, states, rtol=1e-5, atol=1e-6)
    assert not torch.equal(expected[0], expected[1])
    assert "features of 16 images to compute, " in run.said[0]
    assert f"features of 16 images: level {level}, fp32, in {run.folder}" in run.said[-1]


def test_nothing_is_computed_twice(run, computed):
    run.use()
    assert computed == [8, 2]
    run.use()
    assert computed == [8, 2]
    assert "features of 10 images: all there" in run.said[-1]


def test_equal_images_are_kept_once(run, computed):
    twins = [replace(record, image_id=f"again {i}") for i, record in enumerate(run.records)]
    run.use(records=[*run.records, *twins])
    assert computed == [8, 2]


def test_embedded_bytes_too(run, computed):
    held = [replace(record, image=record.image.read_bytes()) for record in run.records]
    augment, files = run.use(records=held, evaluated=run.records)
    for one, other in zip(held, run.records, strict=True):
        torch.testing.assert_close(load_pixels(one, augment), load_pixels(other, files))
    assert computed == [8, 8]
    run.use(records=held, evaluated=run.records)
    assert computed == [8, 8]


def test_changed_and_new_images_alone_are_computed(run, photos, computed):
    old = load_pixels(run.records[3], run.use()[0])
    path = photos / "photo3.jpg"
    Image.new("RGB", (40, 48), "red").save(path)
    os.utime(path, ns=(0, 10**18))
    Image.new("RGB", (40, 48), "blue").save(photos / "new.jpg")
    new = replace(run.records[0], image=photos / "new.jpg", image_id="new")
    augment, _ = run.use(records=[*run.records, new])
    assert computed == [8, 2, 2]
    assert not torch.equal(load_pixels(run.records[3], augment), old)
    assert not torch.equal(load_pixels(new, augment), load_pixels(run.records[3], augment))


def test_an_image_that_changes_while_a_run_goes_on_is_told(run, photos):
    augment, _ = run.use()
    os.utime(photos / "photo3.jpg", ns=(0, 10**18))
    with pytest.raises(ValueError, match=r"captions\.csv:5: the image has changed since"):
        load_pixels(run.records[3], augment)


def test_an_image_that_changes_while_it_is_read_is_told(run, photos, monkeypatch):
    def change(record, transform, rng):
        os.utime(photos / "photo3.jpg", ns=(0, 10**18))
        return load_pixels(record, transform, rng)

    monkeypatch.setattr(compute_module, "load_pixels", change)
    with pytest.raises(ValueError, match=r"captions\.csv:5: the image changed while its features"):
        run.use()


def test_other_weights_are_another_cache(run, computed):
    before = load_pixels(run.records[0], run.use()[0])
    run.model.vision_model.encoder.layers[0].mlp.fc1.weight.data[0, 0] += 1
    after = load_pixels(run.records[0], run.use()[0])
    assert computed == [8, 2, 8, 2]
    assert not torch.equal(before, after)


def test_what_trains_may_change(run, computed):
    run.use()
    run.model.vision_model.post_layernorm.weight.data += 1
    run.model.qformer.layernorm.weight.data += 1
    run.use()
    assert computed == [8, 2]


@pytest.mark.parametrize(("dtype", "tolerance"), [("bf16", 2**-8), ("int8", 1 / 253)])
def test_smaller_rows_differ_by_their_rounding(run, dtype, tolerance):
    whole, _ = run.use()
    small, _ = run.use(dtype=dtype)
    for record in run.records:
        states, found = load_pixels(record, whole), load_pixels(record, small)
        largest = float(states.abs().max())
        assert 0 < float((states - found.float()).abs().max()) <= tolerance * largest


def test_a_broken_image_stops_it_and_the_rest_stays(run, photos, computed, monkeypatch):
    monkeypatch.setattr(compute_module, "BATCH", 2)
    (photos / "photo5.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"photo5\.jpg \(named in captions\.csv:7\): not an image"):
        run.use(workers=1)
    assert computed == [2, 2]
    Image.new("RGB", (40, 48), "red").save(photos / "photo5.jpg")
    run.use()
    assert computed == [2, 2, 2, 2, 2]
    assert any("by the first 2, the rest takes about" in line for line in run.said)


def test_features_that_arent_finite_are_never_kept(run, computed, monkeypatch):
    def spoiled(model, level, pixels):
        features = compute_features(model, level, pixels)
        features[2, 0, 0] = float("nan")
        return features

    with monkeypatch.context() as patch:
        patch.setattr(compute_module, "compute_features", spoiled)
        said = r"compute NaN or infinity in fp32 of 1 image, such as captions\.csv:4; set"
        with pytest.raises(ValueError, match=said):
            run.use()
    run.use()
    assert sum(computed) == 10  # 8 of training, 2 of evaluation: none was kept


def test_a_disk_that_is_too_small_is_told_before(run, computed, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=6000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ValueError, match=r"take 6\.7 kB \(640 bytes each\), and .* has 6\.0 kB"):
        run.use()
    assert computed == []
    usage = usage._replace(free=10 * (5 * 32 * 4 + 32))
    run.use()
    assert computed == [8, 2]


def test_dropout_and_random_states_are_left_alone(run):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run.use()
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("removed", [False, True], ids=["left", "removed"])
def test_another_run_at_it_is_waited_for(run, computed, removed):
    (wanted, _) = want(run)
    wanted.store.open()
    program = "import shutil, sys, time, filelock\nfrom pathlib import Path\n"
    program += "folder = Path(sys.argv[1])\nwith filelock.FileLock(folder / '.lock'):\n"
    program += "    print('held', flush=True)\n    time.sleep(1)\n"
    program += "    shutil.rmtree(folder)" if removed else ""
    path = str(wanted.store.folder)
    other = subprocess.Popen(
        [sys.executable, "-c", program, path], stdout=subprocess.PIPE, text=True
    )
    with other:
        assert other.stdout.readline() == "held\n"
        run.use()
    assert other.returncode == 0
    assert f"another run is computing features into {wanted.store.folder}; waiting" in run.said[0]
    assert computed == [8, 2]
    assert sorted(cache.images for cache in list_caches(run.folder)) == [2, 8]


def test_what_was_removed_before_a_run_has_the_lock_is_computed_again(run, computed, monkeypatch):
    run.use(records=run.records[:4])
    wanted = want(run)

    def removed_late(stack, folders, accelerator, say):
        for cache in list_caches(run.folder):
            assert remove(cache) == "removed"

    monkeypatch.setattr(module, "lock_together", removed_late)
    build(run.model, VISION, wanted, Accelerator(cpu=True), say=run.said.append)
    assert computed == [4, 2, 8, 2]
    assert sorted(cache.images for cache in list_caches(run.folder)) == [2, 8]


def test_a_cache_that_is_removed_while_a_run_goes_on_is_told(run):
    augment, _ = run.use()
    for cache in list_caches(run.folder):
        assert remove(cache) == "removed"
    in_a_worker = pickle.loads(pickle.dumps(augment))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"csv:2: its features were removed .* again with --"):
            load_pixels(run.records[0], in_a_worker)
    load_pixels(run.records[0], augment)  # what is mapped stays


def test_what_another_run_computed_meanwhile_isnt_computed_again(run, computed, monkeypatch):
    wanted = want(run)
    other = want(run)

    def found_late(stack, folders, accelerator, say):
        if not computed:
            monkeypatch.undo()
            build(run.model, VISION, other, Accelerator(cpu=True), say=run.said.append)

    monkeypatch.setattr(module, "lock_together", found_late)
    build(run.model, VISION, wanted, Accelerator(cpu=True), say=run.said.append)
    assert sum("images to compute" in line for line in run.said) == 2
    assert run.said[-2].startswith("features of 0 images to compute")
    assert len(Kept(wanted[0].store).store) == 8


def want(run: Run) -> list[Wanted]:
    return want_features(
        run.model,
        VISION,
        folder=str(run.folder),
        dtype="fp32",
        name="a model",
        records=(run.records, run.records[:2]),
        transforms=run.transforms,
        precision="fp32",
    )


@pytest.mark.parametrize("apart", [False, True], ids=["shared", "apart"])
def test_two_processes_share_the_work_where_they_share_the_folder(
    run, two_processes, tmp_path, apart
):
    found = two_processes(**({"APART": "1"} if apart else {}))
    assert found.returncode == 0, found.stderr[-3000:]
    rows = [torch.load(f"{run.folder}-{rank}.pt") for rank in (0, 1)]
    assert torch.equal(*rows)
    expected = torch.stack([load_pixels(record, run.use()[0]) for record in run.records])
    torch.testing.assert_close(rows[0], expected, rtol=1e-5, atol=1e-6)
    folders = sorted(tmp_path.glob("cache[01]")) if apart else [tmp_path / "cache"]
    assert len(folders) == 1 + apart
    for folder in folders:
        sizes = sorted(path.stat().st_size // 640 for path in folder.glob("*/*.rows"))
        assert sizes == ([2, 8] if apart else [1, 1, 4, 4])
        assert not list(folder.glob("*/.here-*"))


def test_where_one_process_fails_all_stop(two_processes, photos, tmp_path):
    (photos / "photo5.jpg").write_bytes(b"no image")
    found = two_processes()
    assert found.returncode != 0
    for rank in (0, 1):
        said = (tmp_path / f"cache-{rank}.txt").read_text()
        assert said.startswith(f"{photos / 'photo5.jpg'} (named in captions.csv:7): not an image")


@pytest.mark.slow
def test_where_one_process_lacks_a_file_all_stop(two_processes, photos, tmp_path):
    found = two_processes(LACKS="photo5.jpg")
    assert found.returncode != 0
    for rank in (0, 1):
        said = (tmp_path / f"cache-{rank}.txt").read_text()
        assert said == f"KeyError: '{photos / 'photo5.jpg'}'"


def test_who_waits_comes_to_every_collective(tmp_path, monkeypatch):
    """Of two processes, this one has no folder to lock; the other has its lock at the third try."""
    theirs, said = [tmp_path, tmp_path, None], []

    def of_two(accelerator, value):
        # `together` asks for messages, which nobody has, then `lock_together` for folders
        calls.append(value)
        return [None, None] if len(calls) % 2 else [None, theirs.pop(0)]

    calls: list[object] = []
    monkeypatch.setattr(together_module, "of_all", of_two)
    monkeypatch.setattr(together_module, "PAUSE", 0)
    with ExitStack() as stack:
        lock_together(stack, (), Accelerator(cpu=True), said.append)
    assert len(calls) == 6
    assert said == [f"another run is computing features into {tmp_path}; waiting for its end"]


SETTINGS = {
    "cache": {"folder": "features", "dtype": "bf16"},
    "parts": {"vision": "frozen", "qformer": "full", "projection": "full", "language": "frozen"},
    "data": {"crop_scale": None, "flip": False, "stream": None, "on_bad_image": "stop"},
}


def settings(**changes: Any) -> dict[str, Any]:
    return {k: {**v, **changes.pop(k, {})} for k, v in SETTINGS.items()} | changes


def test_the_level_is_where_nothing_trains():
    frozen = {"qformer": "frozen", "projection": "frozen", "language": "lora"}
    assert cache_level(settings(parts=frozen)) == QUERIES
    assert cache_level(settings(parts={**frozen, "qformer": "lora"})) == VISION
    assert cache_level(settings(parts={**frozen, "projection": "full"})) == VISION
    assert cache_level(settings(parts=frozen, question_in_qformer=False)) == QUERIES
    assert cache_level(settings(parts=frozen, question_in_qformer=True)) == VISION
    assert cache_level(settings(parts=frozen, objectives={"itc": 1.0})) == VISION
    assert cache_level(settings(cache={"folder": None}, data={"flip": True})) is None
    assert cache_level(settings(evaluate_only=True)) is None
    outside = {"train": {"allow": ["outside"]}, "test": None}
    assert cache_level(settings(data=outside)) == VISION


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts": {"vision": "full"}}, r"parts\.vision is full.*: set it to frozen"),
        ({"parts": {"vision": "lora"}}, r"parts\.vision is lora.*: set it to frozen"),
        ({"data": {"crop_scale": (0.5, 1.0)}}, r"data\.crop_scale crops.*: set it to null"),
        ({"data": {"flip": True}}, r"data\.flip draws anew.*: set it to false"),
        ({"data": {"stream": {"sources": []}}}, r"data\.stream may have .*: give data\.train"),
        (
            {"data": {"train": {"allow": ["remote"]}}},
            r"data\.train\.allow has .*: fetch the images",
        ),
        ({"data": {"train": [{}, {"allow": ["remote"]}]}}, r"data\.train\.allow has remote"),
        ({"data": {"test": {"allow": ["outside", "remote"]}}}, r"data\.test\.allow has remote"),
        ({"data": {"on_bad_image": "skip"}}, r"data\.on_bad_image is skip.*: set it to stop"),
    ],
    ids=["full", "lora", "crop", "flip", "stream", "remote", "remote-vqa", "remote-test", "skip"],
)
def test_what_would_be_stale_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        cache_level(settings(**changes))
