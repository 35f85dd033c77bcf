"""What the doctor says of the machine and of runs, good and bad."""

import json
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file

from blip2ft.doctor.launch import check_gpus, launch_line
from blip2ft.doctor.machine import EXTRAS, machine_lines
from blip2ft.metrics.spice import MODELS
from blip2ft.plan.gpu import Gpu
from blip2ft.training.run import environment


@pytest.fixture(autouse=True)
def fresh_accelerate():
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture
def config(tmp_path, photo_folder):
    """Write the YAML of a small run."""

    def write(model, **settings):
        source = {"source": str(photo_folder / "captions.csv")}
        data = {"train": source, "validation": source, "max_target_tokens": 16}
        run = {
            "output": str(tmp_path / "run"),
            "model": {"name": str(model)},
            "train": {"batch_size": 4, "micro_batch_size": 2},
            "data": data | settings.pop("data", {}),
        }
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(run | settings))
        return path

    return write


@pytest.fixture
def no_switches(monkeypatch):
    monkeypatch.setattr("blip2ft.plan.plan.try_switches", lambda *_, **__: [])


def test_the_machine_is_told():
    said = dict(machine_lines())
    assert said["blip2ft"].startswith("0.")
    assert "torch 2." in said["packages"]
    assert "core" in said["processor"]
    assert "precision" in said
    assert EXTRAS.keys() <= said.keys()
    assert all(text.startswith(("yes: ", "no, pip install ")) for text in map(said.get, EXTRAS))


@pytest.mark.parametrize("models", [True, False])
def test_of_spice_it_is_told_whether_its_models_are_here(monkeypatch, tmp_path, models):
    monkeypatch.setattr("blip2ft.doctor.machine.find_spec", lambda name: name)
    monkeypatch.setattr("blip2ft.metrics.java.program_folder", lambda _: tmp_path)
    (tmp_path / "lib").mkdir()
    for name in MODELS if models else ():
        (tmp_path / "lib" / name).touch()
    said = dict(machine_lines())["java"]
    assert said.startswith("yes: METEOR and SPICE")
    assert said.endswith("-m pycocoevalcap.spice.get_stanford_models") == (not models)


def test_a_package_that_is_not_installed_has_no_version(monkeypatch):
    known = {**environment(), "git_commit": None}
    known["packages"] = {**known["packages"], "blip2ft": None, "peft": None}
    monkeypatch.setattr("blip2ft.doctor.machine.environment", lambda: known)
    said = dict(machine_lines())
    assert said["blip2ft"] == "not installed"
    assert "peft not installed" in said["packages"]


def test_without_a_run_the_machine_is_all(blip2ft_main):
    status, out, _ = blip2ft_main("doctor")
    assert status == 0
    assert out.startswith("blip2ft            0.")
    assert "preflight" not in out


@pytest.mark.parametrize("task", ["caption", "retrieval", "vqa"])
def test_a_run_that_would_start_is_examined_and_leaves_nothing(
    task, config, opt_folder, retriever_folder, photo_folder, no_switches, tmp_path, blip2ft_main
):
    model, settings = opt_folder, {}
    if task == "retrieval":
        model = retriever_folder
    if task == "vqa":
        questions = tmp_path / "questions.jsonl"
        rows = [
            {"image": f"photo{i}.jpg", "question": "a cat", "answers": ["red"]} for i in range(8)
        ]
        questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = {"source": str(questions), "image_root": str(photo_folder)}
        data = {"train": [source], "validation": source}
        settings = {"data": data, "stage1": str(retriever_folder), "prompt": "the {} of a"}
    path = config(model, **settings)
    status, out, err = blip2ft_main("doctor", "--config", path, "--gpu", "24GB")
    assert status == 0, err
    assert f"{path} ({task})" in out
    assert "preflight    the image reaches the loss, and the gradient what trains (vision, " in out
    assert "fits         24.00 GB: yes" in out
    assert out.rstrip().endswith(f"it would start: python recipes/{task}.py --config {path}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--optimizer.lr", "0"], "error: optimizer.lr is 0.0: allowed is more than 0"),
        (["--parts.vision", "ful"], "error: parts.vision is 'ful': allowed is ['frozen', "),
        (["--model.name", "data/tiny-blip3"], "error: there is no folder data/tiny-blip3"),
        (["--data.train.source", "gone.csv"], "error: gone.csv: no such file or folder"),
        (["--train.best_metric", "nonsense"], "error: train.best_metric is 'nonsense', which the"),
        (["--output", "recipes"], "error: the output folder recipes is in use"),
        (["--train.batch_size", "0"], "error: train.batch_size is 0: allowed is 1 or more"),
        (
            ["--task", "retrieval", "--evaluate_only", "true"],
            "evaluate_only is true, so no step would",
        ),
    ],
)
def test_a_run_that_would_not_start_is_told_as_the_recipe_tells_it(
    words, said, config, opt_folder, blip2ft_main
):
    status, _, err = blip2ft_main("doctor", "--config", config(opt_folder), *words)
    assert status == 2
    assert said in err


