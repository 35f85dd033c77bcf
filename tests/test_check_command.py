"""`blip2ft check`: what it prints, its status, that it goes on after a kill, what it refuses."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch) -> Path:
    """The working directory, with four photos, of which the second has an empty caption."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((300, 240)).save(f"photos/{number}.jpg")
    write("photos/train.csv", "0.jpg,a cat", "1.jpg,", "2.jpg,a dog")
    write("photos/good.csv", "0.jpg,a cat", "2.jpg,a dog")
    return tmp_path


def write(name: str, *rows: str) -> None:
    Path(name).write_text("\n".join(["image,caption", *rows]) + "\n")


def test_good_data_has_status_0(blip2ft_main):
    status, out, err = blip2ft_main("check", "photos/good.csv", "--workers", 1)
    lines = out.splitlines()
    assert (status, err) == (0, "")
    assert lines[0].split() == ["data", "2", "images", "2", "captions", "(median", "2", "words)"]
    assert lines[-1].startswith("0 errors, 0 warnings, 0 notes; 2 images in ")


def test_an_error_has_status_1_and_is_told_with_its_line(blip2ft_main):
    status, out, _ = blip2ft_main("check", "photos/train.csv", "--workers", 1, "--out", "report")
    assert status == 1
    assert "error         1  empty caption\n                 photos/train.csv:3\n" in out
    assert "report/report.html shows them, report/findings.jsonl lists each" in out
    assert Path("report/report.html").read_text().startswith("<!doctype html>")
    (line,) = Path("report/findings.jsonl").read_text().splitlines()
    assert (json.loads(line)["file"], json.loads(line)["line"]) == ("photos/train.csv", 3)


def test_a_table_that_cannot_be_read_has_status_1_and_others_are_looked_at(blip2ft_main):
    Path("photos/test.csv").write_bytes("image,caption\n3.jpg,a cow\n".encode("utf-16"))
    words = ["--train", "photos/good.csv", "--test", "photos/test.csv", "--workers", 1]
    status, out, _ = blip2ft_main("check", *words)
    assert status == 1
    assert "photos/test.csv:1  (not UTF-8 text but UTF-16. Save" in out
    assert "2 images in" in out


def test_images_of_train_and_test_are_compared(blip2ft_main):
    shutil.copy("photos/0.jpg", "photos/copy.jpg")
    write("photos/test.csv", "copy.jpg,a cat", "3.jpg,a cow")
    words = ["--train", "photos/good.csv", "--test", "photos/test.csv", "--workers", 1]
    status, out, _ = blip2ft_main("check", *words)
    assert status == 1
    told = "photos/test.csv:2  photos/copy.jpg  (in train: photos/0.jpg (photos/good.csv:2))"
    assert told in out


def test_a_recipe_s_settings_name_the_data(blip2ft_main, opt_folder):
    settings = {
        "output": "run",
        "model": {"name": str(opt_folder), "image_size": 400},
        "data": {
            "train": {"source": "photos/good.csv"},
            "validation": {"source": "nowhere.csv"},
            "max_target_tokens": 2,
        },
    }
    Path("run.yaml").write_text(yaml.safe_dump(settings))
    override = ["--data.validation.source", "photos/good.csv", "--workers", 1]
    status, out, _ = blip2ft_main("check", "--config", "run.yaml", *override)
    assert status == 1
    assert out.startswith("train       ")
    assert "an image of training, in a split that scores it" in out
    # </s> in front, "a", " cat": what the tokenizer counts
    assert '"a cat"  (3 tokens; training reads 2 tokens)' in out


def test_a_stream_s_sources_are_what_is_trained_on(blip2ft_main):
    blip2ft_main("shard", "photos/good.csv", "--out", "shards", "--workers", 1)
    settings = {
        "output": "run",
        "model": {"name": "some/model"},
        "data": {
            "stream": {"sources": [{"source": "shards", "weight": 1.0}]},
            "validation": {"source": "photos/good.csv"},
        },
    }
    Path("run.yaml").write_text(yaml.safe_dump(settings))
    words = ["--config", "run.yaml", "--task", "caption", "--workers", 1]
    status, out, err = blip2ft_main("check", *words)
    assert status == 1, err
    assert "(in train: shards/shard-000000.tar: 000000000)" in out


