"""What a page says of a run in words."""

import shutil
from dataclasses import replace

import pytest
from test_report_reading import change_settings, unfinished

from blip2ft.report.facts import (
    differing,
    differing_settings,
    environment,
    gains,
    notices,
    parts_of,
    said_of,
    span,
    time_and_memory,
)
from blip2ft.report.gallery import samples_of
from blip2ft.report.reading import read_run
from blip2ft.training.run import append_line, write_lines


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (42, "42 s"), (328.4, "5 min 28 s"), (7_384, "2 h 3 min")],
)
def test_a_time_is_told_as_a_person_says_it(seconds, told):
    assert span(seconds) == told


def test_a_run_is_told_by_how_far_it_came(made_run):
    folder = made_run("caption")
    name = "Salesforce/blip2-opt-2.7b"
    assert said_of(read_run(folder)) == (
        f"{name}, trained for 40 steps. Step 40 was the best on validation, by cider."
    )
    unfinished(folder)
    assert said_of(read_run(folder)) == (
        f"{name}, trained for 40 steps so far. Step 20 is the best on validation by now, by cider."
    )
    (folder / "metrics.jsonl").unlink()
    (folder / "log.jsonl").unlink()
    assert said_of(read_run(folder)) == (
        f"{name}, trained for 0 steps so far. There is no evaluation after training yet."
    )


def test_a_run_without_a_test_split_flatters_and_says_so(made_run):
    folder = made_run("caption")
    change_settings(folder, data__test=None)
    assert "so they flatter: for fair ones give a data.test too" in said_of(read_run(folder))


def test_a_run_that_only_evaluates_trained_nothing(made_run):
    folder = made_run("retrieval")
    change_settings(folder, evaluate_only=True)
    run = read_run(folder)
    assert said_of(run).endswith("as it is, on the test split; nothing was trained.")
    rows, why = parts_of(run)
    assert {row.mode for row in rows} == {"frozen"}
    assert why.startswith("How large they are isn't known: ")


def test_what_went_wrong_comes_first(made_run):
    folder = made_run("caption")
    assert notices(read_run(folder)) == []
    (folder / "stopped.json").write_text('{"signal": "SIGTERM", "checkpoint": null}')
    write_lines(folder / "nonfinite.jsonl", [{"step": 3}])
    write_lines(folder / "filtered.jsonl", [{}, {}])
    with (folder / "log.jsonl").open("a") as file:
        file.write("{\n")
    assert notices(read_run(folder)) == [
        ("warning", "stopped by SIGTERM; --resume goes on with it", ""),
        (
            "warning",
            "1 step left out, as the loss or the gradient wasn't finite",
            "nonfinite.jsonl",
        ),
        ("note", "2 training texts dropped or masked by the filters", "filtered.jsonl"),
        ("warning", "1 line can't be read and left out", "log.jsonl"),
    ]


def test_a_run_that_gained_nothing_says_so(made_run):
    run = read_run(made_run("caption"))
    ((kind, told, _),) = notices(replace(run, before=run.after))
    assert kind == "warning"
    assert told.startswith("cider is no better than before: the model that the run began with")


def test_gains_count_better_the_same_and_worse(made_run):
    run = read_run(made_run("caption"))
    both = [run.answers_before, run.answers_after]
    assert gains(samples_of("caption", both)) == {"better": 10, "the same": 1, "worse": 1}
    assert gains(samples_of("caption", both[1:])) == {}
    assert gains([]) == {}


def test_parts_are_counted_without_the_weights(made_run, run_folder):
    folder = made_run("caption")
    shutil.rmtree(folder / "adapter")
    shutil.copytree(run_folder / "adapter", folder / "adapter")
    rows, why = parts_of(read_run(folder))
    assert why == ""
    modes = {row.part: (row.mode, row.trainable > 0) for row in rows}
    assert modes == {
        "vision": ("frozen", False),
        "qformer": ("frozen", False),
        "projection": ("full", True),
        "language": ("lora", True),
    }
    rows, why = parts_of(read_run(unfinished(folder)))
    assert why == "How large they are is known when the run has ended."
    assert [row.mode for row in rows] == ["frozen", "full", "full", "frozen"]


def test_time_memory_and_energy_are_told(made_run):
    folder = made_run("caption")
    found = dict(time_and_memory(read_run(folder)))
    assert found["Training"] == "40 s"
    assert found["From start to end"] == "1 min 0 s"
    assert found["Memory of a process, device"] == "up to 12.00 GB"
    assert found["Energy"] == "0.006 kWh (codecarbon 3.3.2)"
    assert "CO2 equivalent" not in found
    (folder / "resources.json").unlink()
    assert time_and_memory(read_run(folder)) == [("Images a second, median", "8")]
    (folder / "log.jsonl").unlink()
    assert time_and_memory(read_run(folder)) == []


def test_the_command_can_be_copied(made_run):
    folder = made_run("caption")
    text = (folder / "environment.json").read_text()
    (folder / "environment.json").write_text(text.replace("my-folder.yaml", "my folder.yaml"))
    facts = dict(environment(read_run(folder)))
    assert facts["Command"] == "recipes/caption.py --config 'recipes/caption/my folder.yaml'"
    assert facts["Platform"] == "Linux-6.1-x86_64, 8 cores"
    (folder / "environment.json").unlink()
    assert list(environment(read_run(folder))) == []


def test_settings_that_a_resume_changed_are_told(made_run):
    folder = made_run("caption")
    assert differing_settings(read_run(folder).starts) == []
    change_settings(folder, "config-resumed-1.yaml", train__resume=True, data__workers=7)
    ((name, values),) = differing_settings(read_run(folder).starts)
    assert (name, values[1]) == ("data.workers", "7")


def test_settings_that_runs_have_alike_are_left_out():
    assert differing([{"a": "1", "b": "2"}, {"a": "1", "b": "3", "c": "4"}]) == [
        ("b", ["2", "3"]),
        ("c", ["\N{EN DASH}", "4"]),
    ]


def test_a_line_of_the_log_without_a_step_changes_nothing(made_run):
    folder = made_run("caption")
    append_line(folder / "log.jsonl", {"loss": 1.0})
    assert "trained for 40 steps" in said_of(read_run(folder))
