"""Several processes, holding the model whole or in shards, do what one does on the same batches."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from shared_run import shared_run

from blip2ft.training.run import read_lines
from blip2ft.training.stored import REST, checkpoint_of

PROGRAM = Path(__file__).with_name("shared_run.py")
SHARDS = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
AS_ZERO_2 = SHARDS | {"FSDP_RESHARD_AFTER_FORWARD": "false"}
TASKS = ["caption", "vqa", "retrieval"]
FURTHER = [*TASKS, "cached", "recomputed", "nf4", "int8"]
# Softmax doesn't see them, so their gradient is rounding alone, of which Adam makes whole steps.
KEYS = (".key.bias", ".k_proj.bias")


@pytest.fixture(scope="module")
def models(tmp_path_factory, opt_folder, t5_folder, wide_folder, retriever_folder) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, of in (("opt", opt_folder), ("t5", t5_folder), ("wide", wide_folder)):
        (folder / name).symlink_to(of)
    (folder / "retriever").symlink_to(retriever_folder)
    return folder


@pytest.fixture(scope="module")
def one(models, photo_folder, tmp_path_factory) -> Path:
    """What one process makes of it."""
    out = tmp_path_factory.mktemp("one")
    alone(models, photo_folder, out, [*TASKS, "adamw"])
    return out


def alone(models: Path, photos: Path, out: Path, tasks: list[str]) -> None:
    AcceleratorState._reset_state(True)
    shared_run(models, photos, out, tasks)
    AcceleratorState._reset_state(True)


def start(command: list[str], *argv: object, **variables: str) -> None:
    found = subprocess.run(
        [sys.executable, *command, str(PROGRAM), *map(str, argv)],
        capture_output=True,
        text=True,
        env=os.environ | variables,
    )
    assert found.returncode == 0, found.stderr[-3000:]


def together(processes: int, *argv: object, **variables: str) -> None:
    # not `accelerate launch --cpu`, which starts one process whatever --num_processes says
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    start(launcher, *argv, **variables)


def assert_same(
    one: Path, other: Path, task: str, *, rounding: float = 1e-6, step: int = 2
) -> None:
    logs = [read_lines(run / task / "log.jsonl") for run in (one, other)]
    assert [row["step"] for row in logs[0]] == list(range(1, step + 1))
    for expected, found in zip(*logs, strict=True):
        for name in ("loss", "grad_norm"):
            assert found[name] == pytest.approx(expected[name], rel=100 * rounding), (task, name)
    ends = [checkpoint_of(run / task / "end", step) for run in (one, other)]
    expected, found = (load_file(end / "trained.safetensors") for end in ends)
    assert list(found) == list(expected)
    for name, tensor in found.items():
        if not name.endswith(KEYS):
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=rounding, msg=name)
    # how they lie on the disk says nothing of who wrote them
    rests = [torch.load(end / REST, weights_only=True)["optimizer"] for end in ends]
    assert shapes_of(rests[0]) == shapes_of(rests[1])


def shapes_of(optimizer: dict) -> list:
    return [
        (number, name, type(value), getattr(value, "shape", ()))
        for number, values in optimizer["state"].items()
        for name, value in values.items()
    ]


def farthest_moved(run: Path) -> float:
    """How far the weight that moved most did, from the first step to the end."""
    folders = (checkpoint_of(run / "end", 2), checkpoint_of(run / "checkpoints", 1))
    end, begun = (load_file(folder / "trained.safetensors") for folder in folders)
    return max(float((end[name] - begun[name]).abs().max()) for name in begun)


def assert_answers_alike(one: Path, other: Path, task: str) -> None:
    for step in (0, 2):
        expected, found = (
            json.loads((run / task / f"answers-{step}.json").read_text()) for run in (one, other)
        )
        assert len(expected) == 7
        assert found == expected, (task, step)


@pytest.mark.slow
def test_three_processes_are_one(models, photo_folder, one, tmp_path):
    """7 samples are evaluated: 3, 2 and 2 of them."""
    together(3, models, photo_folder, tmp_path, "fp32", *TASKS)
    for task in TASKS:
        assert_same(one, tmp_path, task)
        assert_answers_alike(one, tmp_path, task)
    assert farthest_moved(one / "vqa") > 1e-3


def test_two_processes_in_shards_are_one_and_one_goes_on(models, photo_folder, one, tmp_path):
    """Another launcher, another number of processes: averages and all are those of before."""
    together(2, models, photo_folder, tmp_path / "two", "fp32", *TASKS, "adamw", **SHARDS)
    for task in TASKS:
        assert_same(one, tmp_path / "two", task)
        assert_answers_alike(one, tmp_path / "two", task)
    assert_same(one, tmp_path / "two", "adamw")
    shutil.copytree(one / "adamw", tmp_path / "one" / "adamw")
    for run in ("one", "two"):
        alone(models, photo_folder, tmp_path / run, ["longer"])
    assert_same(tmp_path / "one", tmp_path / "two", "adamw", step=4)


@pytest.mark.slow
@pytest.mark.parametrize("variables", [{}, SHARDS], ids=["whole", "shards"])
def test_what_isnt_finite_on_one_of_two_is_found_by_both(models, photo_folder, tmp_path, variables):
    together(2, models, photo_folder, tmp_path, "fp32", "bad-loss", "bad-gradient", **variables)
    for task, loss in (("bad-loss", "nan"), ("bad-gradient", r"\d+\.\d+")):
        (line,) = read_lines(tmp_path / task / "nonfinite.jsonl")
        assert line["step"] == 1
        assert re.fullmatch(loss, line["loss"])
        assert line["reason"].startswith("it comes from part 'vision'")
        # the last process's first micro-batch; a shard of the gradient is of all processes'
        mixed = bool(variables) and task == "bad-gradient"
        assert line["samples"] == (["0:0", "1:0"] if mixed else ["1:0"])
        rows = read_lines(tmp_path / task / "log.jsonl")
        assert [row["grad_norm"] is None for row in rows] == [True, False]
        begun, then = (
            load_file(checkpoint_of(tmp_path / task / "checkpoints", step) / "trained.safetensors")
            for step in (1, 2)
        )
        assert all(bool(tensor.isfinite().all()) for tensor in then.values())
        assert any(not torch.equal(tensor, begun[name]) for name, tensor in then.items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "variables"),
    [(4, {}), (4, SHARDS), (2, AS_ZERO_2)],
    ids=["four", "four-in-shards", "two-as-zero-2"],
)
def test_more_tasks_on_more_processes(models, photo_folder, tmp_path, processes, variables):
    pytest.importorskip("bitsandbytes")
    start([], models, photo_folder, tmp_path / "one", "fp32", *FURTHER)
    together(processes, models, photo_folder, tmp_path / "all", "fp32", *FURTHER, **variables)
    for task in FURTHER:
        assert_same(tmp_path / "one", tmp_path / "all", task)
        assert_answers_alike(tmp_path / "one", tmp_path / "all", task)


@pytest.mark.slow
def test_shards_go_on_from_one_process(models, photo_folder, one, tmp_path):
    for run in ("one", "three"):
        shutil.copytree(one / "adamw", tmp_path / run / "adamw")
    alone(models, photo_folder, tmp_path / "one", ["longer"])
    together(3, models, photo_folder, tmp_path / "three", "fp32", "longer", **SHARDS)
    assert_same(tmp_path / "one", tmp_path / "three", "adamw", step=4)


@pytest.mark.slow
def test_frozen_weights_in_bf16_lie_beside_those_that_train_in_fp32(models, photo_folder, tmp_path):
    """A LoRA in bf16 layers. Sums over fewer samples are rounded otherwise."""
    start([], models, photo_folder, tmp_path / "one", "bf16", "recomputed")
    together(2, models, photo_folder, tmp_path / "two", "bf16", "recomputed", **SHARDS)
    assert_same(tmp_path / "one", tmp_path / "two", "recomputed", rounding=2e-3)
    # by far more than that tolerance, or the comparison could not fail
    assert farthest_moved(tmp_path / "two" / "recomputed") > 5 * 2e-3
