"""A process that ends before its time is told of by the others, and they end."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blip2ft.training import presence
from blip2ft.whole import WRITING

PROGRAM = Path(__file__).with_name("present.py")
Start = Callable[..., list[subprocess.Popen]]


@pytest.fixture
def start(tmp_path) -> Iterator[Start]:
    """Processes that are present, all of one machine."""
    started: list[subprocess.Popen] = []

    def start(world: int, grace: float = 30.0) -> list[subprocess.Popen]:
        for rank in range(world):
            words = [sys.executable, PROGRAM, rank, world, tmp_path / "address", grace]
            process = subprocess.Popen(
                list(map(str, words)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                bufsize=1,
                env=os.environ | {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"},
            )
            started.append(process)
        for process in started:
            assert process.stdout.readline() == "present\n", process.stderr.read()
        time.sleep(0.2)  # the first one learns of those that connect in its own time
        return started

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def first(monkeypatch) -> Iterator[tuple[presence.Presence, tuple[str, int]]]:
    """The first of three processes, in this one, and where it listens."""
    monkeypatch.setattr(presence, "_later", lambda *_: None)  # or it would end these tests
    first, server = presence.Presence(0, 3), socket.create_server(("127.0.0.1", 0))
    first.listen_to_all(server, "token")
    yield first, server.getsockname()
    first.over = True


def tell(process: subprocess.Popen, command: str) -> None:
    process.stdin.write(f"{command}\n")


@pytest.mark.parametrize(("lost", "speaker"), [(0, 1), (1, 0), (2, 0)])
def test_who_was_killed_is_told_once_and_all_end(start, lost, speaker):
    processes = start(3)
    others = [process for rank, process in enumerate(processes) if rank != lost]
    for process in others:
        tell(process, "wait")
    tell(processes[lost], "die")
    said = [process.communicate(timeout=20)[1] for process in others]
    assert [process.returncode for process in others] == [1, 1]
    assert processes[lost].wait() == -signal.SIGKILL
    spoke = [process for process, text in zip(others, said, strict=True) if text]
    assert spoke == [processes[speaker]]
    name = f"process {lost} of 3"
    if lost:
        name += f" (pid {processes[lost].pid} on {socket.gethostname()})"
    assert "".join(said).startswith(f"\nerror: {name} was killed, so the others stop: memory ran")
    assert "the same command with --resume goes on\n" in "".join(said)


def test_who_fails_is_told_too(start):
    processes = start(2)
    tell(processes[0], "wait")
    tell(processes[1], "fail")
    said = processes[0].communicate(timeout=20)[1]
    assert f"process 1 of 2 (pid {processes[1].pid}" in said
    assert "has stopped with an error of its own, so the others stop\n" in said
    assert processes[0].returncode == 1


@pytest.mark.parametrize("stopped", [0, 1])
def test_who_is_stopped_alone_takes_the_others_along(start, stopped):
    """One that got no signal may wait for it in the middle of an evaluation."""
    processes = start(2, grace=3.0)
    tell(processes[1 - stopped], "work")  # heeds nobody
    tell(processes[stopped], "stop")
    _, said = processes[1 - stopped].communicate(timeout=20)
    assert processes[1 - stopped].returncode == 1
    assert f"process {stopped} of 2" in said
    assert "was stopped by a signal, so the others stop. What was saved is whole" in said


def test_where_all_are_stopped_nothing_is_told_of_each_other(start):
    processes = start(2)
    for process in processes:
        tell(process, "stop")
    for process in processes:
        assert process.communicate(timeout=20)[1] == ""
        assert process.returncode == 143


def test_where_all_fail_nothing_is_told_of_each_other(start):
    processes = start(3)
    for process in processes:
        tell(process, "fail")
    assert [process.communicate(timeout=20)[1] for process in processes] == ["", "", ""]
    assert [process.returncode for process in processes] == [2, 2, 2]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_an_error_of_all_is_told_by_the_first(start, order):
    processes = start(3)
    for rank in order:
        tell(processes[rank], "fail no space")
    said = [process.communicate(timeout=20)[1] for process in processes]
    assert said == ["fail no space\n", "", ""]
    assert [process.returncode for process in processes] == [2, 2, 2]


def test_an_error_that_the_first_has_not_is_told_even_where_a_launcher_ends_the_process(start):
    processes = start(2)
    tell(processes[1], "fail a bad image")
    time.sleep(0.3)
    processes[1].terminate()
    tell(processes[0], "fail another process says why")
    said = [process.communicate(timeout=20)[1] for process in processes]
    assert said == ["fail another process says why\n", "fail a bad image\n"]


def test_before_processes_know_of_each_other_the_first_of_a_machine_speaks(monkeypatch):
    waited = []
    monkeypatch.setattr(presence.time, "sleep", waited.append)
    before = signal.getsignal(signal.SIGTERM)
    try:
        for rank in ("0", "1"):
            monkeypatch.setenv("LOCAL_RANK", rank)
            assert not presence.told_by_first("error: x")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert waited == [presence.TOGETHER]


@pytest.mark.parametrize("first", [0, 1])
def test_an_end_as_it_should_be_stops_nobody(start, first):
    processes = start(2, grace=0.1)
    tell(processes[first], "end")
    assert processes[first].wait(timeout=20) == 0
    time.sleep(0.5)
    tell(processes[1 - first], "end")
    assert processes[1 - first].communicate(timeout=20)[1] == ""
    assert processes[1 - first].returncode == 0


def test_who_heeds_nobody_is_ended_when_the_grace_is_over(start):
    """As one that waits for the lost one, deep inside of a library."""
    processes = start(2, grace=0.5)
    tell(processes[0], "work")
    tell(processes[1], "die")
    began = time.monotonic()
    assert "process 1 of 2" in processes[0].communicate(timeout=20)[1]
    assert processes[0].returncode == 1
    assert time.monotonic() - began < 10


def test_who_comes_late_is_told_too(first, capsys):
    here, address = first
    with socket.create_connection(address) as early:
        early.sendall(b"token 1 pid 7 on here\n")
    assert here.lost.wait(10)
    with socket.create_connection(address, timeout=10) as late:
        late.sendall(b"token 2 pid 8 on here\n")
        assert late.recv(100) == b"killed 1 pid 7 on here\n"
    assert "process 1 of 3 (pid 7 on here) was killed" in capsys.readouterr().err


def test_strangers_are_turned_away(start, tmp_path):
    processes = start(2)
    port, _ = (tmp_path / "address").read_text().split("\n")
    with socket.create_connection(("127.0.0.1", int(port))) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert stranger.recv(10) == b""
    tell(processes[0], "end")
    assert processes[0].wait(timeout=20) == 0


def test_a_stranger_that_says_nothing_delays_nobody(first, monkeypatch):
    monkeypatch.setattr(presence, "SAYING", 60.0)
    here, address = first
    strangers = [socket.create_connection(address) for _ in range(3)]
    with socket.create_connection(address) as other:
        other.sendall(b"token 1 pid 7 on here\n")
    assert here.lost.wait(5)
    for stranger in strangers:
        stranger.close()


def test_a_stranger_that_says_nothing_is_turned_away(first, monkeypatch):
    monkeypatch.setattr(presence, "SAYING", 0.1)
    _, address = first
    with socket.create_connection(address, timeout=10) as stranger:
        assert stranger.recv(10) == b""


def test_others_may_connect_while_the_first_one_fails(first):
    """Each is told, once, whenever it comes."""
    here, address = first
    others = [socket.create_connection(address, timeout=10) for _ in range(40)]
    for number, other in enumerate(others[:20], 1):
        other.sendall(f"token {number} pid 7 on here\n".encode())
    news = threading.Timer(0.01, here._send, ["failed 0 pid 6 on here"])
    news.start()
    for number, other in enumerate(others[20:], 21):
        other.sendall(f"token {number} pid 7 on here\n".encode())
    news.join()
    for other in others:
        assert other.recv(100) == b"failed 0 pid 6 on here\n"
    here.over = True  # before they leave, which would be news
    for other in others:
        other.close()


def test_a_checkpoint_that_is_being_written_is_waited_for(monkeypatch):
    ended, written = [], []
    monkeypatch.setattr(presence, "GRACE", 0.0)
    monkeypatch.setattr(presence.os, "_exit", lambda status: ended.append((status, *written)))
    go_on = threading.Event()
    write = threading.Thread(target=lambda: go_on.wait(20) and written.append(1), name=WRITING)
    write.start()
    end = threading.Thread(target=presence._end_at_last)
    end.start()
    end.join(0.1)
    assert ended == []
    go_on.set()
    end.join()
    assert ended == [(1, 1)]


def test_where_no_port_can_be_listened_at_all_go_on_with_a_warning(monkeypatch, caplog):
    def refuse(address):
        raise OSError("address family not supported")

    monkeypatch.setattr(presence, "_present", [])
    monkeypatch.setattr(socket, "create_server", refuse)
    shared = []
    presence.attend(0, 2, lambda own: shared.append(own) or own)
    presence.attend(1, 2, lambda _: shared[0])
    (warning,) = caplog.messages
    assert warning.startswith("no port can be listened at (address family not supported): if a")


def test_a_first_process_out_of_reach_is_a_warning(monkeypatch, caplog):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setattr(presence, "_present", [])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    presence.attend(1, 2, lambda _: [str(port), "token"])
    assert f"process 1 can't reach the first one at 127.0.0.1:{port}" in caplog.text


def test_one_process_has_nobody_to_lose():
    presence.fail()
    assert not presence.lost_another()
