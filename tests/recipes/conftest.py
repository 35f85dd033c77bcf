"""Accelerate keeps one state a process; every test gets a fresh one."""

import pytest
from accelerate.state import AcceleratorState

import blip2ft.tasks.caption


@pytest.fixture(autouse=True)
def fresh_accelerate(monkeypatch):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture(autouse=True)
def without_java(monkeypatch):
    """METEOR and SPICE take a Java start each."""
    scores = blip2ft.tasks.caption.score_captions
    monkeypatch.setattr(
        blip2ft.tasks.caption,
        "score_captions",
        lambda predictions, references, *, java=True: scores(predictions, references, java=False),
    )
