"""`blip2ft cache`: what it builds a run takes, what it lists is there, what it removes was its."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from accelerate.state import AcceleratorState

from blip2ft.cli import main

FROZEN = {"vision": "frozen", "qformer": "full", "projection": "full", "language": "frozen"}
DAY = 24 * 3600
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def fresh_accelerate():
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture
def config(opt_folder, photo_folder, tmp_path) -> Path:
    path = tmp_path / "run.yaml"
    source = {"source": str(photo_folder / "captions.csv")}
    data = {"train": source, "validation": source, "crop_scale": None, "flip": False, "workers": 0}
    settings = {
        "output": str(tmp_path / "run"),
        "model": {"name": str(opt_folder)},
        "parts": FROZEN,
        "data": data,
        "cache": {"folder": str(tmp_path / "features"), "dtype": "fp32"},
    }
    path.write_text(yaml.safe_dump(settings))
    return path


def cache(capsys, *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["cache", *map(str, words)])
    out, err = capsys.readouterr()
    return stop.value.code or 0, out, err


def folders(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "features").iterdir())


def test_build_computes_once_and_says_what(config, computed, capsys, tmp_path):
    code, out, _ = cache(capsys, "build", "--config", config)
    assert code == 0
    assert computed == [8, 8]
    assert "features of 16 images to compute, 0.00 GB of" in out
    assert f"features of 16 images: level vision, fp32, in {tmp_path / 'features'}" in out
    assert cache(capsys, "build", "--config", config)[1].startswith("features of 16 images: all")
    assert computed == [8, 8]
    assert len(folders(tmp_path)) == 2


@pytest.mark.slow
def test_two_processes_share_a_build(config, computed, capsys, tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += ["--nproc_per_node", "2", "-m", "blip2ft"]
    found = subprocess.run(
        [*launcher, "cache", "build", "--config", str(config)],
        env=os.environ | {"ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    assert found.stdout.count("features of 16 images to compute") == 1
    for folder in folders(tmp_path):
        assert [path.stat().st_size for path in folder.glob("*.ids")] == [4 * 32, 4 * 32]
    assert cache(capsys, "build", "--config", config)[1].startswith("features of 16 images: all")
    assert computed == []


def test_overrides_are_the_recipes(config, computed, capsys, tmp_path):
    words = ["--cache.dtype", "int8", "--parts.qformer", "frozen", "--parts.projection", "frozen"]
    code, out, err = cache(capsys, "build", "--config", config, *words, "--parts.language", "lora")
    assert code == 0, err
    assert "features of 16 images: level queries, int8" in out


def test_list_tells_what_is_there(config, capsys, opt_folder, tmp_path):
    cache(capsys, "build", "--config", config)
    newest = folders(tmp_path)[1]
    os.utime(folders(tmp_path)[0] / "used", (0, DAY * 365))
    code, out, _ = cache(capsys, "list", tmp_path / "features")
    head, first, second, total = out.splitlines()
    assert code == 0
    assert head.split() == ["cache", "images", "GB", "last", "used", "what"]
    assert first.split()[:3] == [newest.name[:8], "8", "0.00"]
    assert f"vision of {opt_folder}, 5 x 32 fp32, computed in fp32; 28 px, JPEGs" in first
    assert "1971-01-0" in second
    assert total == f"0.00 GB in {tmp_path / 'features'}"


def test_prune_by_age_removes_caches_and_nothing_else(config, capsys, tmp_path):
    cache(capsys, "build", "--config", config)
    old, new = folders(tmp_path)
    mine = tmp_path / "features" / "mine"
    mine.mkdir()
    (mine / "cache.json").write_text("{}")
    foreign = tmp_path / "features" / ("0" * 32)
    foreign.mkdir()
    (foreign / "photo.rows").write_text("no cache")
    os.utime(old / "used", (0, time.time() - 8 * DAY))
    prune = ["prune", tmp_path / "features", "--older-than", 7]
    code, out, _ = cache(capsys, *prune, "--dry-run")
    assert code == 0
    assert out.splitlines()[0].endswith(": would be removed")
    assert out.splitlines()[1] == "1 of 2 caches, 0.00 GB"
    assert old.is_dir()
    code, out, _ = cache(capsys, *prune)
    assert out.splitlines()[0].startswith(old.name[:8])
    assert out.splitlines()[0].endswith(": removed")
    assert folders(tmp_path) == sorted([new, mine, foreign])
    assert (foreign / "photo.rows").is_file()
    assert (mine / "cache.json").is_file()


def test_prune_leaves_what_isnt_its_own_inside_a_cache(config, capsys, tmp_path):
    cache(capsys, "build", "--config", config)
    first = folders(tmp_path)[0]
    (first / "notes.txt").write_text("mine")
    _, out, _ = cache(capsys, "prune", tmp_path / "features", "--older-than", 0)
    assert "removed, but for what isn't its own: notes.txt" in out
    assert [path.name for path in first.iterdir()] == ["notes.txt"]
    assert folders(tmp_path) == [first]


def test_prune_keeps_what_a_config_uses(config, computed, capsys, tmp_path):
    cache(capsys, "build", "--config", config)
    used = folders(tmp_path)
    cache(capsys, "build", "--config", config, "--cache.dtype", "bf16")
    assert len(folders(tmp_path)) == 4
    code, out, err = cache(capsys, "prune", tmp_path / "features", "--unused-by", config)
    assert code == 0, err
    assert out.splitlines()[-1].startswith("2 of 4 caches")
    assert folders(tmp_path) == used
    assert computed == [8, 8, 8, 8]


def test_prune_keeps_auto_in_the_precision_of_any_machine(config, capsys, tmp_path):
    cache(capsys, "build", "--config", config, "--model.precision", "bf16")
    used = folders(tmp_path)
    prune = ["prune", tmp_path / "features", "--unused-by"]
    assert cache(capsys, *prune, config)[1].splitlines()[-1].startswith("0 of 2 caches")
    assert folders(tmp_path) == used
    fixed = tmp_path / "fixed.yaml"
    for precision, removed in (("bf16", 0), ("fp16", 2)):
        settings = yaml.safe_load(config.read_text())
        settings["model"]["precision"] = precision
        fixed.write_text(yaml.safe_dump(settings))
        code, out, err = cache(capsys, *prune, fixed)
        assert code == 0, err
        assert out.splitlines()[-1].startswith(f"{removed} of 2 caches")


def test_prune_leaves_what_is_being_computed(config, capsys, tmp_path):
    cache(capsys, "build", "--config", config)
    held, other = folders(tmp_path)
    program = "import sys, filelock\nwith filelock.FileLock(sys.argv[1]):\n"
    program += "    print('held', flush=True)\n    sys.stdin.read()"
    words = [sys.executable, "-c", program, str(held / ".lock")]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        _, out, _ = cache(capsys, "prune", tmp_path / "features", "--older-than", 0)
        process.stdin.close()
    assert "kept: a run is computing it" in out
    assert folders(tmp_path) == [held]
    assert (held / "cache.json").is_file()
    assert not other.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cache.folder", "null"], "cache.folder is null, so this run keeps no features"),
        (["--data.flip", "true"], "data.flip draws anew each epoch: set it to false"),
        (["--parts.vision", "lora"], "parts.vision is lora, and what a part that trains"),
        (["--data.train", "null"], "data.train is null: there is nothing to learn from"),
        (["--cache.dtype", "fp8"], "cache.dtype"),
    ],
    ids=["off", "flip", "lora", "nothing", "dtype"],
)
def test_what_cant_be_kept_is_told_in_clear_words(config, capsys, tmp_path, words, message):
    code, _, err = cache(capsys, "build", "--config", config, *words)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "features").exists()


def test_wrong_words_are_answered(capsys, tmp_path):
    assert cache(capsys)[0] == 2
    code, _, err = cache(capsys, "list", tmp_path / "none")
    assert code == 2
    assert f"there is no folder {tmp_path / 'none'}; give the cache.folder of a run" in err
    code, _, err = cache(capsys, "prune", tmp_path)
    assert code == 2
    assert "say what to remove: --older-than DAYS, --unused-by F.yaml, or both" in err
    code, _, err = cache(capsys, "prune", tmp_path, "--older-than", "-1")
    assert code == 2
    assert "isn't a number of days" in err
