"""A run that stops because its numbers aren't finite says what it can go on from."""

import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from blip2ft.training.nonfinite import explain_step, last_finite, way_on


@pytest.fixture
def checkpoints(tmp_path) -> Path:
    for step in (200, 400, 600):
        (tmp_path / f"step-{step:08d}").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("left_out", "finite"), [([], 5), ([5], 4), ([3, 5], 4), ([3, 4, 5], 2), ([1, 2, 3, 4, 5], 0)]
)
def test_the_last_finite_step_is_the_last_that_wasnt_left_out(tmp_path, left_out, finite):
    lines = [json.dumps({"step": step}) + "\n" for step in left_out]
    (tmp_path / "nonfinite.jsonl").write_text("".join(lines))
    assert last_finite(tmp_path, 5, Accelerator(cpu=True)) == finite


def test_checkpoints_of_weights_that_gave_nothing_finite_are_named_as_ruined(checkpoints):
    assert way_on(checkpoints, 301, None) == (
        "No step after step 301 was finite, whatever its samples: the weights that it left are "
        "ruined, also those of step-00000400 and step-00000600. To go on, lower optimizer.lr, move "
        f"step-00000400 and step-00000600 in {checkpoints} away and go on with --resume, from "
        "step-00000200."
    )


def test_where_no_checkpoint_is_sound_the_run_begins_from_the_beginning(checkpoints):
    assert way_on(checkpoints, 200, None).endswith(
        "away and go on with --resume, from the beginning."
    )
    assert way_on(checkpoints / "none", 1, None).endswith(
        "are ruined. To go on, lower optimizer.lr and go on with --resume, from the beginning."
    )


def test_after_one_step_alone_both_ways_are_told(checkpoints):
    saved = checkpoints / "step-00000600"
    told = way_on(checkpoints, 600, saved)
    assert f"saved in {saved}. If samples or the precision are to blame, change that" in told
    assert "its weights are ruined: lower optimizer.lr, move step-00000600 in " in told
    assert told.endswith("go on with --resume, from step-00000400.")


def test_where_no_step_was_finite_nothing_is_resumed(checkpoints):
    told = way_on(checkpoints, 0, None)
    assert told.startswith("No step was finite, so nothing was learned: change what is wrong and")
    assert "--resume" not in told


def test_a_weight_that_isnt_finite_is_named_where_only_the_gradient_shows_it(tmp_path):
    model = nn.ModuleDict({"language_projection": nn.Linear(2, 2)})
    with torch.no_grad():
        model["language_projection"].bias[1] = -torch.inf  # of which softmax makes a zero

    def loss(model: nn.Module, batch: dict) -> torch.Tensor:
        weights = model["language_projection"](batch["x"]).softmax(-1)
        return weights.sum() + (model["language_projection"].bias.exp()).sum().sqrt()

    told = explain_step(
        accelerator=Accelerator(cpu=True),
        run=tmp_path,
        step=1,
        model=model,
        batches=[{"x": torch.ones(1, 2)}],
        loss=loss,
        mean_loss=1.0,
        samples=[["a.jpg"]],
    )
    assert told.startswith(
        "step 1: the gradient isn't finite; it comes from part 'projection', whose weight "
        "language_projection.bias isn't finite: fetch the checkpoint"
    )
