"""The two stages of pre-training: settings of the paper, and training on shards that resumes."""

import importlib.util
import io
import json
import random
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from blip2ft.config import CaptionConfig, RetrievalConfig
from blip2ft.parse import parse_config
from blip2ft.sharding import write_shards
from blip2ft.training import keeping
from blip2ft.training.run import read_lines

ROOT = Path(__file__).parents[2]
YAMLS = sorted((ROOT / "recipes" / "pretrain").glob("*.yaml"))
FULL_SIZE = [path for path in YAMLS if "tiny" not in path.stem]


class Stop(Exception):
    """What ends a run in a test."""


def task_of(path: Path) -> str:
    return "retrieval" if path.stem.startswith("stage1") else "caption"


def parse(task: str, *argv: object):
    config = RetrievalConfig if task == "retrieval" else CaptionConfig
    return parse_config(config, [str(word) for word in argv], f"recipes/{task}.py")


def run_recipe(task: str, *argv: object) -> None:
    path = ROOT / "recipes" / f"{task}.py"
    spec = importlib.util.spec_from_file_location(f"{task}_recipe", path)
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    recipe.main(*parse(task, *argv))


@pytest.fixture(scope="module")
def shards(photo_folder, tmp_path_factory) -> Path:
    """Eight photos in tars of three."""
    out = tmp_path_factory.mktemp("shards") / "tars"
    assert write_shards(str(photo_folder / "captions.csv"), out, size=3).shards == 3
    return out


def tiny(task: str, model_folder: Path, photos: Path, shards: Path, output: Path) -> list[object]:
    """Overrides that bring any YAML down to a tiny model, eight photos in shards and two steps."""
    words = ["--output", output, "--model.name", model_folder, "--model.image_size", 28]
    words += ["--data.stream.sources", json.dumps([{"source": f"{shards}/*.tar"}])]
    words += ["--data.validation.source", photos / "captions.csv"]
    words += ["--data.validation.format", "auto", "--data.validation.split", "null"]
    words += ["--data.validation.image_root", "null", "--data.test", "null", "--data.workers", 0]
    words += ["--data.max_target_tokens", 16, "--optimizer.warmup_steps", 1]
    words += ["--train.max_steps", 2, "--train.batch_size", 4, "--train.micro_batch_size", 2]
    words += ["--train.evaluate_every", 4, "--train.log_every", 1]
    if task == "caption":
        words += ["--generation.num_beams", 1, "--generation.max_new_tokens", 3]
    return words


@pytest.mark.parametrize("path", FULL_SIZE, ids=lambda path: path.stem)
def test_the_settings_are_the_papers(path):
    config, _ = parse(task_of(path), "--config", path)
    header = path.read_text().partition("\noutput:")[0]
    assert f"--config recipes/pretrain/{path.name}" in header.replace("\\\n#", "")
    assert "blip2ft assemble" in header
    assert (config.optimizer.lr, config.optimizer.warmup_steps) == (1e-4, 2000)
    assert config.optimizer.betas == (0.9, 0.98)
    assert config.optimizer.weight_decay == 0.05
    assert config.parts.vision == "frozen"
    assert config.model.image_size is None  # the start's, 224
    assert config.data.crop_scale == (0.5, 1.0)
    assert config.data.flip
    assert config.train.batch_size % (16 * config.train.micro_batch_size) == 0
    if task_of(path) == "retrieval":
        assert config.train.max_steps == 250_000
        assert config.train.batch_size == (1680 if "vit-g" in path.stem else 2320)
        # ITC compares a whole step on the paper's 16 GPUs
        assert config.train.batch_size == 16 * config.train.micro_batch_size
    else:
        assert config.train.max_steps == 80_000
        assert config.train.batch_size == (1520 if "t5" in path.stem else 1920)
        assert config.optimizer.min_lr == 5e-5
        assert (config.prompt, config.parts.language) == ("", "frozen")
        assert config.prefix_lm == ("t5" in path.stem)


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_every_yaml_takes_two_steps(path, request, photo_folder, shards, tmp_path):
    task = task_of(path)
    family = "t5_folder" if "t5" in path.stem else "opt_folder"
    model = request.getfixturevalue("retriever_folder" if task == "retrieval" else family)
    run = tmp_path / "run"
    run_recipe(task, "--config", path, *tiny(task, model, photo_folder, shards, run))
    assert [row["step"] for row in read_lines(run / "log.jsonl")] == [1, 2]
    trained = load_file(run / "adapter" / "trained.safetensors")
    others = [name for name in trained if name.startswith(("vision_model.", "language_model."))]
    assert set(others) <= {"vision_model.post_layernorm.weight", "vision_model.post_layernorm.bias"}


