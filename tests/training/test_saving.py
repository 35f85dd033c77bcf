"""What a run saves while it goes on: nothing is lost by a signal, a full disk or a damaged file."""

import errno
import multiprocessing
import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from small_run import small_run
from two_processes import train_on_two

import blip2ft.training.checkpoint as checkpoint
import blip2ft.training.keeping
import blip2ft.training.log
import blip2ft.training.loop
import blip2ft.training.stored as stored
from blip2ft.errors import Interrupted
from blip2ft.tasks.caption import caption_loss
from blip2ft.training import signals
from blip2ft.training.milestones import Milestones
from blip2ft.training.run import read_lines
from blip2ft.training.stored import checkpoint_of, damage_of, list_checkpoints, read_state


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_lines(run / "log.jsonl")]


def assert_same_end(first: Path, second: Path) -> None:
    assert losses(first) == losses(second)
    (one,), (other,) = (list_checkpoints(run / "end") for run in (first, second))
    for name in ("trained.safetensors", "rest.pt", "state.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def failing_from(step: int, number: int = errno.ENOSPC):
    """`write_checkpoint`, for which the disk is full from `step` on."""

    def write(final, weights, rest, state):
        stored.write_checkpoint(final, weights, rest, state)
        if state["step"] >= step:
            stored.shutil.rmtree(final)
            raise ValueError(f"{final} can't be saved: {os.strerror(number)}. The checkpoints")

    return write


def test_evaluation_goes_on_while_a_checkpoint_is_written(
    opt_folder, photo_folder, tmp_path, monkeypatch
):
    evaluated, write = multiprocessing.Event(), checkpoint.write_checkpoint

    def late(final, *words):
        assert "end" in final.parts or evaluated.wait(60)
        write(final, *words)

    def evaluate(step):
        assert not checkpoint_of(tmp_path / "checkpoints", step).exists()
        evaluated.set()
        return {"cider": 0.5}

    monkeypatch.setattr(checkpoint, "write_checkpoint", late)
    small_run(opt_folder, photo_folder, tmp_path, steps=1, evaluate=evaluate)
    path = checkpoint_of(tmp_path / "checkpoints", 1)
    assert damage_of(path) == ""
    assert read_state(path)["best"] == 0.5  # put in when both had ended


def test_a_signal_ends_an_evaluation_at_once_and_it_is_done_after_a_resume(
    opt_folder, photo_folder, tmp_path
):
    whole, parts, seen = tmp_path / "whole", tmp_path / "parts", []

    def evaluate(step):
        seen.append(step)
        torch.rand(1)
        if seen == [2]:
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("the evaluation went on")
        return {"cider": float(step)}

    with pytest.raises(Interrupted, match=r"step-00000002\. ") as stop:
        small_run(opt_folder, photo_folder, parts, evaluate=evaluate)
    assert stop.value.signal_number == signal.SIGTERM
    assert damage_of(stop.value.checkpoint) == ""
    assert (parts / "stopped.json").is_file()
    options = {"evaluate": evaluate, "resume_from": stop.value.checkpoint}
    small_run(opt_folder, photo_folder, parts, **options)
    assert seen == [2, 2, 3]
    small_run(opt_folder, photo_folder, whole)
    assert_same_end(parts, whole)


@pytest.mark.parametrize("step", [2, 3])
def test_a_signal_before_an_evaluation_or_the_end_isnt_lost(
    opt_folder, photo_folder, tmp_path, monkeypatch, step
):
    """Of 3 steps; the signal comes while the step's line is logged."""
    logged = blip2ft.training.log.Log.step

    def log(self, now, *words):
        logged(self, now, *words)
        if now == step and not (tmp_path / "stopped.json").exists():
            os.kill(os.getpid(), signal.SIGUSR1)

    def evaluate(now):
        assert now < step
        return {"cider": float(now)}

    monkeypatch.setattr(blip2ft.training.log.Log, "step", log)
    with pytest.raises(Interrupted) as stop:
        small_run(opt_folder, photo_folder, tmp_path, evaluate=evaluate)
    assert stop.value.checkpoint == checkpoint_of(tmp_path / "checkpoints", step)
    assert damage_of(stop.value.checkpoint) == ""


def test_a_signal_at_the_end_of_the_last_evaluation_isnt_lost(
    opt_folder, photo_folder, tmp_path, monkeypatch
):
    def rewrite(path, state):
        stored.rewrite_state(path, state)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(blip2ft.training.keeping, "rewrite_state", rewrite)
    with pytest.raises(Interrupted) as stop:
        small_run(opt_folder, photo_folder, tmp_path, steps=1)
    assert read_state(stop.value.checkpoint)["evaluated"] == 1


def test_a_schedulers_second_signal_changes_nothing(
    opt_folder, photo_folder, tmp_path, monkeypatch
):
    """Slurm sends SIGUSR1, and SIGTERM when the time is over."""
    monkeypatch.setattr(signals, "ONE_SIGNAL_SECONDS", 0.0)

    def loss(model, batch):
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1):
            os.kill(os.getpid(), number)
            time.sleep(0.01)
        return caption_loss(model, batch)

    with pytest.raises(Interrupted) as stop:
        small_run(opt_folder, photo_folder, tmp_path, loss=loss)
    assert stop.value.signal_number == signal.SIGUSR1
    assert damage_of(stop.value.checkpoint) == ""


