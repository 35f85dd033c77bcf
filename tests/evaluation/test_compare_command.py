"""`blip2ft compare`: runs, evaluations and files of predictions."""

import json
import re

import pytest
from test_intervals import answered, captions, ranked

from blip2ft.training.run import write_lines


@pytest.fixture
def two(tmp_path):
    """A file of captions, and a folder of an evaluation in which a third of them is better."""
    a = captions(30)
    b = [row | {"caption": row["references"][0]} if row["image_id"] < 10 else row for row in a]
    (tmp_path / "b").mkdir()
    write_lines(tmp_path / "a.jsonl", a)
    write_lines(tmp_path / "b" / "predictions.jsonl", b)
    return tmp_path / "a.jsonl", tmp_path / "b"


def test_the_better_one_is_named(blip2ft_main, two):
    status, out, err = blip2ft_main("compare", *two)
    assert (status, err) == (0, "")
    (line,) = [line for line in out.splitlines() if line.startswith("cider")]
    assert line.endswith("B is better")
    a, b, between = (float(word) for word in line.split()[1:4])
    assert between == pytest.approx(b - a, abs=2e-3)
    assert len(line.split()[3]) == len("+1.234")  # as many digits as the scores
    (line,) = [line for line in blip2ft_main("compare", *reversed(two))[1].splitlines()
               if line.startswith("cider")]  # fmt: skip
    assert line.endswith("A is better")
    out = blip2ft_main("compare", two[0], two[0])[1]
    assert "no difference that these 30 images show" in out
    assert re.search(r"cider +(\S+) +\1 +0 +0 to 0 +1\.000 ", out)


def test_the_most_different_samples_are_shown(blip2ft_main, two):
    out = blip2ft_main("compare", *two, "--show", 2)[1]
    assert out.count("  right      ") == 2
    assert out.count("\n  A ") == 2
    out = blip2ft_main("compare", two[0], two[0], "--show", 2)[1]
    assert out.endswith("show\n\nno sample scores differently\n")


def test_differences_as_json(blip2ft_main, two):
    found = json.loads(blip2ft_main("compare", *two, "--json")[1])
    assert found["cider"]["difference"] == found["cider"]["b"] - found["cider"]["a"]
    assert found["cider"]["p_value"] < 0.05


@pytest.mark.parametrize("task", ["caption", "vqa", "retrieval"])
def test_a_run_compares_by_its_result(blip2ft_main, made_run, task):
    run = made_run(task)
    before = run / "predictions" / "test-00000000.jsonl"
    status, out, err = blip2ft_main("compare", before, run, "--show", 1)
    assert (status, err) == (0, "")
    assert "run (test split, step 40)" in out
    assert "B is better" in out
    assert "  image      " in out


def test_what_both_have_is_compared(blip2ft_main, two, tmp_path):
    rows = captions(30)
    write_lines(tmp_path / "c.jsonl", rows[5:])
    status, out, _ = blip2ft_main("compare", two[0], tmp_path / "c.jsonl")
    assert status == 0
    assert "of the 25 images that both have; 5 are only in A and 0 only in B" in out


def test_what_does_not_compare_is_refused(blip2ft_main, two, tmp_path, made_run):
    write_lines(tmp_path / "vqa.jsonl", answered(4, 2))
    (tmp_path / "empty").mkdir()
    unscored = [{"image_id": 1, "caption": "a", "references": []}]
    write_lines(tmp_path / "unscored.jsonl", unscored)
    old = [{**row, "references": ["a"], "texts": ["a"]} for row in ranked(3)]
    write_lines(tmp_path / "old.jsonl", [
        {k: v for k, v in row.items() if k != "text_ranks"} for row in old
    ])  # fmt: skip
    begun = made_run("caption")
    (begun / "metrics.jsonl").write_text("")
    for other, wrong in {
        "vqa.jsonl": "vqa.jsonl of vqa, which don't compare",
        "empty": "is neither a run nor a folder of blip2ft evaluate",
        "gone.jsonl": "gone.jsonl: there is no such file of predictions",
        "run": "has no predictions of its result, since it hasn't ended",
    }.items():
        status, _, err = blip2ft_main("compare", two[0], tmp_path / other)
        assert (status, wrong in err) == (2, True), err
    unscored_pair = [tmp_path / "unscored.jsonl"] * 2
    assert "nothing to be scored against" in blip2ft_main("compare", *unscored_pair)[2]
    old_pair = [tmp_path / "old.jsonl"] * 2
    assert "have no ranks" in blip2ft_main("compare", *old_pair)[2]
