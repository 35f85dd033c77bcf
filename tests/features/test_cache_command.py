"""`blip2ft cache`: what it builds a run takes, what it lists is there, what it removes was its."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from accelerate.state import AcceleratorState

from blip2ft.cli import main
from blip2ft.features import compute
from blip2ft.features.serve import compute_features
from blip2ft.features.size import told_size

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


def size(*caches: Path) -> str:
    return told_size(sum(file.stat().st_size for cache in caches for file in cache.iterdir()))


def test_build_computes_once_and_says_what(config, computed, capsys, tmp_path):
    code, out, _ = cache(capsys, "build", "--config", config)
    assert code == 0
    assert computed == [8, 8]
    assert "features of 16 images to compute, 10.8 kB of" in out
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
    columns = "cache images size last used level image kept computed JPEGs model"
    assert head.split() == columns.split()
    assert first.split()[:2] == [newest.name[:8], "8"]
    assert f"  {size(newest)}  " in first
    assert "1971-01-0" in second
    assert {first.split()[-2], second.split()[-2]} == {"whole", "reduced"}
    for line in (first, second):
        assert line.split()[6:11] == ["vision", "28", "px", "fp32", "fp32"]
        assert line.endswith(f"  .../{opt_folder.parent.name}/{opt_folder.name}")
        assert len(line) <= 120
    assert total == f"{size(*folders(tmp_path))} in {tmp_path / 'features'}"


def test_list_tells_a_quantised_image_encoder(config, opt_folder, capsys, tmp_path):
    pytest.importorskip("bitsandbytes")
    words = ["build", "--config", config, "--quantize", "{vision: nf4}"]
    code, _, err = cache(capsys, *words)
    assert code == 0, err
    _, out, _ = cache(capsys, "list", tmp_path / "features")
    for line in out.splitlines()[1:3]:
        assert line.endswith(f"/{opt_folder.name} in nf4")


def test_a_folder_without_caches_is_told(capsys, tmp_path):
    for action in (["list"], ["prune", "--older-than", 0]):
        code, out, _ = cache(capsys, *action, tmp_path)
        assert (code, out) == (0, f"{tmp_path} holds no kept features\n")


def test_one_cache_is_told_from_the_folder_of_caches(config, capsys, tmp_path):
    cache(capsys, "build", "--config", config)
    code, _, err = cache(capsys, "list", folders(tmp_path)[0])
    assert code == 2
    assert "is one cache; give the folder that it lies in" in err


@pytest.mark.parametrize(
    ("text", "told"),
    [("{", "its cache.json is damaged"), ("{}", "its cache.json is damaged"), (None, "denied")],
    ids=["cut", "emptied", "unreadable"],
)
def test_a_damaged_cache_is_named_and_hides_no_other(
    config, capsys, tmp_path, monkeypatch, text, told
):
    cache(capsys, "build", "--config", config)
    bad, good = folders(tmp_path)
    if text is not None:
        (bad / "cache.json").write_text(text)
    else:
        deny(monkeypatch, "read_text", bad / "cache.json")
    code, out, _ = cache(capsys, "list", tmp_path / "features")
    assert code == 1
    lines = {line[:8]: line for line in out.splitlines()}
    assert told in lines[bad.name[:8]].lower()
    assert "8" in lines[bad.name[:8]].split()
    assert "vision" in lines[good.name[:8]]
    assert cache(capsys, "prune", tmp_path / "features", "--older-than", 1)[0] == 0
    assert folders(tmp_path) == [bad, good]
    cache(capsys, "prune", tmp_path / "features", "--unused-by", config)
    assert folders(tmp_path) == [bad, good]
    os.utime(bad / "used", (0, 0))
    cache(capsys, "prune", tmp_path / "features", "--older-than", 1)
    assert folders(tmp_path) == [good]


def test_another_programs_cache_json_is_no_cache(capsys, tmp_path):
    other = tmp_path / ("0" * 32)
    other.mkdir()
    (other / "cache.json").write_text("{}")
    assert "holds no kept features" in cache(capsys, "list", tmp_path)[1]
    cache(capsys, "prune", tmp_path, "--older-than", 0)
    assert (other / "cache.json").is_file()


def deny(monkeypatch, method: str, denied: Path) -> None:
    """Let a method of paths fail on one of them, as without permission; root has them all."""
    allowed = getattr(Path, method)

    def refuse(path, *arguments, **options):
        if path == denied:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return allowed(path, *arguments, **options)

    monkeypatch.setattr(Path, method, refuse)


def test_an_unreadable_cache_is_told_in_words(config, capsys, tmp_path, monkeypatch):
    cache(capsys, "build", "--config", config)
    denied, other = folders(tmp_path)
    with monkeypatch.context() as patch:
        deny(patch, "iterdir", denied)
        code, out, err = cache(capsys, "list", tmp_path / "features")
    assert (code, err) == (1, "")
    (line,) = (line for line in out.splitlines() if line.startswith(denied.name[:8]))
    assert line.split()[1:3] == ["?", "?"]
    assert line.endswith("  can't be read (Permission denied)")
    assert other.name[:8] in out


def test_an_unreadable_folder_is_told_in_words(capsys, tmp_path, monkeypatch):
    deny(monkeypatch, "iterdir", tmp_path)
    code, _, err = cache(capsys, "list", tmp_path)
    assert code == 2
    assert f"{tmp_path} can't be read (Permission denied); check whose it is" in err


def test_what_cant_be_removed_is_told_in_words(config, capsys, tmp_path, monkeypatch):
    cache(capsys, "build", "--config", config)
    denied = folders(tmp_path)[0]
    deny(monkeypatch, "unlink", denied / "used")
    code, out, _ = cache(capsys, "prune", tmp_path / "features", "--older-than", 0)
    assert code == 1
    (line,) = (line for line in out.splitlines() if line.startswith(denied.name[:8]))
    assert line.endswith(": kept: it can't be removed (Permission denied)")
    assert out.splitlines()[-1].startswith("1 of 2 caches, ")
    assert folders(tmp_path) == [denied]


def test_both_options_remove_what_both_apply_to(config, capsys, tmp_path):
    cache(capsys, "build", "--config", config)
    used = folders(tmp_path)
    cache(capsys, "build", "--config", config, "--cache.dtype", "bf16")
    old, new = [folder for folder in folders(tmp_path) if folder not in used]
    for folder in (*used, old):
        os.utime(folder / "used", (0, 0))
    both = ["--older-than", 1, "--unused-by", config]
    assert cache(capsys, "prune", tmp_path / "features", *both)[0] == 0
    assert folders(tmp_path) == sorted([*used, new])


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
    assert out.splitlines()[1] == f"1 of 2 caches, {size(old)}"
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
    assert out.splitlines()[-1].startswith("1 of 2 caches, ")
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
        (["--cache.folder", ""], "cache.folder is '': allowed is a folder's name, such as"),
        (["--cache.folder", "~no/x"], "'~no/x', and that home folder isn't known; write it in"),
    ],
    ids=["off", "flip", "lora", "nothing", "dtype", "empty", "nobody"],
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
    code, _, err = cache(capsys, "list", "")
    assert code == 2
    assert "cache.folder is '': allowed is a folder's name" in err


def test_home_is_what_a_tilde_says(config, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    _, out, _ = cache(capsys, "build", "--config", config, "--cache.folder", "~/features")
    assert f"in {tmp_path / 'features'}" in out
    assert len(folders(tmp_path)) == 2
    assert cache(capsys, "list", "~/features")[1].endswith(f"kB in {tmp_path / 'features'}\n")
    prune = ["prune", "~/features", "--unused-by", "~/run.yaml"]
    assert cache(capsys, *prune)[1] == "0 of 2 caches, 0 B\n"


def test_an_evaluation_alone_keeps_nothing_and_captioning_hears_nothing_of_it(
    config, retriever_folder, capsys, tmp_path
):
    words = ["--config", config, "--task", "caption", "--cache.folder", "null"]
    err = cache(capsys, "build", *words)[2]
    assert err == "error: cache.folder is null, so this run keeps no features; set it to a folder\n"
    words = ["--task", "retrieval", "--model.name", retriever_folder, "--evaluate_only", "true"]
    err = cache(capsys, "build", "--config", config, *words)[2]
    assert err == "error: evaluate_only is true, so this run keeps no features; set it to false\n"


@pytest.mark.parametrize("made", [False, True], ids=["empty", "run"])
def test_the_settings_of_a_folder_are_asked_for(capsys, tmp_path, made):
    if made:
        (tmp_path / "config.yaml").write_text("")
    (tmp_path / "features").mkdir()
    code, _, err = cache(capsys, "prune", tmp_path / "features", "--unused-by", tmp_path)
    advice = tmp_path / "config.yaml" if made else "a recipe's YAML or a run's config.yaml"
    assert (code, err) == (2, f"error: --unused-by {tmp_path} is a folder; give {advice}\n")


def test_settings_that_arent_there_are_told_by_their_option(capsys, tmp_path):
    code, _, err = cache(capsys, "prune", tmp_path, "--unused-by", tmp_path / "no.yaml")
    told = f"--unused-by {tmp_path / 'no.yaml'} isn't there; give a recipe's YAML or a run's"
    assert (code, err) == (2, f"error: {told} config.yaml\n")


def test_settings_that_use_no_cache_leave_nothing_and_are_refused(config, capsys, tmp_path):
    cache(capsys, "build", "--config", config)
    before = folders(tmp_path)
    settings = yaml.safe_load(config.read_text())
    settings["parts"]["vision"] = "full"
    del settings["cache"]
    config.write_text(yaml.safe_dump(settings))
    code, out, err = cache(capsys, "prune", tmp_path / "features", "--unused-by", config)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: --unused-by {config}: a run of these settings uses no kept")
    assert "- parts.vision is full" in err
    assert "cache.folder" not in err
    assert folders(tmp_path) == before


def test_a_build_that_is_stopped_says_how_it_goes_on(config, capsys, tmp_path, monkeypatch):
    def stopped(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return compute_features(*arguments)

    monkeypatch.setattr(compute, "compute_features", stopped)
    code, _, err = cache(capsys, "build", "--config", config)
    assert code == 143
    kept = f"8 of 16 are kept in {tmp_path / 'features'}; the same command goes on from there\n"
    assert err.endswith(f"\nstopped while images were encoded: {kept}")
