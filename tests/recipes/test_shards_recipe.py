"""Recipes with the model in shards leave what they leave without, and it is exported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import test_caption_recipe
import test_retrieval_recipe
from safetensors.torch import load_file

from blip2ft.export import export_run
from blip2ft.training.run import read_lines

ROOT = Path(__file__).parents[2]
SHARDS = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
LORA = ["--parts.vision", "lora", "--parts.qformer", "full", "--parts.projection", "full"]


def launch(recipe: str, *words: object) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2", ROOT / "recipes" / recipe, *words]
    found = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=os.environ | SHARDS
    )
    assert found.returncode == 0, found.stderr[-3000:]


def shapes_of(path: Path) -> dict:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in load_file(path).items()}


@pytest.mark.slow
def test_a_captioner_in_shards(opt_folder, photo_folder, tmp_path):
    """LoRA that starts from the weights, on features that were computed once."""
    words = ["--parts.vision", "frozen", "--parts.language", "lora", "--lora.init", "pissa"]
    words += ["--lora.dora", "true", "--lora.r", 2, "--parts.qformer", "full"]
    words += ["--data.crop_scale", "null", "--data.flip", "false"]
    words += ["--cache.folder", tmp_path / "features", "--generation.num_beams", 2]
    runs = [tmp_path / name for name in ("one", "two")]
    test_caption_recipe.run_recipe(
        *test_caption_recipe.tiny(opt_folder, photo_folder, runs[0]), *words
    )
    launch("caption.py", *test_caption_recipe.tiny(opt_folder, photo_folder, runs[1]), *words)
    for name in ("adapter_model.safetensors", "trained.safetensors"):
        assert shapes_of(runs[1] / "adapter" / name) == shapes_of(runs[0] / "adapter" / name)
    assert [row["step"] for row in read_lines(runs[1] / "log.jsonl")] == [1, 2]
    export_run(runs[1], tmp_path / "exported")  # compares the logits


@pytest.mark.slow
def test_a_retriever_in_shards(retriever_folder, photo_folder, tmp_path):
    run = tmp_path / "run"
    words = test_retrieval_recipe.tiny(retriever_folder, photo_folder, run)
    launch("retrieval.py", *words, *LORA, "--objectives.cache_itc", "true")
    assert [row["step"] for row in read_lines(run / "log.jsonl")] == [1, 2]
    rows = [(row["split"], row["step"]) for row in read_lines(run / "metrics.jsonl")]
    assert rows == [("validation", step) for step in range(3)]
    export_run(run, tmp_path / "exported")
