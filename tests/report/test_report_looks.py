"""Where a run's model looks, on its page."""

import base64
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from html_page import HtmlPage
from made_run import make_run
from PIL import Image
from test_report_reading import change_settings, unfinished

from blip2ft.attention.look import look, most_at
from blip2ft.attention.pictures import overlay
from blip2ft.data.images import open_image
from blip2ft.finetuned import load_finetuned
from blip2ft.pages import data_uri
from blip2ft.report.gallery import groups_of, samples_of
from blip2ft.report.looks import looks_of
from blip2ft.report.pictures import pictures_of
from blip2ft.report.reading import read_run
from blip2ft.training.run import read_lines, write_lines


@pytest.fixture
def trained(made_run, run_folder) -> Path:
    """A made run of captions whose trained weights are those of `run_folder`, a model that runs."""
    run = made_run("caption")
    shutil.rmtree(run / "adapter")
    shutil.copytree(run_folder / "adapter", run / "adapter")
    return run


def looks(folder: Path, count: int = 3) -> list:
    run = read_run(folder)
    samples = samples_of(
        run.task, [rows for rows in (run.answers_before, run.answers_after) if rows]
    )
    groups = groups_of(samples)
    shown = [sample for group in groups for sample in group.samples]
    return looks_of(run, groups, pictures_of(run, shown)[0], count)


def test_a_look_is_that_of_attend(trained):
    seen = looks(trained)
    # of each group one before a second of any
    assert [one.sample.image_id for one in seen][1:] == ["02.png", "05.png"]
    model, processor, description = load_finetuned(trained)
    for one in seen:
        image = open_image(one.sample.image)
        expected = look(model, processor, image, one.text, prompt=description["prompt"])
        assert one.text == one.sample.answers[-1].text
        assert one.note == ""
        _, where, words = one.views
        assert where.uri == data_uri(overlay(expected.image, expected.map))
        assert where.alt == f"looks most at {most_at(expected.map)}"
        assert words.uri == data_uri(overlay(expected.image, expected.text_map))
        assert words.title.startswith("speaks for the words (mean probability of its tokens 0.")


def test_a_large_image_has_small_maps(trained):
    path = Path(read_run(trained).answers_after[2]["image"])
    Image.fromarray(np.zeros((900, 600, 3), np.uint8)).save(path)
    wide = next(one for one in looks(trained) if one.sample.image_id == "02.png")
    for view in wide.views:
        data = base64.b64decode(view.uri.partition(",")[2])
        assert Image.open(io.BytesIO(data)).size == (213, 320)


def test_an_answer_too_long_to_be_weighed_is_looked_at_without(trained):
    path = trained / "predictions" / "test-00000040.jsonl"
    rows = read_lines(path)
    rows[2]["caption"], rows[5]["caption"] = "red " * 100, " "
    write_lines(path, rows)
    _, long, nothing = looks(trained)
    assert (long.text, len(long.views)) == ("", 2)
    assert long.note == "the text has more than 63 tokens; shorten it"
    assert (nothing.text, nothing.note, len(nothing.views)) == ("", "", 2)


def test_a_model_that_was_only_evaluated_is_looked_at(trained, opt_folder):
    model = {"name": str(opt_folder), "revision": None, "image_size": None}
    settings = read_run(trained).settings
    change_settings(trained, evaluate_only=True, model={**settings["model"], **model})
    (one,) = looks(trained, 1)
    assert len(one.views) == 3


def test_a_retriever_is_looked_at_with_the_text_that_it_found(tmp_path, retriever_folder):
    run = make_run(tmp_path / "run", "retrieval")
    model = {"name": str(retriever_folder), "revision": None, "image_size": None}
    settings = read_run(run).settings
    change_settings(run, evaluate_only=True, model={**settings["model"], **model})
    (one,) = looks(run, 1)
    assert one.text == one.sample.answers[0].text
    assert one.views[2].title.startswith("speaks for the words (probability of a match 0.")


@pytest.mark.parametrize("read", [True, False])
def test_a_question_points_where_the_q_former_reads_it(
    tmp_path, opt_folder, retriever_folder, read
):
    run = make_run(tmp_path / "run", "vqa")
    model = {"name": str(opt_folder), "revision": None, "image_size": None}
    model = {**read_run(run).settings["model"], **model}
    stage1 = str(retriever_folder) if read else None
    change_settings(run, evaluate_only=True, model=model, question_in_qformer=read, stage1=stage1)
    (one,) = looks(run, 1)
    assert one.text == (one.sample.question if read else "")
    assert (one.note, len(one.views)) == ("", 2)


def test_without_a_picture_no_model_is_loaded(trained, monkeypatch):
    def loaded(*_):
        raise AssertionError("loaded")

    monkeypatch.setattr("blip2ft.report.looks._load", loaded)
    shutil.rmtree(trained.parent / "photos")
    assert looks(trained) == []


def test_a_run_that_hasnt_ended_has_nothing_to_look_with(trained, blip2ft_main):
    unfinished(trained)
    status, _, err = blip2ft_main("report", trained, "--attention", 2)
    assert status == 2
    assert "hasn't ended, so it has no adapter yet; go on with --resume" in err
    assert not (trained / "report.html").exists()


def test_looks_are_on_the_page(trained, blip2ft_main):
    status, _, err = blip2ft_main("report", trained, "--attention", 2)
    assert (status, err) == (0, "")
    page = HtmlPage((trained / "report.html").read_text(encoding="utf-8"))
    assert "Where the model looks" in page.words
    assert "A diagnostic, and no explanation" in page.text
    alts = [image["alt"] for image in page.all("img")]
    assert len([alt for alt in alts if alt.startswith("looks most at")]) == 2
