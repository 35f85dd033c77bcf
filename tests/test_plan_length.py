"""What a plan counts."""

from dataclasses import asdict

import pytest

from blip2ft.config import CaptionConfig, DataConfig, ModelConfig, SourceConfig
from blip2ft.filters.rules import Rules
from blip2ft.plan.length import count_samples


@pytest.mark.parametrize(
    ("harmful", "how"), [("keep", "counted"), ("drop", "counted before data.filters")]
)
def test_samples_are_counted_before_they_are_filtered(harmful, how, photo_folder):
    source = SourceConfig(str(photo_folder / "captions.csv"))
    data = DataConfig(train=source, validation=source, filters=Rules(harmful=harmful))
    settings = asdict(CaptionConfig(output="run", model=ModelConfig("base"), data=data))
    assert count_samples("caption", settings) == (8, how)
