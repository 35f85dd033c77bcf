"""The loader: signals that come while its workers start aren't lost."""

import signal

import pytest
from torch.utils.data import DataLoader

from blip2ft.data.loading import load_batches


def test_a_signal_while_workers_are_forked_is_handled_when_they_are(monkeypatch):
    stock, started = DataLoader.__iter__, []

    def fork(loader):
        signal.raise_signal(signal.SIGINT)  # as in a hook of the fork, which drops what is raised
        started.append(stock(loader))
        return started[0]

    monkeypatch.setattr(DataLoader, "__iter__", fork)
    with pytest.raises(KeyboardInterrupt):
        iter(load_batches([1, 2], [[0], [1]], list))
    assert started
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_batches_come_as_ever():
    assert list(load_batches([1, 2, 3], [[0, 2], [1]], list)) == [[1, 3], [2]]
