"""The retrieval recipe: every YAML of it runs, and a run leaves what it promises."""

import importlib.util
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Blip2ForImageTextRetrieval, Blip2Processor

import blip2ft.tasks.retrieval
from blip2ft.config import RetrievalConfig
from blip2ft.errors import Interrupted
from blip2ft.export import export_run
from blip2ft.finetuned import load_finetuned
from blip2ft.inspection import describe
from blip2ft.parse import parse_config
from blip2ft.tasks.retrieval import retrieval_loss
from blip2ft.training.run import read_lines

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "retrieval.py"
YAMLS = sorted((ROOT / "recipes" / "retrieval").glob("*.yaml"))


def parse(*argv: str) -> RetrievalConfig:
    return parse_config(RetrievalConfig, argv, "recipes/retrieval.py")[0]


def run_recipe(*argv: object) -> None:
    spec = importlib.util.spec_from_file_location("retrieval_recipe", RECIPE)
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    words = [str(word) for word in argv]
    recipe.main(*parse_config(RetrievalConfig, words, "recipes/retrieval.py"))


def tiny(model_folder: Path, photos: Path, output: Path) -> list[object]:
    """Overrides that bring any YAML down to a tiny model, eight photos and two steps."""
    words = ["--output", output, "--model.name", model_folder, "--model.image_size", 28]
    for split in ("train", "validation"):
        words += [f"--data.{split}.source", photos / "captions.csv"]
        words += [f"--data.{split}.format", "auto", f"--data.{split}.split", "null"]
        words += [f"--data.{split}.image_root", "null"]
    words += ["--data.test", "null", "--data.workers", 0, "--data.max_target_tokens", 16]
    words += ["--optimizer.warmup_steps", 1, "--train.max_steps", 2, "--train.batch_size", 4]
    words += ["--train.micro_batch_size", 2, "--train.evaluate_every", 1, "--train.log_every", 1]
    return [*words, "--itg_head", "null"]


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_every_yaml_takes_two_steps(path, retriever_folder, photo_folder, tmp_path):
    run = tmp_path / "run"
    words = tiny(retriever_folder, photo_folder, run)
    run_recipe("--config", path, *words, "--evaluate_only", "false")
    assert [row["step"] for row in read_lines(run / "log.jsonl")] == [1, 2]


def test_the_coco_settings_are_the_papers():
    config = parse("--config", str(ROOT / "recipes" / "retrieval" / "coco.yaml"))
    assert (config.train.epochs, config.train.batch_size) == (5, 224)
    assert (config.optimizer.lr, config.optimizer.warmup_steps) == (1e-5, 1000)
    assert config.optimizer.betas == (0.9, 0.999)
    assert (config.optimizer.weight_decay, config.optimizer.vision_layer_decay) == (0.05, 0.95)
    assert (config.model.image_size, config.search.candidates) == (364, 128)
    assert config.train.best_metric == "mean_recall"
    sources = (config.data.train, config.data.validation, config.data.test)
    assert [source.split for source in sources] == ["train", "val", "test"]


def test_settings_left_out_keep_the_defaults_of_retrieval():
    path = ROOT / "recipes" / "retrieval" / "tiny.yaml"
    config = parse("--config", str(path), "--train.epochs", "2")
    assert config.train.best_metric == "mean_recall"


