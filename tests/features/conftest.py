import pytest

from blip2ft.features import build
from blip2ft.features.serve import compute_features


@pytest.fixture
def computed(monkeypatch) -> list[int]:
    """How many images each batch had that was computed."""
    counts: list[int] = []

    def counted(model, level, pixels):
        counts.append(len(pixels))
        return compute_features(model, level, pixels)

    monkeypatch.setattr(build, "compute_features", counted)
    return counts
