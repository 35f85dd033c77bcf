"""Broken samples are counted exactly, told, and stop a run where they are too many."""

import logging
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from two_processes import train_on_two

from blip2ft.data.broken import Broken
from blip2ft.training.broken import BrokenLog, allowed
from blip2ft.training.run import read_lines


def one_process(rank: int = 0, processes: int = 1) -> SimpleNamespace:
    return SimpleNamespace(
        num_processes=processes, is_main_process=rank == 0, wait_for_everyone=lambda: None
    )


def batch(*broken: int, asked: int = 8) -> dict:
    return {
        "x": asked - len(broken),
        "broken": [Broken(f"x.tar: {i}", "damaged") for i in broken],
        "asked": asked,
    }


def watch(run: Path, batches: list[dict], *, first=0, accumulation=1, max_broken=0.5, **process):
    log = BrokenLog(run, one_process(**process), max_broken=max_broken, batch_size=8)
    return log, log.watch(batches, first_step=first, accumulation=accumulation)


def test_batches_come_without_what_is_broken_and_it_is_logged_by_step(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    batches = [batch(1), batch(), batch(2, 3), batch()]
    log, watched = watch(tmp_path, batches, accumulation=2, first=5)
    assert list(watched) == [{"x": 7}, {"x": 8}, {"x": 6}, {"x": 8}]
    lines = [(row["step"], row["origin"], row["reason"]) for row in read_lines(log.path)]
    assert lines == [
        (6, "x.tar: 1", "damaged"), (7, "x.tar: 2", "damaged"), (7, "x.tar: 3", "damaged"),
    ]  # fmt: skip
    assert caplog.records[0].message == "left out: x.tar: 1: damaged"
    assert len(caplog.records) == 3


def test_a_sample_counts_when_its_batch_is_asked_for_not_when_it_is_loaded(tmp_path):
    log, watched = watch(tmp_path, [batch(1), batch(2), batch(3)])
    next(watched)
    next(watched)
    assert (log.broken, log.asked) == (2, 16)
    assert len(read_lines(log.path)) == 2


def test_workers_of_a_loader_start_at_once(tmp_path):
    started = []

    class Loader:
        def __iter__(self):
            started.append(1)
            return iter([batch()])

    watch(tmp_path, Loader())
    assert started == [1]


def test_a_resumed_run_counts_what_was_before_its_step_and_forgets_the_rest(tmp_path):
    _, watched = watch(tmp_path, [batch(i) for i in range(6)])
    list(watched)
    log, watched = watch(tmp_path, [batch(9)], first=4)
    assert (log.broken, log.asked) == (4, 32)
    assert [row["origin"] for row in read_lines(log.path)] == [f"x.tar: {i}" for i in range(4)]
    list(watched)
    assert [row["step"] for row in read_lines(log.path)] == [1, 2, 3, 4, 5]
    half, _ = watch(tmp_path, [], first=4, rank=1, processes=2)  # on two processes
    assert (half.broken, half.asked) == (2, 16)
    assert len(read_lines(log.path)) == 5  # the first process drops them


def test_a_share_above_the_limit_stops_and_one_below_does_not(tmp_path):
    def one_of_16():
        return (batch(i) if i % 2 else batch() for i in range(1000))

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    _, watched = watch(tmp_path / "a", one_of_16(), max_broken=0.07)
    assert sum(1 for _ in watched) == 1000
    _, watched = watch(tmp_path / "b", one_of_16(), max_broken=0.02)
    with pytest.raises(
        ValueError,
        match=r"\d+ of \d+ samples can't be read, more than the share of 0\.02 that may; .*broken"
        r"\.jsonl names them\. Mend the data, or raise data\.max_bad_images, of a stream data\.st",
    ):
        list(watched)


def test_where_all_are_broken_the_first_few_stop_the_run(tmp_path):
    _, watched = watch(tmp_path, [batch(*range(8))], max_broken=0.01)
    with pytest.raises(ValueError, match="8 of 8 samples can't be read"):
        next(watched)


def test_a_limit_of_0_allows_none_and_of_1_all(tmp_path):
    _, watched = watch(tmp_path, [batch(), batch(1)], max_broken=0.0)
    next(watched)
    with pytest.raises(ValueError, match=r"1 of 16 .* the share of 0 that may"):
        next(watched)
    _, watched = watch(tmp_path, [batch(*range(8), asked=8)] * 1, max_broken=1.0)
    assert len(list(watched)) == 1


@pytest.mark.parametrize("max_broken", [-0.1, 1.1, float("nan")])
def test_a_limit_that_is_no_share_is_refused(tmp_path, max_broken):
    with pytest.raises(ValueError, match=r"max_broken is .*: allowed is a share from 0 to 1"):
        BrokenLog(tmp_path, one_process(), max_broken=max_broken, batch_size=8)


def test_chance_is_allowed_for_but_less_and_less():
    assert [allowed(n, 0.01) >= n for n in (1, 2, 3, 4, 10)] == [True, True, True, False, False]
    shares = [allowed(n, 0.01) / n for n in (100, 10_000, 1_000_000)]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == pytest.approx(0.0103, abs=1e-4)


def test_a_sample_that_comes_again_is_told_once(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    _, watched = watch(tmp_path, [batch(1), batch(2), batch(1)], max_broken=1)
    list(watched)
    _, watched = watch(tmp_path, [batch(1), batch(3)], max_broken=1, first=3)  # resumed
    list(watched)
    told = [re.search(r"tar: (\d)", record.message)[1] for record in caplog.records]
    assert told == ["1", "2", "3"]
    assert len(read_lines(tmp_path / "broken.jsonl")) == 5  # all, by step


def test_only_the_first_are_told_one_by_one(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    _, watched = watch(tmp_path, [batch(i) for i in range(200)], max_broken=1)
    list(watched)
    assert len(caplog.records) == 10 + 2


def test_every_hundredth_is_told_after_a_resume_on_other_processes_too(tmp_path, caplog):
    _, watched = watch(tmp_path, [batch(i) for i in range(7)], max_broken=1)
    list(watched)
    caplog.set_level(logging.WARNING)
    caplog.clear()
    again = [batch(i) for i in range(110)]
    _, watched = watch(tmp_path, again, first=7, processes=2, max_broken=1)
    list(watched)
    told = [re.search(r"tar: (\d+)", record.message)[1] for record in caplog.records]
    assert told == ["7", "8", "9", "99"]


def test_when_one_process_stops_the_others_do_too(tmp_path):
    def own(rank: int, accelerator) -> dict:
        log = BrokenLog(tmp_path, accelerator, max_broken=0.01, batch_size=4)
        broken = [Broken("x.tar: 1", "damaged")] if rank else []
        batches = [{"x": torch.ones(2, 2), "broken": broken, "asked": 2} for _ in range(20)]
        return {"batches": lambda first, _: log.watch(batches, first_step=first, accumulation=1)}

    first, second = train_on_two(tmp_path, own)
    assert first.startswith("ValueError: another process can't go on")
    assert re.match(r"ValueError: \d of \d+ samples can't", second)
    (saved,) = (tmp_path / "checkpoints").iterdir()
    step = int(saved.name.removeprefix("step-"))
    rows = read_lines(tmp_path / "broken.jsonl")
    assert [row["step"] for row in rows] == list(range(1, step + 2))
