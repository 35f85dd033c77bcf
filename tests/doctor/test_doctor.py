"""What the doctor says of the machine and of runs, good and bad."""

import json
import shutil

import pytest
import yaml
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file

from blip2ft.doctor.machine import EXTRAS, machine_lines
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


def test_the_machine_is_told():
    said = dict(machine_lines())
    assert said["blip2ft"].startswith("0.")
    assert "torch 2." in said["packages"]
    assert "core" in said["processor"]
    assert "precision" in said
    assert EXTRAS.keys() <= said.keys()
    assert all(text.startswith(("yes: ", "no, pip install ")) for text in map(said.get, EXTRAS))


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
    task, config, opt_folder, retriever_folder, photo_folder, tmp_path, blip2ft_main
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
    ],
)
def test_a_run_that_would_not_start_is_told_as_the_recipe_tells_it(
    words, said, config, opt_folder, blip2ft_main
):
    status, _, err = blip2ft_main("doctor", "--config", config(opt_folder), *words)
    assert status == 2
    assert said in err


def test_what_filters_leave_is_told_and_nothing_is_written(
    config, opt_folder, tmp_path, blip2ft_main
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


def test_settings_need_a_run(blip2ft_main):
    status, _, err = blip2ft_main("doctor", "--gpu", "24GB")
    assert status == 2
    assert "error: settings, --task and --gpu belong to a run: give its --config F.yaml" in err
