"""The loader's processes leave signals to the one that trains."""

import signal

import pytest
from torch.utils.data import Dataset

from blip2ft.data.loading import load_batches
from blip2ft.training.signals import Signals


class Handlers(Dataset):
    """What the process that loads does on the signal of that number."""

    def __getitem__(self, number: int) -> object:
        return signal.getsignal(number)


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (signal.SIGINT, signal.SIG_IGN),  # to a terminal's whole group
        (signal.SIGUSR1, signal.SIG_IGN),  # to all processes of a job
        (signal.SIGTERM, signal.SIG_DFL),  # of the loader's own, to a worker that hangs
    ],
)
def test_a_worker_that_starts_in_an_evaluation_leaves_signals_to_training(number, expected):
    with Signals():
        (found,) = load_batches(Handlers(), [[number]], lambda values: values, workers=1)
    assert found == [expected]