def test_a_run_leaves_what_its_folder_promises(retriever_folder, photo_folder, tmp_path, capsys):
    run = tmp_path / "run"
    run_recipe(*tiny(retriever_folder, photo_folder, run))
    rows = read_lines(run / "metrics.jsonl")
    evaluated = [(row["split"], row["step"]) for row in rows]
    assert evaluated == [("validation", 0), ("validation", 1), ("validation", 2)]
    recalls = {f"{way}_r{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)}
    assert all(recalls | {"mean_recall"} <= row.keys() for row in rows)
    answers = read_lines(run / "predictions" / "validation-00000000.jsonl")
    assert [row["image_id"] for row in answers] == [f"photo{i}.jpg" for i in range(8)]
    assert all(len(row["texts"]) == len(row["scores"]) == 5 for row in answers)
    said = capsys.readouterr().out
    assert "ITC compares 2 pairs of a step's 4, ITM draws its negatives from 2" in said
    assert f"of 2; everything lies in {run}" in said
    assert "scores on the validation split, 8 images" in said


def test_the_export_is_the_run_and_stock_transformers_loads_it(
    retriever_folder, photo_folder, tmp_path
):
    run, out = tmp_path / "run", tmp_path / "model"
    lora = ["--parts.vision", "lora", "--parts.qformer", "lora", "--lora.r", 2]
    run_recipe(*tiny(retriever_folder, photo_folder, run), *lora, "--optimizer.lr", 1e-2)
    report = export_run(run, out)
    assert report["max_difference"] < 1e-4
    stock = Blip2ForImageTextRetrieval.from_pretrained(out).eval()
    processor = Blip2Processor.from_pretrained(out)
    model, _, description = load_finetuned(run)
    assert description["task"] == "retrieval"
    pixels = torch.randn(1, 3, 28, 28)
    text = processor.tokenizer(["a red cat"], return_tensors="pt")
    inputs = {"input_ids": text["input_ids"], "attention_mask": text["attention_mask"]}
    for head in (True, False):
        options = {"pixel_values": pixels, "use_image_text_matching_head": head, **inputs}
        ours, theirs = (m(**options).logits_per_image for m in (model, stock))
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert "retrieval" in describe(str(run))
    assert "vision      lora" in describe(str(run))


def test_evaluation_alone_trains_nothing(retriever_folder, photo_folder, tmp_path, capsys):
    run = tmp_path / "run"
    words = tiny(retriever_folder, photo_folder, run)
    run_recipe(*words, "--evaluate_only", "true", "--objectives.itg", 0)
    assert [row["step"] for row in read_lines(run / "metrics.jsonl")] == [0]
    assert not (run / "log.jsonl").exists()
    assert "nothing was trained" in capsys.readouterr().out
    assert "nothing was trained" in (run / "report.html").read_text(encoding="utf-8")


def test_cached_itc_compares_the_whole_batch(retriever_folder, photo_folder, tmp_path, capsys):
    run = tmp_path / "run"
    words = tiny(retriever_folder, photo_folder, run)
    run_recipe(*words, "--objectives.cache_itc", "true")
    assert "ITC compares 4 pairs of a step's 4" in capsys.readouterr().out
    assert [row["step"] for row in read_lines(run / "log.jsonl")] == [1, 2]


@pytest.mark.parametrize("cached", ["true", "false"])
def test_an_interrupted_run_resumes_to_the_same_end(
    retriever_folder, photo_folder, tmp_path, monkeypatch, cached
):
    """Dropout and hard negatives are drawn as if nothing had happened."""
    words = ["--train.max_steps", 4, "--train.evaluate_every", 2, "--train.batch_size", 6]
    words += ["--objectives.cache_itc", cached, "--train.preflight", "false"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_recipe(*tiny(retriever_folder, photo_folder, whole), *words)
    calls = []

    def loss(model, batch):
        calls.append(1)
        if len(calls) == 2 * 3 + 1:  # two steps, and into the third
            os.kill(os.getpid(), 2)
        return retrieval_loss(model, batch)

    with monkeypatch.context() as patch:
        patch.setattr(blip2ft.tasks.retrieval, "retrieval_loss", loss)
        with pytest.raises(Interrupted):
            run_recipe(*tiny(retriever_folder, photo_folder, parts), *words)
    run_recipe(*tiny(retriever_folder, photo_folder, parts), *words, "--train.resume", "true")

    def steps(run):
        return [(r["step"], r["loss"], r["lr"]) for r in read_lines(run / "log.jsonl")]

    assert steps(parts) == steps(whole)
    expected = load_file(whole / "adapter" / "trained.safetensors")
    found = load_file(parts / "adapter" / "trained.safetensors")
    assert all(torch.equal(t, expected[name]) for name, t in found.items())


def test_unknown_objectives_and_captioning_models_are_refused(opt_folder, photo_folder, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(ValueError, match="generates text and compares none; for retrieval start"):
        run_recipe(*tiny(opt_folder, photo_folder, run))
    words = [f"--objectives.{name}" for name in ("itc", "itm", "itg")]
    none = [word for name in words for word in (name, 0)]
    with pytest.raises(ValueError, match="no objective has a weight above 0"):
        run_recipe(*tiny(opt_folder, photo_folder, run), *none)
    assert not run.exists()
