"""`blip2ft plan`: every recipe can be planned, and what is wrong is told in clear words."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import blip2ft.plan.plan
from blip2ft.cli import main
from blip2ft.plan.gpu import Gpu
from blip2ft.plan.plan import make_plan
from blip2ft.plan.report import as_text
from blip2ft.settings import read_settings

RECIPES = sorted(
    path
    for path in (Path(__file__).parents[1] / "recipes").glob("*/*.yaml")
    if path.parent.name != "accelerate"  # for the launcher
)
TRAINING = [path for path in RECIPES if not yaml.safe_load(path.read_text()).get("evaluate_only")]
TINY = ("--train.batch_size", "8", "--train.micro_batch_size", "2", "--data.max_target_tokens", "9")


@pytest.fixture
def config(opt_folder, photo_folder, tmp_path) -> Path:
    path = tmp_path / "run.yaml"
    source = {"source": str(photo_folder / "captions.csv")}
    settings = {
        "output": str(tmp_path / "run"),
        "model": {"name": str(opt_folder)},
        "data": {"train": source, "validation": source},
    }
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture
def no_switches(monkeypatch):
    monkeypatch.setattr(blip2ft.plan.plan, "try_switches", lambda *_, **__: [])


def run(capsys, *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["plan", *map(str, words)])
    out, err = capsys.readouterr()
    return stop.value.code, out, err


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_recipe_can_be_planned(
    path, opt_folder, retriever_folder, monkeypatch, tmp_path, no_switches
):
    monkeypatch.chdir(tmp_path)  # no data, and no model by its name
    text = path.read_text()
    task = "caption"
    if "recipes/retrieval.py" in text or path.parent.name == "retrieval" or "stage1_" in path.name:
        task = "retrieval"
    elif path.parent.name == "vqa":
        task = "vqa"
    folder = retriever_folder if task == "retrieval" else opt_folder
    overrides = ["--model.name", str(folder), "--model.image_size", "28"]
    if task == "retrieval":
        overrides += ["--data.max_target_tokens", "24"]
    if task == "vqa":
        overrides += ["--stage1", str(retriever_folder)]
    found, settings = read_settings(str(path), overrides, None)
    assert found == task
    plan = make_plan(task, settings, samples=1000)
    train = settings["train"]
    steps = train["max_steps"] or math.ceil(1000 * train["epochs"] / train["batch_size"])
    assert plan.steps == steps
    assert plan.memory.total > 0
    assert "peak of a step" in as_text(plan)


def test_a_plan_as_json_adds_up_and_counts_what_is_here(config, capsys):
    code, out, err = run(capsys, "--config", config, "--gpu", "1GB", "--json", *TINY)
    assert (code, err) == (0, "")
    plan = json.loads(out)
    memory = plan["memory"]
    assert memory["total"] == sum(
        sum(value.values()) if isinstance(value, dict) else value
        for name, value in memory.items()
        if name not in ("total", "dtypes")
    )
    assert plan["samples"] == 8
    assert plan["steps"] == 5  # 5 epochs of 8 in batches of 8
    assert (plan["micro_batch_size"], plan["accumulation"]) == (2, 4)
    assert plan["largest_micro_batch"] == 8
    assert plan["hours"] is None
    trained = sum(plan["trained"].values())
    assert plan["disk"]["checkpoint"] == plan["host_while_saving"] == 12 * trained
    assert [switch["saves"] for switch in plan["switches"]] == sorted(
        (switch["saves"] for switch in plan["switches"]), reverse=True
    )


@pytest.mark.slow
def test_the_largest_micro_batch_is_that_of_trying_all(config, no_switches):
    def planned(size, gpu=None):
        words = ["--train.batch_size", "8", "--train.micro_batch_size", str(size)]
        task, settings = read_settings(str(config), words, "caption")
        return make_plan(task, settings, gpu=gpu, samples=8, tokens=8)

    sizes = {size: planned(size).memory.total for size in range(1, 9)}
    assert sizes[8] < sizes[7]  # all of a step at once accumulates nothing
    for size in (1, 3, 8):
        for room in (sizes[size], sizes[size] - 1):
            fitting = [other for other, total in sizes.items() if total <= room]
            assert planned(1, Gpu(room)).largest == max(fitting, default=0)


def test_what_is_unknown_is_called_unknown(config, capsys, no_switches):
    gone = ("--data.train", '{"source": "nowhere.csv"}')
    code, out, _ = run(capsys, "--config", config, *TINY, *gone)
    assert code == 0
    assert "steps        unknown: give --samples N (nowhere.csv isn't here)" in out
    assert "time         unknown" in out
    assert "pass --gpu" in out


def test_time_is_that_of_a_stated_or_an_earlier_speed(config, capsys, tmp_path, no_switches):
    words = ("--config", config, *TINY, "--samples", 7200)
    _, out, _ = run(capsys, *words, "--images-per-second", 10)
    assert "time         1.0 h" in out
    earlier = tmp_path / "earlier"
    earlier.mkdir()
    rows = [{"step": i, "images_per_second": speed} for i, speed in enumerate((1, 5, 90))]
    (earlier / "log.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    _, out, _ = run(capsys, *words, "--like", earlier)
    assert "time         2.0 h" in out
    code, _, err = run(capsys, *words, "--like", tmp_path / "none")
    assert code == 2
    assert "no log.jsonl" in err


def test_a_micro_batch_that_leaves_a_rest_is_noted(config, capsys, no_switches):
    words = ("--train.batch_size", 8, "--train.micro_batch_size", 3, "--tokens", 12)
    _, out, _ = run(capsys, "--config", config, *words)
    assert "note: the last micro-batch of a step has 2 samples" in out
    assert "5 prompt and 7 target tokens" in out
    assert "shards" not in out
    _, out, _ = run(capsys, "--config", config, *words, "--processes", 2)
    assert "note: each process is planned to hold the whole model (DDP); in shards (FSDP2)" in out
    assert "GB of its memory, on the first process, while a checkpoint is written\n" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--gpu", "big"), "error: --gpu is 'big': allowed is a size such as 24GB"),
        (("--gpu", "-5GB"), "error: --gpu is '-5GB': allowed is a size such as 24GB"),
        (("--processes", "3"), "train.batch_size 256 can't be shared by 3 processes"),
        (("--train.epoch", "3"), "did you mean --train.epochs?"),
        (("--train.epochs", "none"), "train.epochs is 'none'"),
        (("--model.name", "no/such/model"), "there is no folder no/such/model"),
        (("--model.name", "some/model"), "it is no folder here, and the hub gave no such model"),
        (("--model.image_size", "30"), "image size 30 doesn't divide into patches"),
        (("--task", "retrieval"), "has a language model to generate text"),
        (("--parts.vision", "lora", "--lora.r", "0"), "lora.r is 0"),
        (("--quantize", "nf4"), "quantize is 'nf4': allowed is a mapping, such as {language: nf4}"),
        (("--evaluate_only", "true", "--task", "vqa"), "data.train"),
    ],
)
def test_what_is_wrong_is_told(config, capsys, words, message):
    code, out, err = run(capsys, "--config", config, *words)
    assert (code, out) == (2, "")
    assert message in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--parts.language", "full"), "parts.language is full, but a Retriever has no such part"),
        (("--parts.language", "lora"), "parts.language is lora, but a Retriever has no such part"),
        (("--quantize.language", "nf4"), "quantize names 'language', but a Retriever has no such"),
    ],
)
def test_a_part_that_the_model_has_not_is_told(config, retriever_folder, capsys, words, message):
    model = ("--task", "retrieval", "--model.name", retriever_folder)
    code, out, err = run(capsys, "--config", config, *TINY, *model, *words)
    assert (code, out) == (2, "")
    assert message in err


CACHED = ("--parts.vision", "frozen", "--data.crop_scale", "null", "--data.flip", "false")


def test_kept_features_are_on_the_disk_and_not_in_memory(config, capsys, no_switches):
    line = ("--config", config, *TINY, "--json", *CACHED)
    plain = json.loads(run(capsys, *line)[1])
    kept = json.loads(run(capsys, *line, "--cache.folder", config.parent / "cache")[1])
    assert plain["disk"]["features"] == 0
    # 8 images for training and again for evaluation: 5 tokens of 32 in bf16, and an identity
    assert kept["disk"]["features"] == 16 * (5 * 32 * 2 + 32)
    assert kept["memory"]["weights"]["vision"] < plain["memory"]["weights"]["vision"]
    assert not (config.parent / "cache").exists()
    code, out, _ = run(capsys, *line[:-7], *CACHED, "--cache.folder", config.parent / "cache")
    assert (code, "; kept features 0.00 GB" in out) == (0, True)


def test_features_that_cannot_be_kept_are_refused_as_the_recipe_does(config, capsys):
    code, _, err = run(capsys, "--config", config, "--cache.folder", "cache")
    assert code == 2
    assert "parts.vision is full" in err
    assert "data.crop_scale crops each epoch differently" in err


def test_images_at_addresses_are_not_fetched_to_be_counted(
    config, capsys, no_switches, monkeypatch
):
    def fetched(_):
        raise AssertionError("fetched")

    monkeypatch.setattr("blip2ft.data.remote.Remote.read", fetched)
    (config.parent / "far.csv").write_text("image,caption\nhttps://x.org/a.jpg,a cat\n")
    source = json.dumps({"source": str(config.parent / "far.csv"), "allow": ["remote"]})
    line = ("--config", config, *TINY, *CACHED, "--data.train", source)
    code, out, err = run(capsys, *line)
    assert (code, "1 sample" in out) == (0, True), err
    code, _, err = run(capsys, *line, "--cache.folder", "cache")
    assert code == 2
    assert "data.train.allow has remote, and to know an image at an address is to fetch it" in err


def test_features_of_images_that_are_not_here_are_told_a_piece(config, capsys, no_switches):
    gone = ("--data.train", '{"source": "nowhere.csv"}', "--cache.folder", "cache")
    code, out, _ = run(capsys, "--config", config, *TINY, *CACHED, *gone)
    assert code == 0
    assert "352 bytes an image, of how many is unknown (nowhere.csv isn't here)" in out


def test_attention_of_a_gpu_s_own_is_planned_by_its_like(config, capsys, no_switches):
    kind = ("--model.attention", "{vision: flash_attention_2}")
    code, out, _ = run(capsys, "--config", config, *TINY, *kind)
    assert code == 0
    assert "vision is planned by sdpa, which keeps what flash_attention_2 does" in out


def test_a_run_that_trains_nothing_has_no_plan(opt_folder):
    path = next(path for path in RECIPES if path not in TRAINING)
    task, settings = read_settings(str(path), ["--model.name", str(opt_folder)], None)
    assert settings["evaluate_only"]
    with pytest.raises(ValueError, match="nothing is trained and there is nothing to plan"):
        make_plan(task, settings)


def test_a_missing_config_is_told(capsys):
    code, _, err = run(capsys, "--config", "none.yaml")
    assert code == 2
    assert "--config none.yaml: there is no such file" in err


def test_help_needs_no_torch():
    code = "import sys\nfrom blip2ft.cli import main\ntry:\n    main(['plan', '--help'])\n"
    code += "finally:\n    assert 'torch' not in sys.modules"
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--gpu" in done.stdout
    assert time.perf_counter() - start < 30
