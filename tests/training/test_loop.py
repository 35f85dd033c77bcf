"""The loop: how a batch is split and where a run stops changes nothing that is learned."""

import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_run import remembering, small_run

import blip2ft.data.loading
from blip2ft.data.images import open_image
from blip2ft.errors import Interrupted
from blip2ft.tasks.caption import caption_loss
from blip2ft.training import signals
from blip2ft.training.loop import train
from blip2ft.training.run import append_line, read_lines
from blip2ft.training.signals import STOPPING
from blip2ft.training.stored import checkpoint_of, list_checkpoints, read_state


def end_of(run: Path, steps: int = 3) -> dict[str, torch.Tensor]:
    return load_file(checkpoint_of(run / "end", steps) / "trained.safetensors")


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_lines(run / "log.jsonl")]


def signals_after(calls: int, number: int = signal.SIGINT):
    """`caption_loss`, during whose call number `calls` a signal arrives."""
    count = 0

    def loss(model, batch):
        nonlocal count
        count += 1
        if count == calls:
            os.kill(os.getpid(), number)
        return caption_loss(model, batch)

    return loss


def assert_close(first: Path, second: Path) -> None:
    one, other = end_of(first), end_of(second)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=0, atol=1e-6, msg=name)
    assert losses(second) == pytest.approx(losses(first), abs=1e-5)


@pytest.mark.parametrize("micro", [4, 3, 1])
def test_a_batch_accumulated_is_the_batch_at_once(model_folder, photo_folder, tmp_path, micro):
    options = {"adamw": False, "dropout": False}
    before = small_run(model_folder, photo_folder, tmp_path / "none", steps=0, **options)[0]
    small_run(model_folder, photo_folder, tmp_path / "once", **options)
    small_run(model_folder, photo_folder, tmp_path / "parts", micro=micro, **options)
    assert_close(tmp_path / "once", tmp_path / "parts")
    moved = end_of(tmp_path / "once")["language_projection.weight"]
    assert (moved - before.language_projection.weight).abs().max() > 1e-5


def on_two_processes(model_folder: Path, photos: Path, run: Path, steps: int) -> str:
    """A run of `small_run`, begun or gone on with; what it printed."""
    # not `accelerate launch --cpu`, which starts one process whatever --num_processes says
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2"]
    script = [Path(__file__).with_name("small_run.py"), model_folder, photos, run, steps]
    found = subprocess.run([*command, *map(str, script)], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-3000:]
    return found.stdout


