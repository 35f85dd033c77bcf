"""A run that is killed over and over ends as one that isn't; what differs is noticed."""

import json
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import chaos
import psutil
import pytest

SCRIPT = Path(chaos.__file__)


def run_chaos(*words: object) -> subprocess.CompletedProcess:
    command = [sys.executable, SCRIPT, *words]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True)


def live_kills(said: str) -> int:
    (line,) = (line for line in said.splitlines() if line.startswith("kills of a live run"))
    return int(line.split()[-1])


@pytest.mark.slow
def test_two_kills_change_nothing(opt_folder, tmp_path):
    words = ["--kills", 2, "--model.name", opt_folder, "--model.image_size", 28]
    found = run_chaos("--out", tmp_path / "chaos", *words)
    assert found.returncode == 0, found.stdout + found.stderr[-3000:]
    assert "2 kills: 12 lines of the log, scores, answers and adapter are the same" in found.stdout
    assert live_kills(found.stdout) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [["--kills", 20, "--damage"], ["--kills", 3, "--processes", 2]],
    ids=["one-process", "two-processes"],
)
def test_many_kills_change_nothing(tmp_path, words):
    found = run_chaos("--out", tmp_path / "chaos", *words)
    assert found.returncode == 0, found.stdout + found.stderr[-3000:]
    assert f"{words[1]} kills: " in found.stdout
    # those at the very end may come after it
    assert words[1] * 9 // 10 <= live_kills(found.stdout) <= words[1]


def test_a_kill_says_whether_the_run_was_alive():
    for script, expected in (("import time; time.sleep(60)", True), ("", False)):
        run = psutil.Popen([sys.executable, "-c", script])
        while not expected and run.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        assert chaos.kill(run) is expected


@pytest.mark.parametrize(
    ("script", "status", "told"),
    [
        ("raise KeyError('a bug')", 70, "Traceback .*KeyError: 'a bug'"),
        ("import sys; sys.exit(2)", 2, "^$"),
        ("print('done'); import sys; sys.exit()", 0, "^done$"),
    ],
    ids=["bug", "error", "well"],
)
def test_what_a_run_says_is_kept_with_its_traceback(tmp_path, script, status, told):
    (tmp_path / "recipe.py").write_text(script)
    words = ([str(tmp_path / "recipe.py")], 1, tmp_path / "said.txt")
    # a program of its own, whose output isn't pytest's
    program = f"from pathlib import *; import chaos, sys; sys.exit(chaos.begin{words}.wait())"
    found = subprocess.run([sys.executable, "-c", program], cwd=SCRIPT.parent)
    assert found.returncode == status
    assert re.search(told, (tmp_path / "said.txt").read_text().rstrip("\n"), re.DOTALL)


def test_a_folder_in_use_is_refused(tmp_path):
    found = run_chaos("--out", tmp_path)
    assert found.returncode == 2
    assert "exists, and nothing is overwritten" in found.stderr


def make_run(folder: Path) -> Path:
    for name in ("adapter", "predictions"):
        (folder / name).mkdir(parents=True)
        (folder / name / "file").write_bytes(b"some")
    lines = [{"step": n, "loss": 1 / n, "waiting": 0.1, "images_per_second": 3} for n in (1, 2, 3)]
    for name in ("log.jsonl", "metrics.jsonl"):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_runs_are_the_same_whatever_their_speed(tmp_path):
    whole, killed = make_run(tmp_path / "whole"), make_run(tmp_path / "killed")
    log = (killed / "log.jsonl").read_text()
    (killed / "log.jsonl").write_text(log.replace('"images_per_second": 3', '"x": 4'))
    assert len(chaos.compare(whole, killed)) == 3
    (killed / "log.jsonl").write_text(log.replace('_second": 3', '_second": 4'))
    assert chaos.compare(whole, killed) == []


@pytest.mark.parametrize(
    ("name", "was", "becomes", "told"),
    [
        ("log.jsonl", "0.5", "0.5000000000000001", "log.jsonl: {"),
        ("metrics.jsonl", "0.5", "0.6", "metrics.jsonl: {"),
        ("log.jsonl", '{"step": 3', "", "log.jsonl: "),
        ("adapter/file", "some", "same", "adapter/file: other bytes"),
        ("predictions/file", "some", "same", "predictions/file: other bytes"),
    ],
    ids=["log", "metrics", "line", "adapter", "predictions"],
)
def test_what_differs_is_told(tmp_path, name, was, becomes, told):
    whole, killed = make_run(tmp_path / "whole"), make_run(tmp_path / "killed")
    text = (killed / name).read_text()
    if becomes:
        (killed / name).write_text(text.replace(was, becomes))
    else:
        (killed / name).write_text(text[: text.index(was)])
    (found,) = chaos.compare(whole, killed)
    assert found.startswith(told)


def test_a_file_of_one_run_alone_is_told(tmp_path):
    whole, killed = make_run(tmp_path / "whole"), make_run(tmp_path / "killed")
    (killed / "adapter" / "more").write_bytes(b"")
    assert chaos.compare(whole, killed) == ["adapter/more: only in one"]


def test_only_a_checkpoint_with_one_before_it_is_damaged(tmp_path):
    rng, whole = random.Random(0), b"0123456789"
    for step in (2, 4):
        assert chaos.damage(tmp_path, rng) == ""
        folder = tmp_path / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        for name in ("rest.pt", "state.json", "trained.safetensors"):
            (folder / name).write_bytes(whole)
    first, second = sorted((tmp_path / "checkpoints").iterdir())
    seen = set()
    for _ in range(60):
        for path in first.iterdir():
            (second / path.name).write_bytes(whole)
        seen.add(chaos.damage(tmp_path, rng))
        left = [path.read_bytes() for path in second.iterdir()]
        assert left.count(whole) == 2
    hows, names = ("a bit flipped", "cut", "removed"), [path.name for path in first.iterdir()]
    assert seen == {f"step-00000004/{name} {how}" for name in names for how in hows}
    assert all(path.read_bytes() == whole for path in first.iterdir())
    (second / "rest.pt").unlink(missing_ok=True)
    assert chaos.damage(tmp_path, rng) == ""
