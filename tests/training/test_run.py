"""A run's folder: never overwritten, and readable again."""

import json
import os
import signal

import pytest

from blip2ft.errors import Stopped
from blip2ft.training.run import (
    append_line,
    check_output,
    drop_lines_after,
    environment,
    open_run,
    read_evaluation,
    read_lines,
    record_evaluation,
    stop_outside_of_steps,
    write_lines,
)


def test_a_new_or_empty_folder_is_free(tmp_path):
    check_output(tmp_path, resume=False)
    check_output(tmp_path / "new" / "deep", resume=False)


@pytest.mark.parametrize("what", ["file inside", "a file itself"])
def test_a_folder_in_use_is_refused(tmp_path, what):
    run = tmp_path / "run"
    if what == "file inside":
        run.mkdir()
        (run / "notes.txt").write_text("mine")
    else:
        run.write_text("mine")
    with pytest.raises(ValueError, match=r"run is in use .*--resume, or choose"):
        check_output(run, resume=False)


def test_there_must_be_a_run_to_resume(tmp_path):
    with pytest.raises(ValueError, match=r"nothing to resume: .* holds no run"):
        check_output(tmp_path, resume=True)
    (tmp_path / "config.yaml").write_text("")
    check_output(tmp_path, resume=True)


def test_a_run_that_goes_on_forgets_what_stopped_it(tmp_path):
    for name in ("config.yaml", "stopped.json"):
        (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match="is in use"):
        check_output(tmp_path, resume=False)
    check_output(tmp_path, resume=True)
    assert (tmp_path / "stopped.json").exists()
    stop_outside_of_steps(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path, monkeypatch, resume):
    if resume:
        (tmp_path / "config.yaml").write_text("")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(ValueError, match="can't be written: not allowed to write in"):
        check_output(tmp_path, resume=resume)


def test_what_a_kill_left_half_written_is_removed(tmp_path):
    open_run(tmp_path, "", resume=False)
    (tmp_path / "checkpoints" / "step-00000001").mkdir()
    (tmp_path / "checkpoints" / ".partial-step-00000002").mkdir()
    (tmp_path / "checkpoints" / ".partial-step-00000002" / "rest.pt").write_text("")
    (tmp_path / "predictions" / ".partial-test-00000002.jsonl").write_text("")
    (tmp_path / ".partial-log.jsonl").write_text("")
    open_run(tmp_path, "", resume=True)
    assert list(tmp_path.rglob(".partial-*")) == []
    assert (tmp_path / "checkpoints" / "step-00000001").is_dir()


def test_a_resumed_run_keeps_its_first_settings(tmp_path):
    run = tmp_path / "run"
    open_run(run, "seed: 1\n", resume=False)
    open_run(run, "seed: 2\n", resume=True)
    open_run(run, "seed: 3\n", resume=True)
    texts = {path.name: path.read_text() for path in run.glob("*.yaml")}
    assert texts == {
        "config.yaml": "seed: 1\n",
        "config-resumed-1.yaml": "seed: 2\n",
        "config-resumed-2.yaml": "seed: 3\n",
    }
    assert len(list(run.glob("environment*.json"))) == 3
    assert (run / "checkpoints").is_dir()
    assert (run / "predictions").is_dir()


def test_a_run_that_began_while_this_one_loaded_is_not_overwritten(tmp_path):
    check_output(tmp_path, resume=False)
    open_run(tmp_path, "seed: 1\n", resume=False)
    with pytest.raises(ValueError, match="is in use and nothing in it is ever overwritten"):
        open_run(tmp_path, "seed: 2\n", resume=False)
    assert (tmp_path / "config.yaml").read_text() == "seed: 1\n"


def test_the_environment_names_what_the_numbers_came_from():
    found = json.loads(json.dumps(environment()))
    assert found["packages"]["torch"]
    assert found["packages"]["transformers"]
    assert {"python", "platform", "cpus", "gpus", "git_commit", "command"} <= found.keys()


def test_lines_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"text": 'line\nbreak, é, \u2028, \x85 and "quotes"', "n": 1}, {"n": None}]
    write_lines(path, rows)
    append_line(path, {"n": 3})
    assert read_lines(path) == [*rows, {"n": 3}]