def test_what_filters_leave_is_told_and_nothing_is_written(
    config, opt_folder, no_switches, tmp_path, blip2ft_main
):
    filters = ("--data.filters.harmful", "drop")
    status, out, err = blip2ft_main("doctor", "--config", config(opt_folder), *filters)
    assert status == 0, err
    assert "filters: nothing found in 8 images\n" in out
    assert not (tmp_path / "run").exists()


def test_a_part_that_nothing_reaches_is_found(config, opt_folder, tmp_path, blip2ft_main):
    dead = shutil.copytree(opt_folder, tmp_path / "dead")
    state = load_file(dead / "model.safetensors")
    state["language_projection.weight"].zero_()
    save_file(state, dead / "model.safetensors", {"format": "pt"})
    status, out, err = blip2ft_main("doctor", "--config", config(dead))
    assert status == 2
    assert "preflight: the loss is" in err
    assert "whatever the image" in err
    assert "it would start" not in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--processes", "3"], "train.batch_size 4 can't be shared by 3 processes"),
        (["--output", "README.md/run"], "README.md/run can't be made: "),
        (["--like", "gone"], "--like gone has no log.jsonl"),
        (["--config", "gone.yaml"], "--config gone.yaml: there is no such file"),
    ],
    ids=["processes", "output", "like", "config"],
)
def test_what_the_options_alone_say_is_told_before_anything_else(
    words, said, config, opt_folder, blip2ft_main
):
    status, out, err = blip2ft_main("doctor", "--config", config(opt_folder), *words)
    assert (status, out) == (2, "")
    assert said in err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--gpu", "24GB"], "--gpu"),
        (["--processes", "2"], "--processes"),
        (["--images-per-second", "9"], "--images-per-second"),
        (["--train.epochs", "2"], "--train.epochs"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_said_of_a_run_needs_one(words, named, blip2ft_main):
    status, out, err = blip2ft_main("doctor", *words)
    assert (status, out) == (2, "")
    assert err == f"error: {named} belongs to a run: give its --config F.yaml\n"


@pytest.fixture
def no_trial(no_switches, monkeypatch):
    """No GPU, and no trial before the plan."""
    monkeypatch.setattr("blip2ft.plan.gpu.gpu_here", lambda: None)
    monkeypatch.setattr("blip2ft.doctor.trial.try_run", lambda *_: "fp32")


@pytest.mark.parametrize(("free", "verdict"), [(10**12, "it fits"), (10**6, "too much")])
def test_without_a_gpu_a_run_is_held_against_the_hosts_memory(
    free, verdict, config, opt_folder, no_trial, blip2ft_main, monkeypatch
):
    monkeypatch.setattr(
        "psutil.virtual_memory", lambda: SimpleNamespace(total=free, available=free)
    )
    words = ["--config", config(opt_folder), "--processes", 2, "--images-per-second", 1]
    status, out, err = blip2ft_main("doctor", *words)
    assert status == 0, err
    assert "run.yaml (caption), 2 processes\n" in out
    assert f" GB of the {free / 10**9:.2f} GB that are free here: {verdict}" in out
    assert "fp32, 28 px" in out
    assert "step         4 samples: 2 processes x 1 micro-batch of 2\n" in out
    assert "h of training" in out
    assert "memory of one GPU" not in out
    assert "for a GPU    pass --gpu, such as 24GB" in out
    assert "it would start: torchrun --standalone --nproc_per_node 2 recipes/caption.py" in out


@pytest.mark.parametrize(
    ("processes", "gpu", "launcher"),
    [
        (1, None, "python"),
        (1, Gpu(10**9), "python"),
        (2, None, "torchrun --standalone --nproc_per_node 2"),
        (
            8,
            Gpu(10**9),
            "accelerate launch --config_file recipes/accelerate/ddp.yaml --num_processes 8",
        ),
        (
            8,
            Gpu(10**9, bf16=False),
            "accelerate launch --config_file "
            "recipes/accelerate/ddp.yaml --num_processes 8 --mixed_precision no",
        ),
    ],
    ids=["cpu", "gpu", "cpu-2", "gpu-8", "old-gpu-8"],
)
def test_the_command_starts_as_many_processes(processes, gpu, launcher):
    line = launch_line("vqa", "F.yaml", ["--data.train", "[{source: a}]"], processes, gpu)
    assert line == f"{launcher} recipes/vqa.py --config F.yaml --data.train '[{{source: a}}]'"
    for word in shlex.split(line):
        assert not word.startswith("recipes/") or Path(word).is_file()


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    check_gpus(2)
    with pytest.raises(ValueError, match="--processes is 3, and of GPUs this machine has 2; take"):
        check_gpus(3)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    check_gpus(3)


def test_the_sign_of_a_signal_stays_with_the_run(
    config, opt_folder, no_trial, tmp_path, blip2ft_main
):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.yaml", "stopped.json"):
        (run / name).touch()
    words = ["--config", config(opt_folder), "--train.resume", "true"]
    status, _, err = blip2ft_main("doctor", *words)
    assert status == 0, err
    assert (run / "stopped.json").exists()
