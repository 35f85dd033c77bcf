"""What was planted in a folder is found, each in its place, and nothing else is."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import check_folder
import pytest
from check_folder import IMAGE_SIZE, compare, read_findings
from PIL import Image
from planted_faults import make_folder

from blip2ft.audit.findings import KINDS

WORKERS = 2


@pytest.fixture
def words(tmp_path: Path, monkeypatch) -> list[str]:
    """A check of 300 images in photos/, from the folder above."""
    monkeypatch.chdir(tmp_path)
    splits = [f"--{name}=photos/{name}.csv" for name in ("train", "validation", "test")]
    return [*splits, f"--image-size={IMAGE_SIZE}", f"--workers={WORKERS}", "--out=report"]


def test_all_that_was_planted_is_found_and_nothing_else(blip2ft_main, words):
    planted = make_folder(Path("photos"), 300, seed=1)
    status, out, err = blip2ft_main("check", *words)
    assert status == 1, err
    found = read_findings(Path("report"))
    assert compare(planted, found) == ([], [])
    counts = Counter(line["severity"] for line in found)
    assert f"{counts['error']} errors, {counts['warning']} warnings, {counts['note']} notes" in out
    untold = KINDS.keys() - {fault.kind for fault in planted}
    # of whole sources and splits, or of answers: planted by other tests
    whole = {"source", "no-text", "small-split", "lopsided", "one-answer", "yes-no", "unseen"}
    assert untold == whole
    Path("photos/train/000050.jpg").touch()
    status, again, err = blip2ft_main("check", *words)
    assert "images were looked at before and haven't changed since" in err
    assert read_findings(Path("report")) == found
    assert again.rpartition(" in ")[0] == out.rpartition(" in ")[0]


@pytest.mark.slow
def test_the_benchmark_ends_with_its_figures(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, check_folder.__file__, "--images", "200"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["lost"], result["invented"]) == (0, 0)
    assert result["peak_mib"] > 50


def test_each_finding_says_where_and_what_to_do(blip2ft_main, words):
    make_folder(Path("photos"), 200, seed=2)
    Image.new("RGB", (8, 8)).save("photos/other.png")
    blip2ft_main("check", *words)
    lines = [json.loads(x) for x in Path("report/findings.jsonl").read_text().splitlines()]
    (bomb,) = (line for line in lines if line["kind"] == "huge")
    assert bomb == {
        "severity": "error",
        "kind": "huge",
        "split": "train",
        "what": "too many pixels to be safe",
        "detail": "50,000 x 50,000 pixels",
        "file": "photos/train.csv",
        "line": 13,
        "image": "photos/odd-0/bomb.png",
        "remedy": KINDS["huge"].remedy,
    }