def test_a_missing_file_has_no_lines(tmp_path):
    assert read_lines(tmp_path / "none.jsonl") == []


def test_a_failure_while_writing_leaves_the_former_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_lines(path, [{"n": 1}])

    def rows():
        yield {"n": 2}
        raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        write_lines(path, rows())
    assert read_lines(path) == [{"n": 1}]


def test_a_line_that_was_cut_off_is_left_out_and_a_resumed_run_writes_over_it(tmp_path):
    path = tmp_path / "log.jsonl"
    write_lines(path, [{"step": 1}, {"step": 2}])
    with path.open("ab") as file:
        file.write(b'{"step": 3, "caf\xc3')  # in the middle of a character
    assert read_lines(path) == [{"step": 1}, {"step": 2}]
    drop_lines_after(path, 2)
    append_line(path, {"step": 3})
    assert read_lines(path) == [{"step": 1}, {"step": 2}, {"step": 3}]


def test_lines_after_the_checkpoint_are_forgotten(tmp_path):
    path = tmp_path / "log.jsonl"
    write_lines(path, [{"step": step} for step in (1, 2, 3, 4)])
    drop_lines_after(path, 2)
    assert [row["step"] for row in read_lines(path)] == [1, 2]
    drop_lines_after(tmp_path / "none.jsonl", 2)
    assert not (tmp_path / "none.jsonl").exists()


def test_an_evaluation_is_read_as_recorded(tmp_path):
    open_run(tmp_path / "run", "", resume=False)
    run = tmp_path / "run"
    answers = [{"image_id": 7, "caption": "a cat", "references": ["a dog", "a cat"]}]
    record_evaluation(run, "test", 0, {"cider": 0.5}, answers)
    record_evaluation(run, "validation", 0, {"cider": 0.7}, [])
    record_evaluation(run, "test", 5, {"cider": 0.9}, [])
    assert read_evaluation(run, "test", 0).scores == {"cider": 0.5}
    assert read_evaluation(run, "test", 0).answers == answers
    assert read_evaluation(run, "test", 5).scores == {"cider": 0.9}


def test_of_two_evaluations_at_one_step_the_last_is_kept(tmp_path):
    open_run(tmp_path, "", resume=False)
    record_evaluation(tmp_path, "validation", 3, {"cider": 0.3}, [])
    for value in (0.1, 0.2):
        record_evaluation(tmp_path, "test", 3, {"cider": value}, [])
    assert read_evaluation(tmp_path, "test", 3).scores == {"cider": 0.2}
    assert [row["cider"] for row in read_lines(tmp_path / "metrics.jsonl")] == [0.3, 0.2]


def test_an_evaluation_that_never_was_is_empty(tmp_path):
    found = read_evaluation(tmp_path, "test", 0)
    assert (found.scores, found.answers) == ({}, [])


def test_a_kill_while_a_run_opens_leaves_one_that_goes_on(tmp_path, monkeypatch):
    def killed():
        raise KeyboardInterrupt

    monkeypatch.setattr("blip2ft.training.run.environment", killed)
    with pytest.raises(KeyboardInterrupt):
        open_run(tmp_path / "run", "seed: 1\n", resume=False)
    check_output(tmp_path / "run", resume=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_outside_of_steps_ends_cleanly(tmp_path, number):
    stop_outside_of_steps(tmp_path)
    with pytest.raises(Stopped, match="stopped before there was a run; the same command begins it"):
        os.kill(os.getpid(), number)
    assert list(tmp_path.iterdir()) == []
    open_run(tmp_path, "", resume=False)
    (tmp_path / "checkpoints" / "step-00000002").mkdir()
    stop_outside_of_steps(tmp_path)
    with pytest.raises(Stopped, match="the same command with --resume goes on") as stop:
        os.kill(os.getpid(), number)
    assert stop.value.signal_number == number
    said = json.loads((tmp_path / "stopped.json").read_text())
    assert said == {"signal": signal.Signals(number).name, "checkpoint": "step-00000002"}
