"""`blip2ft report`: where pages are written, and what is refused."""

import os
import re
import shutil

import pytest
from made_run import make_run

from blip2ft.report.report import FILE, check_own, told_report, write_comparison, write_report


def test_a_page_is_written_into_the_run_and_replaced(made_run, blip2ft_main):
    run = made_run("caption")
    for _ in range(2):
        status, out, _ = blip2ft_main("report", run)
        assert (status, out.strip()) == (0, str(run / FILE))
    assert "Captioning" in (run / FILE).read_text(encoding="utf-8")


def test_a_page_is_the_same_each_time(made_run):
    run = made_run("vqa")
    assert write_report(run).read_bytes() == write_report(run).read_bytes()


def test_several_runs_are_compared(tmp_path, blip2ft_main):
    runs = [make_run(tmp_path / name / "run", "caption") for name in ("one", "two")]
    out = tmp_path / "both.html"
    status, said, _ = blip2ft_main("report", *runs, "--out", out)
    assert (status, said.strip()) == (0, str(out))
    assert "compared" in out.read_text(encoding="utf-8")


def test_a_comparison_is_written_here(tmp_path, blip2ft_main, monkeypatch):
    runs = [make_run(tmp_path / name, "retrieval") for name in ("one", "two")]
    monkeypatch.chdir(tmp_path)
    status, said, _ = blip2ft_main("report", *runs)
    assert (status, said.strip()) == (0, "comparison.html")
    assert (tmp_path / "comparison.html").is_file()


def test_a_file_of_someone_elses_is_kept(made_run, blip2ft_main, tmp_path):
    run, mine = made_run("caption"), tmp_path / "mine.html"
    mine.write_text("<p>mine</p>")
    status, _, err = blip2ft_main("report", run, "--out", mine)
    assert status == 2
    assert "is no page of blip2ft report and isn't overwritten; choose another" in err
    assert mine.read_text() == "<p>mine</p>"


def test_a_folder_is_no_file_to_write_to(made_run, tmp_path):
    with pytest.raises(ValueError, match=r"is a folder; name a file, such as --out .*report\.html"):
        write_report(made_run("caption"), tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="not allowed to write"):
        check_own(tmp_path / "report.html")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere holds no run: there is no config.yaml"),
        ([], "the following arguments are required: RUN"),
        (["nowhere", "--atention", "3"], "did you mean --attention?"),
        (["nowhere", "--attention", "0"], "'0' isn't a whole number above 0"),
        (["a", "b", "--attention", "3"], "--attention is of one run's page; name one run"),
        (["a", "b", "a"], "a comes twice: name each run once"),
        ([f"run{i}" for i in range(9)], "9 runs can't be told apart: name up to 8"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(words, message, blip2ft_main):
    status, out, err = blip2ft_main("report", *words)
    assert (status, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


def test_runs_of_several_tasks_are_refused(tmp_path):
    runs = [make_run(tmp_path / task, task) for task in ("caption", "vqa")]
    message = r"runs of caption and vqa can't be compared: .*caption \(caption\), .*vqa \(vqa\)"
    with pytest.raises(ValueError, match=message):
        write_comparison(runs, tmp_path / "out.html")


def test_a_run_that_ends_tells_where_its_page_is(made_run):
    run = made_run("caption")
    assert told_report(run) == f"its scores, curves and answers on a page: {run / FILE}"
    assert (run / FILE).is_file()


def test_a_run_ends_well_without_its_page(made_run, monkeypatch):
    run = made_run("caption")
    (run / "metrics.jsonl").write_text("{\n")
    told = told_report(run)
    assert re.fullmatch(
        r"warning: no report\.html was written \(.*metrics\.jsonl is damaged: .*\); to try again: "
        rf"blip2ft report {run}",
        told,
    )
    assert not (run / FILE).exists()

    def fail(*_):
        raise RuntimeError

    monkeypatch.setattr("blip2ft.report.report.read_run", fail)
    assert "was written (RuntimeError); to try again" in told_report(run)


def test_a_page_of_ones_own_in_the_run_is_kept_as_it_ends(made_run):
    run = made_run("caption")
    (run / FILE).write_text("mine")
    assert "is no page of blip2ft report" in told_report(run)
    assert (run / FILE).read_text() == "mine"


def test_the_page_of_a_run_that_moved_is_written_beside_it(made_run, tmp_path):
    moved = tmp_path / "moved"
    shutil.move(made_run("caption"), moved)
    shutil.rmtree(tmp_path / "photos")
    text = write_report(moved).read_text(encoding="utf-8")
    assert "The images of 12 of the 12 answers below aren" in text
    assert "make the page there" in text