def seen_by_step(run: Path, counts: list[int]) -> list[list[str]]:
    """The samples of each step, sorted; counts: how many processes it had."""
    lines = {path: iter(read_lines(path)) for path in sorted(run.glob("seen-*.jsonl"))}
    steps = []
    for processes in counts:
        files = list(lines.values())[:processes]
        batches = [next(file)["seen"] for file in files for _ in range(4 // processes)]
        steps.append(sorted(pixels for batch in batches for pixels in batch))
    return steps


def test_a_run_goes_on_with_another_number_of_processes(opt_folder, photo_folder, tmp_path):
    """1, 2 and 1 again, two steps each: samples are the same, losses but for rounding."""
    options = {"micro": 2, "adamw": False, "dropout": False}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for run in (whole, parts):
        run.mkdir()

    def go_on(run: Path, steps: int) -> None:
        found = list_checkpoints(run / "checkpoints")
        begun = found[-1] if found else None
        loss = remembering(run / "seen-0.jsonl")
        small_run(
            opt_folder, photo_folder, run, steps=steps, loss=loss, resume_from=begun, **options
        )

    go_on(whole, 6)
    go_on(parts, 2)
    assert "process 1 of 2" in on_two_processes(opt_folder, photo_folder, parts, 4)
    go_on(parts, 6)

    assert losses(parts) == pytest.approx(losses(whole), abs=1e-5)
    assert len(set(losses(whole))) == 6
    assert seen_by_step(parts, [1, 1, 2, 2, 1, 1]) == seen_by_step(whole, [1] * 6)
    expected = end_of(whole, 6)
    for name, tensor in end_of(parts, 6).items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("stopped_in", [1, 3, 4])
def test_a_resumed_run_is_the_uninterrupted_one(model_folder, photo_folder, tmp_path, stopped_in):
    """8 photos in batches of 6: step 3 is in the middle of an epoch. Dropout is on."""
    options = {"steps": 6, "batch_size": 6, "micro": 3}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    _, best = small_run(model_folder, photo_folder, whole, **options)
    loss = signals_after(2 * stopped_in)
    with pytest.raises(Interrupted, match=f"step-0000000{stopped_in}. The same command with"):
        small_run(model_folder, photo_folder, parts, loss=loss, **options)
    newest = list_checkpoints(parts / "checkpoints")[-1]
    torch.manual_seed(99)
    _, best_resumed = small_run(model_folder, photo_folder, parts, resume_from=newest, **options)

    assert best_resumed == best == 6
    assert losses(parts) == losses(whole)
    expected = end_of(whole, 6)
    for name, tensor in end_of(parts, 6).items():
        assert torch.equal(tensor, expected[name]), name
    ends = [torch.load(checkpoint_of(r / "end", 6) / "rest.pt") for r in (whole, parts)]
    assert torch.equal(ends[0]["random"][0]["torch"], ends[1]["random"][0]["torch"])
    for key, values in ends[0]["optimizer"]["state"].items():
        for name, value in values.items():
            assert torch.equal(ends[1]["optimizer"]["state"][key][name], value)


def test_dropout_is_on_in_training(opt_folder, photo_folder, tmp_path):
    small_run(opt_folder, photo_folder, tmp_path / "with", steps=1)
    small_run(opt_folder, photo_folder, tmp_path / "without", steps=1, dropout=False)
    assert losses(tmp_path / "with") != losses(tmp_path / "without")


def test_what_was_logged_after_the_checkpoint_is_logged_once(opt_folder, photo_folder, tmp_path):
    options = {"steps": 4, "every": 2}
    with pytest.raises(Interrupted):
        small_run(opt_folder, photo_folder, tmp_path, loss=signals_after(3), **options)
    earlier = checkpoint_of(tmp_path / "checkpoints", 2)
    small_run(opt_folder, photo_folder, tmp_path, resume_from=earlier, **options)
    assert [row["step"] for row in read_lines(tmp_path / "log.jsonl")] == [1, 2, 3, 4]


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_ends_the_step_and_saves_it(opt_folder, photo_folder, tmp_path, number):
    handlers = [signal.getsignal(n) for n in STOPPING]
    with pytest.raises(Interrupted, match=r"--resume goes on from there") as stop:
        small_run(opt_folder, photo_folder, tmp_path, loss=signals_after(1, number))
    assert stop.value.signal_number == number
    assert stop.value.checkpoint == checkpoint_of(tmp_path / "checkpoints", 1)
    assert list_checkpoints(tmp_path / "checkpoints") == [stop.value.checkpoint]
    assert json.loads((tmp_path / "stopped.json").read_text()) == {
        "signal": number.name,
        "checkpoint": "step-00000001",
    }
    assert [signal.getsignal(n) for n in STOPPING] == handlers


def test_a_second_ctrl_c_quits_at_once(opt_folder, photo_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(signals, "ONE_SIGNAL_SECONDS", 0.0)

    def loss(model, batch):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        return caption_loss(model, batch)

    with pytest.raises(KeyboardInterrupt):
        small_run(opt_folder, photo_folder, tmp_path, loss=loss)
    assert list_checkpoints(tmp_path / "checkpoints") == []


def test_a_signal_that_a_launcher_passes_on_is_the_first_one(opt_folder, photo_folder, tmp_path):
    def loss(model, batch):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        return caption_loss(model, batch)

    with pytest.raises(Interrupted) as stop:
        small_run(opt_folder, photo_folder, tmp_path, loss=loss)
    assert stop.value.signal_number == signal.SIGINT
    assert list_checkpoints(tmp_path / "checkpoints") == [stop.value.checkpoint]


def test_a_signal_that_ends_the_evaluations_workers_stops_the_run_cleanly(
    opt_folder, photo_folder, tmp_path
):
    def evaluate(step):
        os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Terminated.")

    with pytest.raises(Interrupted) as stop:
        small_run(opt_folder, photo_folder, tmp_path, evaluate=evaluate)
    assert stop.value.checkpoint == checkpoint_of(tmp_path / "checkpoints", 2)
    assert stop.value.checkpoint.is_dir()
    small_run(opt_folder, photo_folder, tmp_path, resume_from=stop.value.checkpoint)


def test_a_loss_that_isnt_finite_stops_before_the_weights_change(
    opt_folder, photo_folder, tmp_path
):
    weights, seen = {}, []

    def loss(model, batch):
        if len(seen) >= 2:  # from the third step on
            weights.setdefault("then", {n: p.detach().clone() for n, p in model.named_parameters()})
            batch = batch | {"pixel_values": batch["pixel_values"] * math.inf}
        seen.append(1)
        return caption_loss(model, batch)

    models = []
    said = (
        r"step 3: the loss is nan; it comes from part 'vision'.* is saved in .*step-00000002\. If"
    )
    with pytest.raises(ValueError, match=said):
        small_run(opt_folder, photo_folder, tmp_path, loss=loss, watch=models.append)
    for name, p in models[0].named_parameters():
        assert torch.equal(p, weights["then"][name]), name
    assert list_checkpoints(tmp_path / "checkpoints") == [
        checkpoint_of(tmp_path / "checkpoints", 2)
    ]


def test_a_gradient_that_isnt_finite_stops_before_the_weights_change(
    opt_folder, photo_folder, tmp_path
):
    models = []

    def loss(model, batch):
        # the root's slope at 0 is infinite, the loss stays as it is
        return caption_loss(model, batch) + (model.query_tokens * 0).sum().sqrt()

    before = small_run(opt_folder, photo_folder, tmp_path / "none", steps=0)[0].state_dict()
    said = r"step 1: the gradient isn't finite; it comes from part 'qformer', .*query_tokens.* for "
    with pytest.raises(ValueError, match=said):
        small_run(opt_folder, photo_folder, tmp_path / "run", loss=loss, watch=models.append)
    assert all(torch.equal(t, before[name]) for name, t in models[0].state_dict().items())


def test_a_few_steps_that_arent_finite_are_left_out_named_and_counted(
    opt_folder, photo_folder, tmp_path, caplog
):
    def loss(model, batch):
        bad = batch["pixel_values"].flatten(1)[:, 0] == worst  # in whichever step it comes
        batch = batch | {
            "pixel_values": batch["pixel_values"].masked_fill(bad[:, None, None, None], math.nan)
        }
        return caption_loss(model, batch)

    seen = []
    small_run(
        opt_folder, photo_folder, tmp_path / "see", steps=1, batch_size=1, micro=1,
        loss=lambda m, b: seen.append(b["pixel_values"].flatten()[0]) or caption_loss(m, b),
    )  # fmt: skip
    worst = seen[0]
    options = {"batch_size": 1, "micro": 1, "steps": 3, "loss": loss}
    small_run(opt_folder, photo_folder, tmp_path / "run", max_nonfinite=1, **options)
    assert "step 1: the loss is nan; it comes from part 'vision'" in caplog.text
    assert "The step is left out" in caplog.text
    (line,) = read_lines(tmp_path / "run" / "nonfinite.jsonl")
    assert line["step"] == 1
    assert line["loss"] == "nan"
    (name,) = line["samples"]
    assert re.fullmatch(r"photo\d\.jpg \(captions\.csv:\d+\)", name)
    rows = read_lines(tmp_path / "run" / "log.jsonl")
    assert [(row["step"], row["loss"] is None) for row in rows] == [
        (1, True), (2, False), (3, False),
    ]  # fmt: skip
    state = json.loads((checkpoint_of(tmp_path / "run/checkpoints", 2) / "state.json").read_text())
    assert state["nonfinite"] == 1
    with pytest.raises(
        ValueError, match=r"step 1: .*nonfinite\.jsonl\)\. No step was finite, so nothing"
    ):
        small_run(opt_folder, photo_folder, tmp_path / "none", **options)


def test_a_run_without_clipping_leaves_such_a_step_out_too(
    opt_folder, photo_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("small_run.train", partial(train, max_grad_norm=None))
    with pytest.raises(ValueError, match=r"step 1: the gradient isn't finite"):
        small_run(
            opt_folder, photo_folder, tmp_path,
            loss=lambda m, b: caption_loss(m, b) + (m.query_tokens * 0).sum().sqrt(),
        )  # fmt: skip


def test_a_broken_image_stops_the_run_with_its_state_saved(opt_folder, photo_folder, tmp_path):
    photos = tmp_path / "photos"
    shutil.copytree(photo_folder, photos)
    (photos / "photo5.jpg").write_bytes(b"no picture")
    options = {"steps": 4, "batch_size": 2, "every": 9}
    with pytest.raises(ValueError, match=r"photo5\.jpg.*The state is saved in .*--resume"):
        small_run(opt_folder, photos, tmp_path / "run", **options)
    (saved,) = list_checkpoints(tmp_path / "run" / "checkpoints")

    shutil.copy(photo_folder / "photo5.jpg", photos)
    small_run(opt_folder, photos, tmp_path / "run", resume_from=saved, **options)
    small_run(opt_folder, photo_folder, tmp_path / "whole", **options)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_a_disk_that_fails_stops_the_run_with_its_state_saved(
    opt_folder, photo_folder, tmp_path, monkeypatch
):
    opened = []

    def failing(*arguments, **options):
        opened.append(1)
        if len(opened) == 5:  # the first of the third batch
            raise OSError(5, "Input/output error")
        return open_image(*arguments, **options)

    monkeypatch.setattr(blip2ft.data.loading, "open_image", failing)
    with pytest.raises(ValueError, match=r"Input/output error \(The state is saved in .*--resume"):
        small_run(opt_folder, photo_folder, tmp_path, steps=4, batch_size=2, micro=2, every=9)
    (saved,) = list_checkpoints(tmp_path / "checkpoints")
    assert saved == checkpoint_of(tmp_path / "checkpoints", 2)


def test_a_worker_that_is_killed_stops_the_run_with_its_state_saved(
    opt_folder, photo_folder, tmp_path
):
    def loss(model, batch):
        for worker in multiprocessing.active_children():
            worker.kill()
            worker.join()
        return caption_loss(model, batch)

    with pytest.raises(ValueError, match=r"DataLoader worker .* lower data\.workers if memory ran"):
        small_run(opt_folder, photo_folder, tmp_path, steps=9, every=99, workers=1, loss=loss)
    (saved,) = list_checkpoints(tmp_path / "checkpoints")
    assert len(losses(tmp_path)) == int(saved.name.removeprefix("step-")) > 0


def failing_at(step: int, seen: list[int]):
    """An evaluation that can't be done at `step`; `seen` gets the steps of the others."""

    def evaluate(now):
        if now == step:
            raise ValueError("photo3.jpg: the image is damaged")
        seen.append(now)
        return {"cider": float(now)}

    return evaluate


@pytest.mark.parametrize("failed", [2, 5])
def test_a_failed_evaluation_loses_no_step_and_is_done_after_a_resume(
    opt_folder, photo_folder, tmp_path, failed
):
    """Checkpoints at 2, 4 and the last step, which is 5."""
    options = {"steps": 5, "batch_size": 6, "micro": 3}
    whole, parts, seen = tmp_path / "whole", tmp_path / "parts", []
    _, best = small_run(opt_folder, photo_folder, whole, **options)
    with pytest.raises(ValueError, match="damaged"):
        small_run(opt_folder, photo_folder, parts, evaluate=failing_at(failed, seen), **options)
    newest = list_checkpoints(parts / "checkpoints")[-1]
    assert newest == checkpoint_of(parts / "checkpoints", failed)

    options |= {"resume_from": newest, "evaluate": failing_at(0, seen)}
    _, best_resumed = small_run(opt_folder, photo_folder, parts, **options)
    assert seen == [2, 4, 5]
    assert best_resumed == best == 5
    assert losses(parts) == losses(whole)
    expected = end_of(whole, 5)
    assert all(torch.equal(t, expected[name]) for name, t in end_of(parts, 5).items())


def test_a_checkpoint_knows_its_evaluation(opt_folder, photo_folder, tmp_path):
    small_run(opt_folder, photo_folder, tmp_path, steps=4, evaluate=lambda step: {"cider": -step})
    found = [read_state(path) for path in list_checkpoints(tmp_path / "checkpoints")]
    first = {"step": 2, "evaluated": 2, "best_step": 2, "best": -2, "score": -2, "nonfinite": 0}
    assert found == [first, first | {"step": 4, "evaluated": 4, "score": -4}]


def test_what_an_evaluation_draws_changes_nothing(opt_folder, photo_folder, tmp_path):
    def evaluate(step):
        return {"cider": float(torch.rand(1)) + np.random.rand()}

    small_run(opt_folder, photo_folder, tmp_path / "some", every=1, evaluate=evaluate)
    small_run(opt_folder, photo_folder, tmp_path / "none", every=9)
    assert losses(tmp_path / "some") == losses(tmp_path / "none")


def test_a_run_that_begins_again_logs_every_step_once(opt_folder, photo_folder, tmp_path):
    def loss(model, batch):
        if len(losses(tmp_path)) == 2:
            raise KeyboardInterrupt
        return caption_loss(model, batch)

    append_line(tmp_path / "metrics.jsonl", {"step": 0, "split": "test"})
    with pytest.raises(KeyboardInterrupt):
        small_run(opt_folder, photo_folder, tmp_path, every=9, loss=loss)
    small_run(opt_folder, photo_folder, tmp_path, every=9)
    assert [row["step"] for row in read_lines(tmp_path / "log.jsonl")] == [1, 2, 3]
    assert read_lines(tmp_path / "metrics.jsonl") == [{"step": 0, "split": "test"}]


def test_speed_is_that_of_the_steps_alone(opt_folder, photo_folder, tmp_path, monkeypatch):
    now = 0.0

    def during(seconds, call):
        def timed(*arguments):
            nonlocal now
            now += seconds
            return call(*arguments)

        return timed

    with monkeypatch.context() as patch:
        patch.setattr("time.perf_counter", lambda: now)
        small_run(
            opt_folder,
            photo_folder,
            tmp_path,
            every=1,
            loss=during(2.0, caption_loss),
            evaluate=during(100.0, lambda step: {"cider": 0.0}),
        )
    assert [row["images_per_second"] for row in read_lines(tmp_path / "log.jsonl")] == [4.0] * 3


def test_micro_batches_are_prepared_together_before_the_first_forward(
    opt_folder, photo_folder, tmp_path
):
    told, seen = [], []

    def prepare(model, batches):
        told.append((model.training, len(batches)))
        return [batch | {"notes": (i, len(batches))} for i, batch in enumerate(batches)]

    def loss(model, batch):
        seen.append((len(told), batch.pop("notes")))
        return caption_loss(model, batch)

    small_run(
        opt_folder, photo_folder, tmp_path / "with", steps=2, micro=4, prepare=prepare, loss=loss
    )
    assert told == [(True, 2)] * 2
    assert seen == [(1, (0, 2)), (1, (1, 2)), (2, (0, 2)), (2, (1, 2))]
    small_run(opt_folder, photo_folder, tmp_path / "without", steps=2, micro=4)
    assert losses(tmp_path / "with") == losses(tmp_path / "without")


def test_a_metric_that_isnt_there_is_named(opt_folder, photo_folder, tmp_path):
    with pytest.raises(ValueError, match=r"best_metric is 'spice', .*; allowed are cider"):
        small_run(opt_folder, photo_folder, tmp_path, best_metric="spice")


def test_the_best_and_the_newest_checkpoints_are_kept(opt_folder, photo_folder, tmp_path):
    def evaluate(step):
        return {"cider": {1: 0.1, 2: 0.9}.get(step, 0.5)}

    _, best = small_run(
        opt_folder, photo_folder, tmp_path, steps=5, every=1, keep=1, evaluate=evaluate
    )
    assert best == 2
    found = [path.name for path in list_checkpoints(tmp_path / "checkpoints")]
    assert found == ["step-00000002", "step-00000005"]


def test_of_equal_scores_the_first_is_best(opt_folder, photo_folder, tmp_path):
    options = {"steps": 4, "evaluate": lambda step: {"cider": 0.0}}
    assert small_run(opt_folder, photo_folder, tmp_path, **options)[1] == 2


def test_frozen_weights_stay_and_the_log_holds_every_step(opt_folder, photo_folder, tmp_path):
    before = small_run(opt_folder, photo_folder, tmp_path / "none", steps=0)[0].state_dict()
    after = small_run(opt_folder, photo_folder, tmp_path / "some")[0].state_dict()
    for name, tensor in after.items():
        if name.startswith("language_model."):
            assert torch.equal(tensor, before[name]), name
    rows = read_lines(tmp_path / "some" / "log.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert [row["lr"] for row in rows] == pytest.approx([5e-4, 1e-3, 1e-3])
    assert all(row["grad_norm"] > 0 and row["images_per_second"] > 0 for row in rows)