def break_one(shards: Path, folder: Path) -> Path:
    """The shards with one image that can't be decoded, and an index of their sizes."""
    folder.mkdir()
    for path in sorted(shards.glob("*.tar")):
        with tarfile.open(path) as old, tarfile.open(folder / path.name, "w") as new:
            for member in old:
                data = old.extractfile(member).read()
                if path.stem.endswith("1") and member.name.endswith((".png", ".jpg")):
                    data, broken = data[:30], member.name
                    member.size = len(data)
                    path = Path("others")  # one is enough
                new.addfile(member, io.BytesIO(data))
    assert broken
    return folder


@pytest.mark.parametrize("task", [pytest.param("retrieval", marks=pytest.mark.slow), "caption"])
def test_a_stopped_run_on_shards_goes_on_as_if_it_hadnt(
    task, retriever_folder, opt_folder, photo_folder, shards, tmp_path
):
    model = retriever_folder if task == "retrieval" else opt_folder
    damaged = break_one(shards, tmp_path / "damaged")
    words = [
        *tiny(task, model, photo_folder, damaged, tmp_path / "whole"),
        *("--data.stream.shuffle", 3, "--data.stream.max_broken", 0.5, "--parts.vision", "frozen"),
        *("--train.checkpoint_every", 1, "--train.evaluate_every", 6, "--train.max_steps", 6),
    ]
    run_recipe(task, *words)
    whole = tmp_path / "whole"

    for stops in (1, 3):
        run = tmp_path / f"stopped-{stops}"
        stopped = [*words, "--output", run]
        save = keeping.save_checkpoint

        def save_and_stop(*args, stops=stops, save=save, **kwargs):
            path = save(*args, **kwargs)
            if kwargs["state"]["step"] == stops:
                raise Stop
            return path

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(keeping, "save_checkpoint", save_and_stop)
            with pytest.raises(Stop):
                run_recipe(task, *stopped)
        torch.manual_seed(random.randrange(1000))  # what a new process starts from is no matter
        run_recipe(task, *stopped, "--train.resume", "true")
        for name in ("log.jsonl", "broken.jsonl"):
            rows = [read_lines(folder / name) for folder in (whole, run)]
            for row in [*rows[0], *rows[1]]:
                for name_of_time in ("images_per_second", "waiting"):
                    row.pop(name_of_time, None)
            assert rows[0] == rows[1]
        weights = [load_file(f / "adapter" / "trained.safetensors") for f in (whole, run)]
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    broken = read_lines(whole / "broken.jsonl")
    assert broken
    assert all("shard-000001.tar" in row["origin"] for row in broken)


def test_training_data_is_listed_or_in_shards(opt_folder, photo_folder, shards, tmp_path):
    words = tiny("caption", opt_folder, photo_folder, shards, tmp_path / "run")
    both = [*words, "--data.train.source", photo_folder / "captions.csv"]
    with pytest.raises(ValueError, match=r"data.train and data.stream are both given"):
        run_recipe("caption", *both)
    neither = [*words, "--data.stream", "null"]
    with pytest.raises(ValueError, match=r"data.train and data.stream are neither given"):
        run_recipe("caption", *neither)
    assert not (tmp_path / "run").exists()


def test_a_source_that_would_run_dry_is_told_before_the_run(
    opt_folder, photo_folder, shards, tmp_path
):
    words = tiny("caption", opt_folder, photo_folder, shards, tmp_path / "run")
    once = json.dumps([{"source": f"{shards}/*.tar", "repeat": False}])
    with pytest.raises(ValueError, match=r"8 samples, but this run takes 12 .* fewer steps"):
        run_recipe("caption", *words, "--data.stream.sources", once, "--train.max_steps", 3)
    assert not (tmp_path / "run").exists()
