"""A bar is for someone who looks on: a file gets none."""

import io
import sys

import pytest

from blip2ft.bars import progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_file_gets_no_bar(capsys):
    assert list(progress_bar(range(3), "look")) == [0, 1, 2]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("hidden", [False, True])
def test_a_terminal_gets_one_unless_it_is_hidden(monkeypatch, hidden):
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert list(progress_bar(range(3), "look", hidden=hidden)) == [0, 1, 2]
    assert ("look: 100%" in sys.stderr.getvalue()) != hidden