@pytest.mark.parametrize("step", [2, 4, 5], ids=["first", "later", "last"])
def test_a_full_disk_stops_the_run_and_what_was_saved_before_is_whole(
    opt_folder, photo_folder, tmp_path, monkeypatch, step
):
    """Checkpoints come at 2, 4 and the last step, which is 5."""
    whole, parts, options = tmp_path / "whole", tmp_path / "parts", {"steps": 5}
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_checkpoint", failing_from(step))
        with pytest.raises(ValueError, match=f"step-0000000{step} can't be saved: No space left"):
            small_run(opt_folder, photo_folder, parts, **options)
    found = list_checkpoints(parts / "checkpoints")
    assert found == [checkpoint_of(parts / "checkpoints", s) for s in (2, 4) if s < step]
    assert all(damage_of(path) == "" for path in found)
    assert not (parts / "stopped.json").exists()
    assert len(losses(parts)) == step  # known when the evaluation has ended

    begun = found[-1] if found else None
    small_run(opt_folder, photo_folder, parts, resume_from=begun, **options)
    small_run(opt_folder, photo_folder, whole, **options)
    assert_same_end(parts, whole)


def test_a_full_disk_is_told_to_who_stops_a_run_too(
    opt_folder, photo_folder, tmp_path, monkeypatch
):
    def evaluate(step):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(checkpoint, "write_checkpoint", failing_from(2))
    with pytest.raises(ValueError, match="step-00000002 can't be saved: No space left"):
        small_run(opt_folder, photo_folder, tmp_path, evaluate=evaluate)
    assert not (tmp_path / "stopped.json").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS], ids=["full", "read-only"])
def test_a_log_that_cant_be_written_stops_the_run_and_the_step_is_done_again(
    opt_folder, photo_folder, tmp_path, monkeypatch, number
):
    whole, parts, options = tmp_path / "whole", tmp_path / "parts", {"steps": 4}
    append = blip2ft.training.log.append_line

    def failing(path, values):
        if values["step"] == 3:
            with path.open("a") as file:
                file.write('{"step": 3, "lo')  # what there was space for
            raise OSError(number, os.strerror(number), str(path))
        append(path, values)

    with monkeypatch.context() as patch:
        patch.setattr(blip2ft.training.log, "append_line", failing)
        with pytest.raises(OSError, match=rf"{os.strerror(number)}: '.*log\.jsonl'"):
            small_run(opt_folder, photo_folder, parts, **options)
    (saved,) = list_checkpoints(parts / "checkpoints")
    assert damage_of(saved) == ""
    small_run(opt_folder, photo_folder, parts, resume_from=saved, **options)
    small_run(opt_folder, photo_folder, whole, **options)
    assert_same_end(parts, whole)


def scores(step: int) -> dict[str, float]:
    return {"cider": {1: 0.9, 2: 0.2, 3: 0.7, 4: 0.4}[step]}


def test_a_best_that_is_damaged_at_a_resume_gives_way_to_the_next(
    opt_folder, photo_folder, tmp_path, caplog
):
    options = {"every": 1, "keep": 2, "evaluate": scores}
    small_run(opt_folder, photo_folder, tmp_path, steps=3, **options)
    best, *_, newest = list_checkpoints(tmp_path / "checkpoints")
    assert best == checkpoint_of(tmp_path / "checkpoints", 1)
    (best / "rest.pt").write_bytes(b"")
    options |= {"steps": 4, "resume_from": newest}
    assert small_run(opt_folder, photo_folder, tmp_path, **options)[1] == 3
    assert "step-00000001, the best so far, is damaged (rest.pt is no longer what" in caplog.text


def test_a_best_that_is_damaged_at_the_end_gives_way_to_the_next(
    opt_folder, photo_folder, tmp_path, monkeypatch
):
    def evaluate(step):
        if step == 4:
            (checkpoint_of(tmp_path / "checkpoints", 1) / "rest.pt").write_bytes(b"")
        return scores(step)

    options = {"steps": 4, "every": 1, "evaluate": evaluate}
    assert small_run(opt_folder, photo_folder, tmp_path, **options)[1] == 3
    monkeypatch.setattr(stored, "damage_of", lambda path: "gone")
    with pytest.raises(ValueError, match=r"no checkpoint in .* is whole, so the run has no result"):
        small_run(opt_folder, photo_folder, tmp_path / "other", steps=1)


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("full", r"ValueError: .*step-00000003 can't be saved: No space left"),
        (
            "signal",
            rf"Interrupted {signal.SIGUSR1}: stopped; the state is saved in .*step-00000004",
        ),
    ],
    ids=["full", "signal"],
)
def test_what_stops_one_of_two_processes_stops_both_in_the_same_words(tmp_path, what, told):
    asked = []

    def count(batch) -> int:
        asked.append(1)
        if len(asked) == 5:
            os.kill(os.getpid(), signal.SIGUSR1)
        return 2

    def own(rank: int, _) -> dict:
        if what == "full":
            checkpoint.write_checkpoint = failing_from(3)  # which the first process calls
        signalled = {"count": count} if what == "signal" and rank else {}
        return {"milestones": Milestones(99, 3, best_metric="score"), **signalled}

    for said in train_on_two(tmp_path, own):
        assert re.match(told, said)
    steps = [read_state(path)["step"] for path in list_checkpoints(tmp_path / "checkpoints")]
    assert steps == ([] if what == "full" else [3, 4])
