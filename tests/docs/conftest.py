"""A newcomer's folder for the docs' commands, with small models under the names of large ones."""

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from accelerate.state import AcceleratorState
from code_blocks import ROOT
from stand_ins import CAPTIONER, FINDER, LANGUAGE_MODEL, keep_in_cache, language_model_of

from blip2ft.metrics.java import MetricUnavailable

FEW = 8


@pytest.fixture(scope="session")
def hub_cache(opt_folder, retriever_folder, tmp_path_factory) -> Path:
    """Small random models, as if they had been downloaded."""
    cache = tmp_path_factory.mktemp("cache")
    keep_in_cache(cache, CAPTIONER, opt_folder)
    keep_in_cache(cache, FINDER, retriever_folder)
    language_model = language_model_of(opt_folder, tmp_path_factory.mktemp("language"))
    keep_in_cache(cache, LANGUAGE_MODEL, language_model)
    return cache


@pytest.fixture(scope="session")
def few_scenes(tmp_path_factory) -> Path:
    """The first scenes of each file in data/scenes, and the questions about them."""
    few = tmp_path_factory.mktemp("few") / "scenes"
    for style in ("noto", "openmoji"):
        source = ROOT / "data" / "scenes" / style
        (few / style).mkdir(parents=True)
        for file in source.glob("*.parquet"):
            with pq.ParquetFile(file) as whole:
                first = next(whole.iter_batches(FEW))
            with pq.ParquetWriter(few / style / file.name, first.schema) as written:
                written.write_batch(first)
        for file in source.glob("*-questions.jsonl"):
            lines = file.read_text(encoding="utf-8").split("\n")[:FEW]
            (few / style / file.name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    made = "python scripts/make_scenes.py --out data/scenes"
    assert any(few.rglob("*.parquet")), f"no scenes are there; make them: {made}"
    return few


@pytest.fixture
def newcomer(hub_cache, few_scenes, photo_folder, tmp_path, monkeypatch) -> Path:
    """The folder where a page's commands are run: the repository, photos, models in the cache."""
    for constants in ("transformers.utils.hub.constants", "huggingface_hub.constants"):
        monkeypatch.setattr(f"{constants}.HF_HUB_CACHE", str(hub_cache))
    monkeypatch.chdir(tmp_path)
    for name in ("recipes", "scripts", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    data = tmp_path / "data"
    data.mkdir()
    (data / "scenes").symlink_to(few_scenes)
    for name in ("tiny-blip2", "tiny-retriever"):
        (data / name).symlink_to(ROOT / "data" / name)
    for folder in ("photos", "holiday"):
        shutil.copytree(photo_folder, tmp_path / folder)
    rows = (photo_folder / "captions.csv").read_text().split("\n")
    for split, few in (("train", rows[1:6]), ("validation", rows[6:])):
        (tmp_path / "photos" / f"{split}.csv").write_text("\n".join([rows[0], *few]))
    shutil.copy(photo_folder / "photo0.jpg", tmp_path / "photo.jpg")
    # a machine without Java: METEOR takes seconds to start
    for metric in ("meteor", "spice"):
        monkeypatch.setattr(f"blip2ft.metrics.{metric}.java_command", no_java)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    yield tmp_path
    AcceleratorState._reset_state(True)


def no_java(metric: str) -> str:
    raise MetricUnavailable(f"{metric} needs a Java runtime")
