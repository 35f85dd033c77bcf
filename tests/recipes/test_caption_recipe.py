"""The captioning recipe: every YAML of it runs, and a run leaves what it promises."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import blip2ft.tasks.caption
from blip2ft.config import CaptionConfig
from blip2ft.errors import Interrupted
from blip2ft.metrics import CaptionScores
from blip2ft.models.adapters import load_trained
from blip2ft.models.load import load_captioner
from blip2ft.parse import parse_config
from blip2ft.tasks.caption import caption_loss
from blip2ft.training.run import read_lines
from blip2ft.training.stored import checkpoint_of, list_checkpoints

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "caption.py"
YAMLS = sorted((ROOT / "recipes" / "caption").glob("*.yaml"))
COCO = ["flan-t5-xl", "flan-t5-xxl", "opt-2.7b", "opt-6.7b"]


def named(path: Path) -> str:
    return path.stem


def parse(*argv: str) -> CaptionConfig:
    return parse_config(CaptionConfig, argv, "recipes/caption.py")[0]


def run_recipe(*argv: object) -> None:
    spec = importlib.util.spec_from_file_location("caption_recipe", RECIPE)
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    recipe.main(*parse_config(CaptionConfig, [str(word) for word in argv], "recipes/caption.py"))


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
    return [*words, "--generation.num_beams", 1, "--generation.max_new_tokens", 3]


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter" / "trained.safetensors")


@pytest.mark.parametrize("path", YAMLS, ids=named)
def test_every_yaml_parses_and_says_how_to_run_it(path):
    config = parse("--config", str(path))
    header = path.read_text().partition("\noutput:")[0]
    assert f"--config recipes/caption/{path.name}" in header
    assert all(line.startswith("#") for line in header.strip().splitlines())
    assert config.output.startswith("runs/")


@pytest.mark.parametrize("name", COCO)
def test_the_coco_settings_are_the_papers(name):
    config = parse("--config", str(ROOT / "recipes" / "caption" / f"{name}.yaml"))
    assert (config.train.epochs, config.train.batch_size) == (5, 256)
    assert (config.optimizer.lr, config.optimizer.warmup_steps) == (1e-5, 1000)
    assert config.optimizer.betas == (0.9, 0.999)
    assert config.optimizer.weight_decay == 0.05
    assert config.optimizer.vision_layer_decay == (0.95 if name == "opt-6.7b" else 1.0)
    assert (config.model.image_size, config.prompt) == (364, "a photo of")
    assert (config.generation.num_beams, config.data.crop_scale) == (5, (0.5, 1.0))
    assert config.data.flip
    sources = (config.data.train, config.data.validation, config.data.test)
    assert [source.split for source in sources] == ["train", "val", "test"]
    assert {source.format for source in sources} == {"karpathy"}
    assert config.train.max_steps is None


@pytest.mark.parametrize("path", YAMLS, ids=named)
def test_every_yaml_takes_two_steps(path, request, photo_folder, tmp_path):
    family = "t5_folder" if "t5" in path.stem else "opt_folder"
    model_folder = request.getfixturevalue(family)
    run = tmp_path / "run"
    run_recipe("--config", path, *tiny(model_folder, photo_folder, run))
    assert [row["step"] for row in read_lines(run / "log.jsonl")] == [1, 2]


def test_a_run_leaves_what_its_folder_promises(opt_folder, photo_folder, tmp_path, capsys):
    run = tmp_path / "run"
    run_recipe(*tiny(opt_folder, photo_folder, run))
    found = {path.name for path in run.iterdir()}
    assert found == {
        *("config.yaml", "base.json", "environment.json", "log.jsonl", "metrics.jsonl"),
        *("samples.json", "training-data.json", "resources.json"),
        *("predictions", "checkpoints", "adapter", "report.html", ".lock"),
    }
    again = parse("--config", str(run / "config.yaml"))
    assert again == parse(*[str(word) for word in tiny(opt_folder, photo_folder, run)])
    assert json.loads((run / "environment.json").read_text())["packages"]["torch"]
    rows = read_lines(run / "metrics.jsonl")
    evaluated = [(row["split"], row["step"]) for row in rows]
    best = evaluated[-1][1]
    others = [("validation", step) for step in (1, 2) if step != best]
    assert evaluated == [("validation", 0), *others, ("validation", best)]
    assert all({"cider", "bleu4", "rougeL", "exact_match"} <= row.keys() for row in rows)
    answers = read_lines(run / "predictions" / "validation-00000000.jsonl")
    assert [row["image_id"] for row in answers] == [f"photo{i}.jpg" for i in range(8)]
    kept = {"image_id", "caption", "references", "image", "fields"}
    assert all(row.keys() == kept and Path(row["image"]).is_file() for row in answers)
    said = capsys.readouterr().out
    assert "8 images, 8 captions; 2 steps of 4: 1 process x 2 micro-batches of 2" in said
    assert "scores on the validation split, 8 images\nit chose the best step, so they" in said
    assert said.count("8 of the 8 validation images are training images too") == 1
    assert f"best step {best} of 2; everything lies in {run}" in said
    assert f"its scores, curves and answers on a page: {run / 'report.html'}" in said
    assert f"blip2ft export {run} --out FOLDER" in said


def test_a_run_goes_on_without_a_bad_image_where_that_is_asked(
    opt_folder, photo_folder, tmp_path, caplog
):
    photos = shutil.copytree(photo_folder, tmp_path / "photos")
    (photos / "bad.jpg").write_bytes(b"no picture")
    table = photos / "train.csv"
    table.write_text((photos / "captions.csv").read_text() + "bad.jpg,a cat\ngone.jpg,a cat\n")
    words = [*tiny(opt_folder, photos, tmp_path / "run"), "--data.train.source", table]
    words += ["--train.max_steps", "null", "--train.epochs", 1, "--train.evaluate_every", 9]
    with pytest.raises(ValueError, match=r"gone\.jpg \(train\.csv:11\)"):
        run_recipe(*words)
    (photos / "gone.jpg").write_bytes(b"")
    with pytest.raises(
        ValueError,
        match=r"Or leave images .* out \(data\.on_bad_image skip\)\. blip2ft check finds",
    ):
        run_recipe(*words)
    (photos / "gone.jpg").unlink()
    run_recipe(*words, "--data.on_bad_image", "skip")
    lines = read_lines(tmp_path / "run" / "broken.jsonl")
    assert {line["origin"] for line in lines} == {"train.csv:10", "train.csv:11"}
    assert caplog.text.count("left out: train.csv:10: ") == 1


def test_a_run_never_touches_a_folder_in_use(opt_folder, photo_folder, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="is in use and nothing in it is ever overwritten"):
        run_recipe(*tiny(opt_folder, photo_folder, run))
    assert [path.name for path in run.iterdir()] == ["thesis.txt"]


def test_what_cant_work_leaves_no_folder_behind(opt_folder, photo_folder, tmp_path):
    run = tmp_path / "run"
    words = tiny(opt_folder, photo_folder, run)
    with pytest.raises(ValueError, match="nowhere' isn't a folder"):
        run_recipe(*words, "--data.train.image_root", tmp_path / "nowhere")
    frozen = dict.fromkeys(("vision", "qformer", "projection", "language"), "frozen")
    with pytest.raises(ValueError, match="every part is frozen, so nothing would train"):
        run_recipe(*words, "--parts", json.dumps(frozen))
    assert not run.exists()


def test_settings_that_end_a_run_late_are_refused_at_once(opt_folder, photo_folder, tmp_path):
    run = tmp_path / "run"
    words = tiny(opt_folder, photo_folder, run)
    with pytest.raises(ValueError, match=r"train\.keep_checkpoints is 0: allowed is 1 or more"):
        run_recipe(*words, "--train.keep_checkpoints", 0)
    with pytest.raises(ValueError, match=r"train\.max_steps is 0: .* or null for all epochs"):
        run_recipe(*words, "--train.max_steps", 0)
    with pytest.raises(ValueError, match=r"best_metric is 'cidre', .* allowed are .*bleu4.*cider"):
        run_recipe(*words, "--train.best_metric", "cidre")
    assert not run.exists()


def test_all_settings_out_of_range_are_refused_at_once(opt_folder, photo_folder, tmp_path):
    wrong = ["--generation.num_beams", 0, "--optimizer.lr", -1, "--train.batch_size", 0]
    found = launch(*tiny(opt_folder, photo_folder, tmp_path / "run"), *wrong)
    assert found.returncode == 2
    assert found.stderr.splitlines() == [
        "error: optimizer.lr is -1.0: allowed is more than 0",
        "train.batch_size is 0: allowed is 1 or more",
        "generation.num_beams is 0: allowed is 1 or more",
    ]


def test_a_test_split_is_told_by_its_name(opt_folder, photo_folder, tmp_path, capsys):
    run = tmp_path / "run"
    test = ["--data.test.source", photo_folder / "captions.csv", "--optimizer.warmup_steps", 2]
    run_recipe(*tiny(opt_folder, photo_folder, run), *test)
    rows = [(row["split"], row["step"]) for row in read_lines(run / "metrics.jsonl")]
    assert rows[0] == ("test", 0)
    assert rows[-1][0] == "test"
    said = capsys.readouterr().out
    assert "scores on the test split, 8 images\n" in said
    assert "it chose the best step" not in said
    assert "warning: optimizer.warmup_steps is 2 and the run has 2 steps" in said


@pytest.mark.slow
def test_a_file_gets_few_lines_of_the_bars(opt_folder, photo_folder, tmp_path):
    words = ["--train.max_steps", 40, "--train.log_every", 20, "--train.evaluate_every", 99]
    found = launch(*tiny(opt_folder, photo_folder, tmp_path / "run"), *words)
    assert found.returncode == 0, found.stderr[-3000:]
    assert found.stderr.count("train:") < 10


def test_a_metric_that_cant_run_is_told_once(
    opt_folder, photo_folder, tmp_path, monkeypatch, capsys
):
    def without_meteor(predictions, references, *, java=True):
        unavailable = {"meteor": "no Java here: install it"} if java else {}
        return CaptionScores({"cider": 0.0}, {}, unavailable)

    monkeypatch.setattr(blip2ft.tasks.caption, "score_captions", without_meteor)
    run_recipe(*tiny(opt_folder, photo_folder, tmp_path / "run"))
    said = capsys.readouterr().out
    assert said.count("meteor is left out: no Java here: install it\n") == 1


@pytest.mark.slow
def test_of_two_processes_one_scores(opt_folder, photo_folder, tmp_path):
    """A Java that fails, and notes who called it."""
    java, run = tmp_path / "bin" / "java", tmp_path / "run"
    java.parent.mkdir()
    java.write_text(f"#!/bin/sh\necho $PPID >> {tmp_path}/callers\nexit 1\n")
    java.chmod(0o755)
    # not `accelerate launch --cpu`, which starts one process whatever --num_processes says
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += ["--nproc_per_node", "2", RECIPE, *tiny(opt_folder, photo_folder, run)]
    found = subprocess.run(
        list(map(str, launcher)),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ
        | {"PATH": f"{java.parent}:{os.environ['PATH']}", "JAVA_HOME": ""}
        | {"ACCELERATE_USE_CPU": "true"},
    )
    assert found.returncode == 0, found.stderr[-3000:]
    assert "2 processes x 1 micro-batch of 2" in found.stdout
    assert len(set((tmp_path / "callers").read_text().split())) == 1
    assert found.stdout.count("meteor is left out: ") == 1
    rows = read_lines(run / "metrics.jsonl")
    assert {(row["split"], row["step"]) for row in rows} == {
        ("validation", step) for step in (0, 1, 2)
    }
    assert len(rows) == 3


def test_the_adapter_gives_the_best_model_back(model_folder, photo_folder, tmp_path):
    run = tmp_path / "run"
    run_recipe(*tiny(model_folder, photo_folder, run), "--optimizer.lr", "1e-2")
    best = read_lines(run / "metrics.jsonl")[-1]["step"]
    checkpoint = load_file(checkpoint_of(run / "checkpoints", best) / "trained.safetensors")
    model, _ = load_captioner(model_folder)
    before = model.query_tokens.clone()
    load_trained(model, run / "adapter")
    own = dict(model.named_parameters())
    assert checkpoint.keys() == weights_of(run).keys()
    assert all(torch.equal(own[name], tensor) for name, tensor in checkpoint.items())
    assert not torch.equal(model.query_tokens, before)
    assert not any(name.startswith("language_model.") for name in checkpoint)


def test_lora_ends_with_an_adapter_too(model_folder, photo_folder, tmp_path):
    run = tmp_path / "run"
    lora = ["--parts.vision", "lora", "--parts.language", "lora", "--lora.r", "2"]
    run_recipe(*tiny(model_folder, photo_folder, run), *lora)
    found = {path.name for path in (run / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "trained.safetensors"} <= found
    model, _ = load_captioner(model_folder)
    load_trained(model, run / "adapter")
    state = load_file(run / "adapter" / "adapter_model.safetensors")
    parts = {name.removeprefix("base_model.model.").split(".")[0] for name in state}
    assert parts == {"vision_model", "language_model"}
    assert any(bool(tensor.any()) for name, tensor in state.items() if "lora_B" in name)


EVA = ["--parts.language", "lora", "--lora.r", 2, "--lora.init", "eva"]


@pytest.mark.parametrize(
    ("more", "looks"), [([], 4), (EVA, 4 + 3)], ids=["full", "eva"]
)  # the preflight's four, and EVA's three micro-batches of the first step
def test_an_interrupted_run_resumes_to_the_same_end(
    opt_folder, photo_folder, tmp_path, monkeypatch, more, looks
):
    words = ["--train.max_steps", 4, "--train.evaluate_every", 2, "--train.batch_size", 6, *more]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_recipe(*tiny(opt_folder, photo_folder, whole), *words)

    calls = []

    def loss(model, batch):
        calls.append(1)
        if len(calls) == looks + 2 * 3 + 1:  # two steps, and into the third
            os.kill(os.getpid(), 2)
        return caption_loss(model, batch)

    with monkeypatch.context() as patch:
        patch.setattr(blip2ft.tasks.caption, "caption_loss", loss)
        with pytest.raises(Interrupted, match=r"The same command with --resume"):
            run_recipe(*tiny(opt_folder, photo_folder, parts), *words)
    assert list_checkpoints(parts / "checkpoints")
    assert not (parts / "adapter").exists()
    run_recipe(*tiny(opt_folder, photo_folder, parts), *words, "--train.resume", "true")

    def steps(run):
        return [(r["step"], r["loss"], r["lr"]) for r in read_lines(run / "log.jsonl")]

    assert steps(parts) == steps(whole)
    assert read_lines(parts / "metrics.jsonl") == read_lines(whole / "metrics.jsonl")
    expected = weights_of(whole)
    assert all(torch.equal(t, expected[name]) for name, t in weights_of(parts).items())
    assert (parts / "config-resumed-1.yaml").is_file()


def test_a_run_that_was_stopped_before_its_first_checkpoint_begins_again(
    opt_folder, photo_folder, tmp_path, monkeypatch
):
    words = ["--train.evaluate_every", 9]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_recipe(*tiny(opt_folder, photo_folder, whole), *words)

    def loss(model, batch):
        if read_lines(parts / "log.jsonl"):
            raise KeyboardInterrupt
        return caption_loss(model, batch)

    with monkeypatch.context() as patch:
        patch.setattr(blip2ft.tasks.caption, "caption_loss", loss)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(*tiny(opt_folder, photo_folder, parts), *words)
    assert list_checkpoints(parts / "checkpoints") == []
    run_recipe(*tiny(opt_folder, photo_folder, parts), *words, "--train.resume", "true")
    assert [row["step"] for row in read_lines(parts / "log.jsonl")] == [1, 2]
    assert read_lines(parts / "metrics.jsonl") == read_lines(whole / "metrics.jsonl")
    # and once more after its end
    again = [*tiny(opt_folder, photo_folder, parts), *words, "--train.resume", "true"]
    run_recipe(*again)
    assert read_lines(parts / "metrics.jsonl") == read_lines(whole / "metrics.jsonl")
    with pytest.raises(ValueError, match=r"begun with other settings.*\n  seed was 42 and is 7\n"):
        run_recipe(*again, "--seed", 7)
    other = shutil.copytree(opt_folder, tmp_path / "other")
    state = load_file(other / "model.safetensors")
    state["query_tokens"] *= 2
    save_file(state, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"begun on .*, and the weights of .*other are others"):
        run_recipe(*again, "--model.name", other)


@pytest.mark.slow
def test_a_signal_to_the_whole_group_saves_and_stops(opt_folder, photo_folder, tmp_path):
    """As `timeout` and schedulers send it: the loader's worker gets it too."""
    run, words = tmp_path / "run", ["--data.workers", 1, "--train.evaluate_every", 99999]
    words += ["--train.epochs", 9999, "--train.max_steps", "null"]
    command = [sys.executable, RECIPE, *tiny(opt_folder, photo_folder, run), *words]
    running = subprocess.Popen(
        list(map(str, command)),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    try:
        while not read_lines(run / "log.jsonl") and running.poll() is None:
            time.sleep(0.1)
        os.killpg(running.pid, signal.SIGTERM)
        _, said = running.communicate(timeout=60)
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
    assert running.returncode == 128 + signal.SIGTERM, said[-3000:]
    (saved,) = list_checkpoints(run / "checkpoints")
    assert said.rstrip().splitlines()[-1].startswith(f"stopped; the state is saved in {saved}.")
    assert "Traceback" not in said


def test_fp16_with_flan_t5_is_refused(t5_folder, photo_folder, tmp_path, monkeypatch):
    # fp16 needs a GPU before it can be refused
    class Fp16:
        mixed_precision, is_main_process, device = "fp16", True, torch.device("cpu")
        num_processes, is_local_main_process = 1, False

    import blip2ft.training.processes

    monkeypatch.setattr(blip2ft.training.processes, "start_processes", lambda *_: Fp16())
    with pytest.raises(ValueError, match="FlanT5 overflows in fp16"):
        run_recipe(*tiny(t5_folder, photo_folder, tmp_path / "run"), "--model.precision", "fp16")
    assert not (tmp_path / "run").exists()


def launch(*argv: object) -> subprocess.CompletedProcess:
    command = [sys.executable, RECIPE, *argv]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT)


def test_a_mistyped_key_is_one_line_and_status_2():
    found = launch("--config", YAMLS[0], "--train.epcohs", "3")
    assert found.returncode == 2
    assert found.stderr.strip().splitlines() == [
        "error: unknown setting 'train.epcohs': did you mean 'train.epochs'?"
    ]


def test_a_folder_in_use_is_one_line_and_status_2(opt_folder, photo_folder, tmp_path):
    (tmp_path / "mine.txt").write_text("")
    found = launch(*tiny(opt_folder, photo_folder, tmp_path))
    assert found.returncode == 2
    (line,) = found.stderr.strip().splitlines()
    assert line.startswith(f"error: the output folder {tmp_path} is in use")


def test_help_is_quick_and_lists_the_settings():
    start = time.perf_counter()
    found = launch("--help")
    assert found.returncode == 0
    assert "--optimizer.vision_layer_decay" in found.stdout
    assert time.perf_counter() - start < 3
