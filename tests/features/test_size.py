"""Sizes in words."""

import pytest

from blip2ft.features.size import told_size


@pytest.mark.parametrize(
    ("size", "told"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (229_043_712_000, "229.0 GB"),
        (2_500_000_000_000_000, "2,500.0 TB"),
    ],
)
def test_a_size_has_the_unit_that_fits(size, told):
    assert told_size(size) == told
