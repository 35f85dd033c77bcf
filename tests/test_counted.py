import pytest

from blip2ft.counted import counted


@pytest.mark.parametrize(
    ("number", "noun", "told"),
    [
        (0, "step", "0 steps"),
        (1, "step", "1 step"),
        (1, "process", "1 process"),
        (2, "process", "2 processes"),
        (1200, "micro-batch", "1,200 micro-batches"),
    ],
)
def test_one_of_a_thing_has_no_plural(number, noun, told):
    assert counted(number, noun) == told