def test_questions_are_checked_with_their_answers(blip2ft_main):
    rows = [
        {"image": f"photos/{n % 4}.jpg", "question": f"is it {n}?", "answer": "yes", "id": n}
        for n in range(25)
    ]
    Path("q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["q.jsonl", "--task", "vqa", "--id-column", "id", "--workers", 1]
    status, out, _ = blip2ft_main("check", *words)
    assert status == 0
    assert '"yes"  (25 of 25 questions, 100%)' in out
    assert "\n    1 answer  yes 100 %\n" in out
    Path("t.jsonl").write_text('{"image": "photos/0.jpg", "question": "is it?", "answers": []}\n')
    assert blip2ft_main("check", "t.jsonl", "--task", "vqa", "--workers", 1)[0] == 1
    words = ["t.jsonl", "--task", "vqa", "--no-answers", "--workers", 1]
    assert blip2ft_main("check", *words)[0] == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "nothing to check: name a file or folder, or one for each of --train"),
        (["photos/tarin.csv"], "tarin.csv: no such file or folder. Did you mean 'train.csv'?"),
        (["--tran", "x"], "unrecognized arguments: --tran; did you mean --train?"),
        (["x.csv", "--task", "captions"], "invalid choice: 'captions'"),
        (["photos/good.csv", "--format", "cvs"], "unknown format 'cvs'. Did you mean 'csv'?"),
        (["photos/good.csv", "--workers", "0"], "--workers: '0' isn't a whole number above 0"),
        (["photos/good.csv", "--caption-column", "titel"], "no column 'titel' for the caption"),
        (["photos/good.csv", "--question-column", "q"], "--question-column belongs to --task vqa"),
        (["x.csv", "--task", "vqa", "--caption-column", "q"], "belongs to a task of captions"),
        (["photos/good.csv", "--no-answers"], "--no-answers belongs to --task vqa; leave it out"),
        (["photos/good.csv", "--data.train.source", "x"], "is a setting of a recipe; it needs"),
        (["--config", "x.yaml", "photos/good.csv"], "--config names the data and how they are"),
        (["--config", "x.yaml", "--no-answers"], "--config names the data and how they are"),
        (["--config", "x.yaml"], "--config x.yaml: there is no such file"),
        (["photos/good.csv", "--model", "a/b/c"], "there is no folder a/b/c"),
        (["photos/good.csv", "--out", "photos"], "photos is in use and holds no report"),
        (
            ["x", "y", "--task", "vqa", "--annotations", "z"],
            "--annotations belong to one file of questions",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_bad_use_is_one_line_and_status_2(blip2ft_main, words, told):
    status, out, err = blip2ft_main("check", *words)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert told in err


def test_help_tells_the_exit_status(blip2ft_main):
    status, out, _ = blip2ft_main("check", "--help")
    assert status == 0
    assert "Exit status: 0 without errors" in out


def many(count: int) -> None:
    """many.csv of so many images, each of which takes a while."""
    pixels = np.random.default_rng(0).integers(0, 256, (700, 700, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("photos/m0.png", compress_level=1)
    for number in range(1, count):
        os.link("photos/m0.png", f"photos/m{number}.png")
    write("many.csv", *(f"photos/m{number}.png,thing {number}" for number in range(count)))


@pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGKILL, marks=pytest.mark.slow), signal.SIGINT],
    ids=["kill", "ctrl-c"],
)
def test_a_run_that_is_stopped_is_gone_on_with(blip2ft_main, number):
    many(200)
    kept = Path("report/.looks-1.jsonl")
    program = "from blip2ft.cli import main; main()"
    words = ["check", "many.csv", "--out", "report", "--workers", "1"]
    run = subprocess.Popen(
        [sys.executable, "-c", program, *words],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    for _ in range(1200):
        if kept.is_file() and kept.read_text().count("\n") >= 32:
            break
        time.sleep(0.05)
    run.send_signal(number)
    _, err = run.communicate()
    seen = kept.read_text().count("\n")
    assert 32 <= seen < 200
    assert not Path("report/report.html").exists()
    if number == signal.SIGINT:
        assert run.returncode == 130
        assert f"stopped; what was seen of {seen} of 200 images is kept in report" in err
    status, out, err = blip2ft_main(*words)
    assert f"{seen} of 200 images were looked at before and haven't changed since" in err
    assert "200 images in" in out
    assert Path("report/report.html").is_file()
    _, fresh, _ = blip2ft_main("check", "many.csv", "--workers", 1)
    assert out.partition("; 200 images")[0] == fresh.partition("; 200 images")[0]
    assert status == 0
