"""Writing in the background: in order, one at a time, and what fails is told."""

import threading
import time

import pytest
from accelerate import Accelerator

from blip2ft.training.background import Writer


def failing():
    raise ValueError("no space")


def test_things_are_written_one_after_the_other_while_others_go_on():
    go_on, done = threading.Event(), []
    with Writer() as writer:
        writer.start(lambda: go_on.wait(60) and done.append(1))
        assert done == []
        threading.Timer(0.05, go_on.set).start()
        writer.start(lambda: done.append(2))  # waits for the first
        assert done[0] == 1
    assert done == [1, 2]


def test_a_failure_is_known_when_it_has_happened_and_nothing_more_is_written():
    done = []
    with Writer() as writer:
        assert not writer.failed
        writer.start(failing)
        writer.wait()
        assert writer.failed
        writer.start(lambda: done.append(1))
        with pytest.raises(ValueError, match="no space"):
            writer.check()
        with pytest.raises(ValueError, match="no space"):
            writer.settle(Accelerator(cpu=True))
    assert done == []


def write_and_raise(writer: Writer, write, error: type[BaseException]) -> None:
    with writer:
        writer.start(write)
        raise error


def test_after_another_error_the_writing_ends_and_its_own_error_is_told_too(caplog):
    done = []
    with pytest.raises(KeyError):
        write_and_raise(Writer(), lambda: time.sleep(0.05) or done.append(1), KeyError)
    assert done == [1]
    assert caplog.text == ""
    with pytest.raises(KeyError):
        write_and_raise(Writer(), failing, KeyError)
    assert "no space" in caplog.text


def test_a_second_ctrl_c_doesnt_wait():
    go_on, writer = threading.Event(), Writer()
    with pytest.raises(KeyboardInterrupt):
        write_and_raise(writer, lambda: go_on.wait(60) and None, KeyboardInterrupt)
    assert writer.thread is not None
    assert writer.thread.is_alive()
    go_on.set()
    writer.wait()
