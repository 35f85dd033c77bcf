"""A run's folder is one run's at a time, and a kill lets go of it."""

import errno
import logging
import os
import signal
import subprocess
import sys

import pytest
from accelerate import Accelerator

from blip2ft.training.hold import hold, holding
from blip2ft.training.run import check_output

# the child is as a loader's process that outlives the run for a while
PROGRAM = """
import os, sys, time
from pathlib import Path
from accelerate import Accelerator
from blip2ft.training.hold import hold, holding

with holding():
    hold(Path(sys.argv[1]), Accelerator(cpu=True))
    child = os.fork()
    if child:
        print(child, flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_refused_until_the_first_is_killed(tmp_path):
    run, accelerator = tmp_path / "runs" / "it", Accelerator(cpu=True)
    first = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(run)], stdout=subprocess.PIPE, text=True
    )
    child = int(first.stdout.readline())
    words = r"another run is training in .*it; wait for its end, or begin another run with --output"
    with pytest.raises(ValueError, match=words), holding():
        hold(run, accelerator)
    first.kill()
    first.wait()
    with holding():
        hold(run, accelerator)
        os.kill(child, 0)  # it is there still
    os.kill(child, signal.SIGKILL)
    first.stdout.close()


def test_it_is_let_go_of_after_an_error_too(tmp_path):
    accelerator = Accelerator(cpu=True)

    @holding()
    def main() -> None:
        hold(tmp_path, accelerator)
        raise KeyError("a bug")

    for _ in range(2):
        with pytest.raises(KeyError, match="a bug"):
            main()


def test_a_folder_with_nothing_but_a_lock_is_free(tmp_path):
    run = tmp_path / "run"
    with holding():
        hold(run, Accelerator(cpu=True))
    assert [path.name for path in run.iterdir()] == [".lock"]
    check_output(run, resume=False)


def test_a_disk_without_locks_is_a_warning_and_a_kill_leaves_no_sign(tmp_path, monkeypatch, caplog):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    for _ in range(2):
        with caplog.at_level(logging.WARNING):
            hold(tmp_path, Accelerator(cpu=True))
    assert f"{tmp_path} can't be locked (" in caplog.text
    assert "Function not implemented): see that no other run is in it" in caplog.text
