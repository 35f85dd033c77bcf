"""Checkpoints on the disk: whole or not there, and what is damaged is told and left out."""

import errno
import json
import logging
import os
import resource
import shutil

import pytest
import torch
from accelerate import Accelerator

import blip2ft.training.stored as stored
from blip2ft.training.stored import (
    best_whole,
    checkpoint_of,
    damage_of,
    list_checkpoints,
    newest_whole,
    read_state,
    remove_old,
    rewrite_state,
    write_checkpoint,
)

NAMES = ["rest.pt", "state.json", "trained.safetensors"]


def write(folder, step: int, **state):
    path = checkpoint_of(folder, step)
    weights = {"weight": torch.full((64, 64), float(step))}
    write_checkpoint(path, weights, {"average": torch.ones(64, 64)}, {"step": step, **state})
    return path


def flip_a_bit(path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path) -> None:
    os.truncate(path, path.stat().st_size - 1)


DAMAGES = {"bit": flip_a_bit, "cut": cut, "gone": os.remove, "empty": lambda p: os.truncate(p, 0)}


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


def test_a_checkpoint_is_whole_as_it_was_written(tmp_path):
    path = write(tmp_path, 3, best=0.1, score=None)
    assert sorted(p.name for p in path.iterdir()) == NAMES
    assert damage_of(path) == ""
    assert read_state(path) == {"step": 3, "best": 0.1, "score": None}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_found(tmp_path, name, damage):
    path = write(tmp_path, 3)
    DAMAGES[damage](path / name)
    found = damage_of(path)
    assert found.startswith(f"{name} is ")
    assert found.endswith("missing") == (damage == "gone")


@pytest.mark.parametrize(
    "text", ["[]", "null", "{}", '{"sha256": []}', '{"sha256": {"rest.pt": ""}}', "\udc00"]
)
def test_a_state_of_another_kind_is_damage(tmp_path, text):
    path = write(tmp_path, 3)
    (path / "state.json").write_bytes(text.encode(errors="surrogatepass"))
    assert damage_of(path) == "state.json is no longer what was written, or has no checksums"


def test_a_state_with_another_value_is_damage(tmp_path):
    path = write(tmp_path, 3, best=0.5)
    state = (path / "state.json").read_text()
    (path / "state.json").write_text(state.replace("0.5", "0.7"))
    assert damage_of(path) == "state.json is no longer what was written"


@pytest.mark.parametrize(("name", "call"), [("rest.pt", "open"), ("state.json", "read_bytes")])
def test_a_disk_that_cant_be_read_is_damage(tmp_path, monkeypatch, name, call):
    path = write(tmp_path, 3)
    real = getattr(stored.Path, call)

    def failing(self, *words, **options):
        if self.name == name:
            raise OSError(errno.EIO, "Input/output error")
        return real(self, *words, **options)

    monkeypatch.setattr(stored.Path, call, failing)
    assert damage_of(path) == f"{name} can't be read: Input/output error"


def test_a_state_is_replaced_at_once(tmp_path, monkeypatch):
    path = write(tmp_path, 1, best=None)
    rewrite_state(path, {"step": 1, "best": 0.5})
    assert damage_of(path) == ""
    assert read_state(path) == {"step": 1, "best": 0.5}
    assert sorted(p.name for p in path.iterdir()) == NAMES

    def killed(_path):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        rewrite_state(path, {"step": 1, "best": 0.9})
    assert damage_of(path) == ""
    assert read_state(path) == {"step": 1, "best": 0.5}


@pytest.mark.parametrize("failing", ["save_file", "torch.save", "_sha256", "json.dumps"])
def test_a_full_disk_leaves_the_former_checkpoint_only(tmp_path, monkeypatch, failing):
    former = write(tmp_path, 1)

    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(f"blip2ft.training.stored.{failing}", full)
        with pytest.raises(
            ValueError,
            match=r"step-00000002 can't be saved: No space left on device\. The checkpoints before "
            r"it are whole: see to the disk, then go on with the same command and --resume",
        ):
            write(tmp_path, 2)
    assert list(tmp_path.iterdir()) == [former]
    assert damage_of(former) == ""
    assert damage_of(write(tmp_path, 2)) == ""


