"""What a run's folder tells, whole, unfinished or damaged."""

import re
import shutil
from pathlib import Path

import pytest
import yaml

from blip2ft.report.reading import flat, read_run
from blip2ft.training.run import read_lines, write_lines


def change_settings(run: Path, file: str = "config.yaml", **changed) -> None:
    """Write the run's settings with others for some dotted names, a_b for a.b, to `file`."""
    settings = yaml.safe_load((run / "config.yaml").read_text())
    for name, value in changed.items():
        group, _, key = name.partition("__")
        if key:
            settings[group][key] = value
        else:
            settings[group] = value
    (run / file).write_text(yaml.safe_dump(settings))


def unfinished(run: Path) -> Path:
    """Take away what a run writes at its end."""
    shutil.rmtree(run / "adapter")
    kept = [row for row in read_lines(run / "metrics.jsonl") if row["split"] != "test"]
    first = read_lines(run / "metrics.jsonl")[0]
    write_lines(run / "metrics.jsonl", [first, *kept])
    (run / "predictions" / "test-00000040.jsonl").unlink()
    return run


@pytest.mark.parametrize("task", ["caption", "vqa", "retrieval"])
def test_a_run_that_has_ended_tells_its_task_scores_and_answers(made_run, task):
    run = read_run(made_run(task))
    assert (run.task, run.split, run.best, run.ended) == (task, "test", 40, True)
    assert run.before.keys() == run.after.keys()
    assert "step" not in run.before
    assert run.before[run.metric] < run.after[run.metric]
    assert len(run.answers_before) == len(run.answers_after) == (24 if task == "vqa" else 12)
    assert [row["step"] for row in run.log] == [10, 20, 30, 40]
    assert run.data["source"].endswith("photos/test.csv")
    assert (run.damaged, run.stopped) == ({}, None)


def test_without_a_test_split_before_and_after_are_of_validation(made_run):
    folder = made_run("caption")
    change_settings(folder, data__test=None)
    rows = [row | {"split": "validation"} for row in read_lines(folder / "metrics.jsonl")[:3]]
    rows[2]["cider"] += 1
    write_lines(folder / "metrics.jsonl", rows)
    run = read_run(folder)
    assert (run.split, run.best) == ("validation", 40)
    assert (run.before["cider"], run.after["cider"]) == (rows[0]["cider"], rows[2]["cider"])


def test_of_equal_validations_the_first_is_the_best(made_run):
    folder = unfinished(made_run("caption"))
    rows = read_lines(folder / "metrics.jsonl")
    assert rows[1]["cider"] == rows[2]["cider"]
    assert read_run(folder).best == 20


def test_a_run_that_goes_on_has_what_came_so_far(made_run):
    run = read_run(unfinished(made_run("caption")))
    assert not run.ended
    assert run.before
    assert run.after == {}
    assert run.answers_after == []


def test_a_run_before_its_first_evaluation_is_read(made_run):
    folder = unfinished(made_run("caption"))
    for name in ("metrics.jsonl", "log.jsonl", "resources.json", "environment.json"):
        (folder / name).unlink()
    run = read_run(folder)
    assert (run.best, run.before, run.log, run.resources) == (None, {}, [], {})


def test_a_run_that_only_evaluates_has_its_scores_after(made_run):
    folder = made_run("vqa")
    change_settings(folder, evaluate_only=True)
    run = read_run(folder)
    assert not run.trains
    assert run.ended
    assert run.before == {}
    assert run.after == {k: v for k, v in read_lines(folder / "metrics.jsonl")[0].items()
                         if k not in ("step", "split")}  # fmt: skip
    assert run.answers_before == []
    assert run.answers_after


def test_lines_that_a_machine_left_half_written_are_counted(made_run):
    folder = made_run("caption")
    whole = (folder / "log.jsonl").read_bytes()
    broken = b"\0\0\0\0\n" + b'{"step": 41, "lo\n' + b"\xff\xfe\n" + b"7\n"
    (folder / "log.jsonl").write_bytes(whole + broken + b'{"step": 45')
    run = read_run(folder)
    assert [row["step"] for row in run.log] == [10, 20, 30, 40]
    assert run.damaged == {"log.jsonl": 4}


def test_what_a_run_left_out_is_read(made_run):
    folder = made_run("caption")
    write_lines(folder / "broken.jsonl", [{"sample": 1}, {"sample": 2}])
    run = read_run(folder)
    assert {name: len(rows) for name, rows in run.asides.items()} == {
        "nonfinite.jsonl": 0,
        "broken.jsonl": 2,
        "filtered.jsonl": 0,
    }


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.jsonl", '{"step": 0, "spl\n', r"metrics\.jsonl is damaged: .*; remove the lines"),
        ("metrics.jsonl", '{"step": 0}\n', "metrics.jsonl is damaged, or of another version"),
        ("predictions/test-00000040.jsonl", "{\n", r"test-00000040\.jsonl:1: not valid JSON"),
        ("predictions/test-00000040.jsonl", '{"a": 1}\n', r"00000040\.jsonl:1: no prediction"),
        ("resources.json", "{", r"resources\.json is damaged: .*; remove it"),
        ("config.yaml", "a: [", r"config\.yaml is damaged: .*; put back"),
        ("config.yaml", "output: run\n", r"isn't of a training run: it lacks the settings of data"),
    ],
)
def test_a_damaged_file_is_named(made_run, name, content, message):
    folder = made_run("caption")
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_run(folder)


def test_a_folder_without_a_run_is_told(tmp_path):
    message = f"{tmp_path} holds no run: there is no config.yaml; give a run's folder"
    with pytest.raises(ValueError, match=re.escape(message)):
        read_run(tmp_path)


def test_predictions_that_were_removed_leave_the_scores(made_run):
    folder = made_run("caption")
    shutil.rmtree(folder / "predictions")
    run = read_run(folder)
    assert run.after
    assert run.answers_after == []


def test_the_settings_are_those_of_the_last_start(made_run):
    folder = made_run("caption")
    for times in range(1, 11):
        change_settings(folder, f"config-resumed-{times}.yaml", seed=times)
    run = read_run(folder)
    assert [settings["seed"] for settings in run.starts] == [42, *range(1, 11)]
    assert run.settings["seed"] == 10


def test_settings_have_the_names_of_the_command_line():
    settings = {"seed": 1, "train": {"lr": 0.5, "log_with": []}, "data": [{"source": "a"}], "x": {}}
    assert flat(settings) == {
        "seed": "1",
        "train.lr": "0.5",
        "train.log_with": "[]",
        "data.0.source": "a",
        "x": "{}",
    }
