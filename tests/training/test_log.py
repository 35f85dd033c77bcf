from types import SimpleNamespace

import pytest
from tqdm import tqdm

from blip2ft.training.log import Log
from blip2ft.training.run import read_lines


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr("blip2ft.training.log.time.perf_counter", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def run_steps(log: Log, clock: Clock, waits: list[float], work: float, first: int = 1) -> None:
    for step, wait in enumerate(waits, first):
        log.begin()
        clock.now += wait
        log.loaded()
        clock.now += work
        log.step(step, loss=1.0, rate=0.1, norm=1.0, samples=8)
        clock.now += 100.0  # an evaluation


def make_log(folder, every: int, *, main: bool = True) -> Log:
    accelerator = SimpleNamespace(is_main_process=main, log=lambda values, step: None)
    return Log(folder / "log.jsonl", every, accelerator, tqdm(total=8, disable=True))


def test_a_line_tells_the_share_of_time_spent_waiting_for_batches(tmp_path, clock):
    run_steps(make_log(tmp_path, 2), clock, [1.0, 3.0, 0.0, 0.0], work=2.0)
    rows = read_lines(tmp_path / "log.jsonl")
    assert [row["waiting"] for row in rows] == [0.5, 0.0]
    assert [row["images_per_second"] for row in rows] == [2.0, 4.0]


@pytest.mark.parametrize(("wait", "told"), [(0.4, []), (0.6, ["23"])])
def test_a_run_that_starves_says_so_once(tmp_path, clock, caplog, wait, told):
    with caplog.at_level("WARNING", "blip2ft"):
        log = make_log(tmp_path, 2)
        run_steps(log, clock, [50.0, wait], work=2.0)
        assert not caplog.messages, "the start of the workers is no starving"
        run_steps(log, clock, [wait] * 4, work=2.0, first=3)
    percents = [message.split(" ")[0] for message in caplog.messages]
    assert percents == told
    assert all("raise data.workers" in message for message in caplog.messages)


def test_one_process_of_many_says_that_it_starves(tmp_path, clock, caplog):
    with caplog.at_level("WARNING", "blip2ft"):
        run_steps(make_log(tmp_path, 1, main=False), clock, [9.0] * 4, work=1.0)
    assert not caplog.messages


def test_without_a_bar_a_line_now_and_then_tells_how_far_it_is(tmp_path, clock, caplog):
    with caplog.at_level("INFO", "blip2ft"):
        run_steps(make_log(tmp_path, 1), clock, [0.0] * 2, work=8.0)
        run_steps(make_log(tmp_path, 1, main=False), clock, [0.0] * 4, work=8.0, first=3)
    assert caplog.messages == ["step 2 of 8: loss 1.000, lr 1.0e-01, 1.0 images/s"]
