"""Ctrl-C and SIGTERM while images are encoded: what is computed stays, and is said."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from blip2ft.errors import Stopped
from blip2ft.features import compute
from blip2ft.features.manage import list_caches
from blip2ft.features.serve import compute_features

ROOT = Path(__file__).parents[2]
BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["int", "term"])


@pytest.fixture
def signal_in(monkeypatch):
    """Send a signal in a batch, counted from 1, of 2 images."""

    def at(batch: int, number: int, error: Exception | None = None) -> list[int]:
        batches: list[int] = []

        def signalled(*arguments):
            batches.append(1)
            if len(batches) == batch:
                os.kill(os.getpid(), number)
                if error is not None:
                    raise error
            return compute_features(*arguments)

        monkeypatch.setattr(compute, "BATCH", 2)
        monkeypatch.setattr(compute, "compute_features", signalled)
        return batches

    return at


def handlers() -> list[object]:
    return [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)]


@BOTH
def test_a_signal_ends_the_batch_and_says_what_is_kept(run, signal_in, number):
    before, batches = handlers(), signal_in(3, number)
    with pytest.raises(Stopped) as stop:
        run.use()
    assert str(stop.value) == (
        f"stopped while images were encoded: 6 of 10 are kept in {run.folder}; the same command "
        "goes on from there"
    )
    assert stop.value.signal_number == number
    assert handlers() == before
    assert len(batches) == 3
    run.use()
    assert len(batches) == 5
    assert sum(cache.images for cache in list_caches(run.folder)) == 10


def test_a_signal_in_the_last_batch_isnt_lost(run, signal_in):
    signal_in(5, signal.SIGTERM)
    with pytest.raises(Stopped, match="10 of 10 are kept"):
        run.use()
    run.use()
    assert "all there" in run.said[-1]


def test_a_second_ctrl_c_quits_at_once(run, monkeypatch):
    def twice(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        return compute_features(*arguments)

    monkeypatch.setattr("blip2ft.training.signals.ONE_SIGNAL_SECONDS", 0.0)
    monkeypatch.setattr(compute, "compute_features", twice)
    with pytest.raises(KeyboardInterrupt):
        run.use()
    assert sum(cache.images for cache in list_caches(run.folder)) == 0


def test_what_ends_the_loaders_workers_too_is_no_failure(run, signal_in):
    signal_in(2, signal.SIGTERM, ConnectionResetError(104, "Connection reset by peer"))
    with pytest.raises(Stopped, match="2 of 10 are kept"):
        run.use(workers=1)


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_stops_both(two_processes, tmp_path):
    found = two_processes(SIGNAL="15")
    assert found.returncode != 0
    for rank in (0, 1):
        said = (tmp_path / f"cache-{rank}.txt").read_text()
        assert said.startswith("stopped while images were encoded: 8 of 10 are kept in ")


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("workers", [0, 2])
def test_a_signal_to_the_whole_group_leaves_one_line_and_no_traceback(
    opt_folder, photos, tmp_path, number, workers
):
    """The loader's processes get it too, in the middle of what they send."""
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, time\n"
        "from blip2ft.cli import main\n"
        "from blip2ft.features import compute\n"
        "from blip2ft.features.serve import compute_features\n"
        "compute.BATCH = 1\n"
        "def slowly(*arguments):\n"
        "    print('encoding', flush=True)\n"
        "    time.sleep(0.2)\n"
        "    return compute_features(*arguments)\n"
        "compute.compute_features = slowly\n"
        "main(sys.argv[1:])\n"
    )
    source = f'{{"source": "{photos / "captions.csv"}"}}'
    config = tmp_path / "run.yaml"
    config.write_text(
        f"output: {tmp_path / 'run'}\n"
        f"model: {{name: {opt_folder}}}\n"
        "parts: {vision: frozen}\n"
        f"data: {{train: {source}, validation: {source}, crop_scale: null, flip: false, "
        f"workers: {workers}}}\n"
        f"cache: {{folder: {tmp_path / 'features'}}}\n"
    )
    command = [sys.executable, str(program), "cache", "build", "--config", str(config)]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    ) as process:
        while "encoding" not in process.stdout.readline():
            assert process.poll() is None
        os.killpg(process.pid, number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Traceback" not in err
    assert err.count("stopped while images were encoded: ") == 1
    assert f"of 16 are kept in {tmp_path / 'features'}; the same command goes on" in err
