"""Recipes with and without a cache of features: the same losses, scores and weights."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from transformers.models.blip_2.modeling_blip_2 import Blip2Encoder

import blip2ft.tasks.caption
from blip2ft.config import CaptionConfig, RetrievalConfig, VqaConfig
from blip2ft.errors import Interrupted, Stopped
from blip2ft.features import compute
from blip2ft.features.of_run import build_for
from blip2ft.features.serve import compute_features
from blip2ft.parse import parse_config
from blip2ft.settings import read_settings
from blip2ft.training.run import read_lines

ROOT = Path(__file__).parents[2]
CONFIGS: dict[str, Any] = {"caption": CaptionConfig, "retrieval": RetrievalConfig, "vqa": VqaConfig}
QFORMER = {"vision": "frozen", "qformer": "full", "projection": "full", "language": "frozen"}
LANGUAGE = {"vision": "frozen", "qformer": "frozen", "projection": "frozen", "language": "lora"}
# id: task, parts, level, further settings
RUNS: dict[str, tuple[str, dict[str, str], str, dict[str, Any]]] = {
    "caption": ("caption", QFORMER, "vision", {}),
    "caption-lora": ("caption", {**QFORMER, "qformer": "lora"}, "vision", {}),
    "caption-queries": ("caption", LANGUAGE, "queries", {}),
    "retrieval": ("retrieval", QFORMER, "vision", {}),
    "vqa": ("vqa", QFORMER, "vision", {}),
    "vqa-queries": ("vqa", LANGUAGE, "queries", {"question_in_qformer": False}),
}
QUICK = ("caption-lora", "retrieval", "vqa-queries")  # each task, each level
NAMES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in RUNS]
TYPO = (["--model.attention", "{visoin: sdpa}"], r"model\.attention names 'visoin'")
UNEVEN = (["--train.batch_size", "3"], r"train\.batch_size 3 can't be shared by 2 processes")


@pytest.fixture
def computed(monkeypatch) -> list[str]:
    levels: list[str] = []

    def counted(model, level, pixels):
        levels.extend([level] * len(pixels))
        return compute_features(model, level, pixels)

    monkeypatch.setattr(compute, "compute_features", counted)
    return levels


@pytest.fixture
def start(opt_folder, retriever_folder, photo_folder, tmp_path) -> Callable[..., Path]:
    """Run a recipe; what came of it lies in the folder that is returned."""
    questions = tmp_path / "questions.jsonl"
    words = ["a cat", "a dog", "red"]
    rows = [
        {
            "image": f"photo{i}.jpg",
            "question": f"photo {words[i % 3]}",
            "answers": words[: 1 + i % 3],
        }
        for i in range(8)
    ]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def start(
        name: str,
        output: str,
        *words: object,
        launch: bool = False,
        only_build: bool = False,
        **changes: Any,
    ) -> Path:
        task, parts, _, more = RUNS[name]
        source: dict[str, Any] = {"source": str(photo_folder / "captions.csv")}
        if task == "vqa":
            source = {"source": str(questions), "image_root": str(photo_folder)}
        settings: dict[str, Any] = {
            "output": str(tmp_path / output),
            "model": {"name": str(retriever_folder if task == "retrieval" else opt_folder)},
            "parts": parts,
            "lora": {"r": 2, "alpha": 4, "dropout": 0.1},
            "data": {
                "train": [source] if task == "vqa" else source,
                "validation": source,
                "crop_scale": None,
                "flip": False,
                "workers": 0,
                "max_target_tokens": 16,
            },
            "optimizer": {"lr": 1e-3, "warmup_steps": 1},
            "train": {
                "max_steps": 4,
                "batch_size": 4,
                "micro_batch_size": 2,
                "evaluate_every": 2,
                "log_every": 1,
            },
        }
        if task == "vqa":
            settings |= {"stage1": str(retriever_folder), "prompt": "the {} of a"}
        if task != "retrieval":
            settings["generation"] = {"num_beams": 1, "max_new_tokens": 3}
        path = tmp_path / f"{output}.yaml"
        path.write_text(yaml.safe_dump(settings | more | changes))
        recipe = ROOT / "recipes" / f"{task}.py"
        argv = ["--config", str(path), *map(str, words)]
        if launch:
            _launch(recipe, argv)
            return tmp_path / output
        AcceleratorState._reset_state(True)
        if only_build:
            build_for(*read_settings(str(path), argv[2:], None), print)
            return tmp_path / output
        spec = importlib.util.spec_from_file_location(f"{task}_recipe", recipe)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.main(*parse_config(CONFIGS[task], argv, f"recipes/{task}.py"))
        return tmp_path / output

    return start


def _launch(recipe: Path, argv: list[str]) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    found = subprocess.run(
        [*launcher, "--nproc_per_node", "2", str(recipe), *argv],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"JAVA_HOME": "", "PATH": "/nowhere", "ACCELERATE_USE_CPU": "true"},
        timeout=300,
    )
    assert found.returncode == 0, found.stderr[-3000:]


def kept(folder: Path, dtype: str = "fp32") -> dict[str, Any]:
    return {"cache": {"folder": str(folder), "dtype": dtype}}


def curve(run: Path) -> list[tuple[float, float]]:
    return [(row["loss"], row["grad_norm"]) for row in read_lines(run / "log.jsonl")]


def same(one: Path, other: Path, tolerance: float) -> None:
    """The loss curve, the norms of the gradients, the scores and the trained weights."""
    assert len(curve(one)) == 4
    close = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(torch.tensor(curve(one)), torch.tensor(curve(other)), **close)
    metrics = [read_lines(run / "metrics.jsonl") for run in (one, other)]
    assert metrics[0] == metrics[1]
    files = sorted((one / "adapter").glob("*.safetensors"))
    assert files
    for file in files:
        expected = load_file(other / "adapter" / file.name)
        for name, tensor in load_file(file).items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_curve_is_that_without_a_cache(name, start, computed, tmp_path, capsys):
    *_, level, _ = RUNS[name]
    plain = start(name, "plain")
    assert computed == []
    cached = start(name, "cached", **kept(tmp_path / "features"))
    assert set(computed) == {level}
    images = len(computed)
    same(cached, plain, 1e-6)
    again = start(name, "again", **kept(tmp_path / "features"))
    assert len(computed) == images == 16
    assert curve(again) == curve(cached)
    assert f"images: all there (level {level}, fp32" in capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_a_run_takes_what_was_built_before(name, start, computed, tmp_path, capsys):
    start(name, "run", only_build=True, **kept(tmp_path / "features"))
    assert len(computed) == 16
    capsys.readouterr()
    start(name, "run", "--train.max_steps", 1, **kept(tmp_path / "features"))
    assert len(computed) == 16
    assert "features of 16 images: all there" in capsys.readouterr().out


def test_no_image_is_opened_nor_encoded_in_a_step(start, tmp_path, photo_folder, monkeypatch):
    features = kept(tmp_path / "features")
    start("caption", "first", **features)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("an image was opened or encoded")

    monkeypatch.setattr("blip2ft.data.loading.open_image", never)
    monkeypatch.setattr(Blip2Encoder, "forward", never)
    assert len(curve(start("caption", "second", **features))) == 4


def test_a_resumed_run_goes_on_as_if_without_a_cache(start, tmp_path, monkeypatch):
    plain = start("caption", "plain")
    features, calls = kept(tmp_path / "features"), []
    loss = blip2ft.tasks.caption.caption_loss

    def interrupted(model, batch):
        calls.append(1)
        if len(calls) == 4 + 2 * 2 + 1:  # the preflight's four, two steps, and into the third
            os.kill(os.getpid(), 2)
        return loss(model, batch)

    with monkeypatch.context() as patch:
        patch.setattr(blip2ft.tasks.caption, "caption_loss", interrupted)
        with pytest.raises(Interrupted):
            start("caption", "cached", **features)
    run = start("caption", "cached", "--train.resume", "true", **features)
    same(run, plain, 1e-6)


def test_a_run_that_was_stopped_while_images_were_encoded_begins_with_the_same_command(
    start, tmp_path, monkeypatch
):
    def signalled(model, level, pixels):
        os.kill(os.getpid(), 15)
        return compute_features(model, level, pixels)

    with monkeypatch.context() as patch:
        patch.setattr(compute, "compute_features", signalled)
        with pytest.raises(Stopped, match=r"8 of 16 are kept in .*; the same command goes on"):
            start("caption", "run", **kept(tmp_path / "features"))
    assert not (tmp_path / "run").exists()
    assert len(curve(start("caption", "run", **kept(tmp_path / "features")))) == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["caption", "retrieval"])
def test_two_processes_train_as_without_a_cache(name, start, tmp_path):
    plain = start(name, "plain", launch=True)
    cached = start(name, "cached", launch=True, **kept(tmp_path / "features"))
    same(cached, plain, 1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bf16", 0.02), ("int8", 0.02)])
def test_smaller_rows_differ_a_little(start, tmp_path, dtype, tolerance):
    plain = curve(start("caption", "plain"))
    cached = curve(start("caption", "cached", **kept(tmp_path / "features", dtype)))
    losses = [torch.tensor(run)[:, 0] for run in (plain, cached)]
    assert not torch.equal(*losses)
    torch.testing.assert_close(*losses, rtol=tolerance, atol=0)


def test_an_evaluation_alone_computes_nothing_before(start, computed, tmp_path):
    features = kept(tmp_path / "features")
    start("retrieval", "run", "--evaluate_only", "true", **features)
    assert computed == []
    assert not (tmp_path / "features").exists()


@pytest.mark.parametrize(
    ("task", "words", "message"),
    [
        *((task, *TYPO) for task in ("caption", "retrieval", "vqa")),
        *((task, *UNEVEN) for task in ("caption", "retrieval", "vqa")),
        ("retrieval", ["--model.compile", "[qformer]"], r"model\.compile names qformer"),
    ],
    ids=[
        *("caption-attention", "retrieval-attention", "vqa-attention"),
        *("caption-batch", "retrieval-batch", "vqa-batch", "retrieval-compile"),
    ],
)
def test_what_cant_work_is_told_before_anything_is_loaded(
    task, words, message, start, tmp_path, monkeypatch
):
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(Accelerator, "num_processes", 2)
    for module in ("load.load_captioner", "load.load_retriever", "vqa.load_vqa"):
        monkeypatch.setattr(f"blip2ft.models.{module}", never)
    with pytest.raises(ValueError, match=message):
        start(task, "run", *words, **kept(tmp_path / "features"))


def test_a_question_that_is_too_long_is_told_before_features_are_computed(
    start, computed, tmp_path, photo_folder
):
    questions = tmp_path / "long.jsonl"
    row = {"image": "photo0.jpg", "question": "photo " * 600, "answers": ["red"]}
    questions.write_text(json.dumps(row) + "\n")
    words = ["--data.validation.source", questions]
    with pytest.raises(ValueError, match=r"long\.jsonl:1: question .* and the Q-Former's text"):
        start("vqa", "run", *words, **kept(tmp_path / "features"))
    assert computed == []


@pytest.mark.parametrize("task", ["caption", "retrieval", "vqa"])
def test_what_would_be_stale_never_starts(task, start, tmp_path):
    wrong = ["--parts.vision", "full", "--data.flip", "true"]
    with pytest.raises(ValueError, match=r"parts\.vision is full(.|\n)*data\.flip draws anew"):
        start(task, "run", *wrong, **kept(tmp_path / "features"))
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "features").exists()