@pytest.mark.parametrize(
    ("weights", "averages", "most"),
    [(10_000, 1, 20_000), (1, 10_000, 20_000), (1, 1_000_000, 2_000_000), (1, 1, 1_500)],
    ids=["weights", "small-rest", "rest", "end"],
)
def test_a_file_that_cant_grow_leaves_the_former_checkpoint_only(tmp_path, weights, averages, most):
    """As the system does it, in the middle of either file, or at the end of the second."""
    former = write(tmp_path, 1)
    content = {"weight": torch.ones(weights)}, {"average": torch.ones(averages)}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        with pytest.raises(ValueError, match=r"step-00000002 can't be saved: File too large\. The"):
            write_checkpoint(checkpoint_of(tmp_path, 2), *content, {"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == [former]
    assert damage_of(former) == ""


def test_another_failure_of_torch_keeps_its_words(tmp_path, monkeypatch):
    def fail(*_args):
        raise RuntimeError("no such dtype")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(RuntimeError, match=r"^no such dtype$"):
        write(tmp_path, 1)


def test_a_read_only_folder_is_named(tmp_path, monkeypatch):
    def refuse(*_args, **_options):
        raise OSError(errno.EROFS, "Read-only file system", "/somewhere")

    monkeypatch.setattr(stored.Path, "mkdir", refuse)
    with pytest.raises(ValueError, match=r"step-00000002 can't be saved: Read-only file system\. "):
        write(tmp_path, 2)


def test_checkpoints_are_listed_in_the_order_of_their_steps(tmp_path):
    for step in (100, 9, 200_000_000, 20):
        write(tmp_path, step)
    for other in (".partial-step-00000200", "damaged-step-00000300", "step-4-copy"):
        (tmp_path / other).mkdir()
    steps = [read_state(path)["step"] for path in list_checkpoints(tmp_path)]
    assert steps == [9, 20, 100, 200_000_000]
    assert list_checkpoints(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("keep", "best", "left"),
    [
        (2, None, [4, 5]),
        (2, 1, [1, 4, 5]),
        (2, 5, [4, 5]),
        (9, 1, [1, 2, 3, 4, 5]),
        (0, 3, [3]),
    ],
)
def test_the_newest_and_the_best_are_kept(tmp_path, keep, best, left):
    for step in range(1, 6):
        checkpoint_of(tmp_path, step).mkdir()
    remove_old(tmp_path, keep, best)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"step-{step:08d}" for step in left]


def test_a_removal_that_is_cut_short_leaves_nothing_that_looks_whole(tmp_path, monkeypatch):
    for step in (1, 2):
        write(tmp_path, step)

    def killed(path, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(stored.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        remove_old(tmp_path, 1, None)
    assert list_checkpoints(tmp_path) == [checkpoint_of(tmp_path, 2)]


def test_a_run_that_stopped_before_its_first_checkpoint_says_that_it_begins_anew(
    tmp_path, accelerator, caplog
):
    caplog.set_level(logging.INFO)
    checkpoints = tmp_path / "checkpoints"
    assert newest_whole(checkpoints, accelerator) is None
    assert caplog.messages == []  # a new run
    (tmp_path / "config.yaml").touch()
    assert newest_whole(checkpoints, accelerator) is None
    assert caplog.messages == [
        f"{checkpoints} holds no checkpoint yet: the run begins at its first step"
    ]


def test_a_run_goes_on_from_the_newest_whole_checkpoint(tmp_path, accelerator, caplog):
    assert newest_whole(tmp_path / "none", accelerator) is None
    for step in (1, 2, 3, 4):
        write(tmp_path, step)
    caplog.set_level(logging.INFO)
    assert newest_whole(tmp_path, accelerator) == checkpoint_of(tmp_path, 4)
    assert caplog.messages == [f"the run goes on from {checkpoint_of(tmp_path, 4)}"]
    caplog.clear()
    flip_a_bit(checkpoint_of(tmp_path, 4) / "rest.pt")
    os.remove(checkpoint_of(tmp_path, 3) / "state.json")
    assert newest_whole(tmp_path, accelerator) == checkpoint_of(tmp_path, 2)
    assert caplog.messages == [
        f"{tmp_path}/step-0000000{step} is damaged ({damage}): it is set aside as "
        f"damaged-step-0000000{step}, and the run goes on from step-00000002"
        for step, damage in (
            (4, "rest.pt is no longer what was written"),
            (3, "state.json is missing"),
        )
    ]
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["damaged-step-00000003", "damaged-step-00000004", *names[2:]]
    assert list_checkpoints(tmp_path) == [checkpoint_of(tmp_path, step) for step in (1, 2)]


def test_what_was_set_aside_before_is_kept(tmp_path, accelerator):
    write(tmp_path, 1)
    for _ in range(3):
        cut(write(tmp_path, 2) / "rest.pt")
        newest_whole(tmp_path, accelerator)
    assert len(list(tmp_path.glob("damaged-step-00000002*"))) == 3


def test_a_run_without_a_whole_checkpoint_doesnt_begin_again(tmp_path, accelerator):
    for step in (1, 2):
        write(tmp_path, step)
    cut(checkpoint_of(tmp_path, 1) / "rest.pt")
    shutil.rmtree(checkpoint_of(tmp_path, 2))
    checkpoint_of(tmp_path, 2).mkdir()
    with pytest.raises(
        ValueError,
        match=r"can't be resumed: no checkpoint in .* is whole\n  step-00000002: state.json is "
        r"missing\n  step-00000001: rest.pt is no longer .*\nput a copy .* --output FOLDER",
    ):
        newest_whole(tmp_path, accelerator)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000001", "step-00000002"]


def test_what_cant_be_set_aside_stops_the_run(tmp_path, accelerator, monkeypatch):
    for step in (1, 2):
        write(tmp_path, step)
    cut(checkpoint_of(tmp_path, 2) / "rest.pt")

    def refuse(*_args):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(stored.Path, "rename", refuse)
    with pytest.raises(ValueError, match=r"2 is damaged .* can't be set aside: Read-only file sys"):
        newest_whole(tmp_path, accelerator)


def evaluated(folder, step: int, score: float):
    return write(folder, step, evaluated=step, score=score)


def test_of_a_damaged_best_the_next_best_takes_the_place(tmp_path, accelerator, caplog):
    assert best_whole(tmp_path, 0, None, accelerator) == (0, None)
    for step, score in ((1, 0.9), (2, 0.5), (3, 0.8), (4, 0.7)):
        evaluated(tmp_path, step, score)
    write(tmp_path, 5, evaluated=4, score=0.99)  # saved between evaluations
    assert best_whole(tmp_path, 1, 0.9, accelerator) == (1, 0.9)
    assert caplog.text == ""
    flip_a_bit(checkpoint_of(tmp_path, 1) / "trained.safetensors")
    assert best_whole(tmp_path, 1, 0.9, accelerator) == (3, 0.8)
    (said,) = (record.getMessage() for record in caplog.records)
    assert said == (
        f"{tmp_path}/step-00000001, the best so far, is damaged (trained.safetensors is no longer "
        "what was written): step 3 is the best of those that are whole"
    )
    caplog.clear()
    shutil.rmtree(checkpoint_of(tmp_path, 1))
    assert best_whole(tmp_path, 1, 0.9, accelerator) == (3, 0.8)
    assert "is damaged (it isn't there): step 3" in caplog.text


def test_without_another_that_was_evaluated_there_is_no_best(tmp_path, accelerator, caplog):
    cut(evaluated(tmp_path, 1, 0.9) / "rest.pt")
    write(tmp_path, 2, evaluated=1, score=0.9)
    assert best_whole(tmp_path, 1, 0.9, accelerator) == (0, None)
    assert caplog.text.rstrip().endswith(": none is left")


def test_a_state_is_json(tmp_path):
    path = write(tmp_path, 7, best=1 / 3)
    state = json.loads((path / "state.json").read_text())
    assert state["best"] == 1 / 3
    assert sorted(state["sha256"]) == NAMES
