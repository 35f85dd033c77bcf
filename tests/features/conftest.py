import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cached_run import PROGRAM, Run, make_run

from blip2ft.features import compute
from blip2ft.features.serve import compute_features

ROOT = Path(__file__).parents[2]


@pytest.fixture
def computed(monkeypatch) -> list[int]:
    """How many images each batch had that was computed."""
    counts: list[int] = []

    def counted(model, level, pixels):
        counts.append(len(pixels))
        return compute_features(model, level, pixels)

    monkeypatch.setattr(compute, "compute_features", counted)
    return counts


@pytest.fixture
def photos(photo_folder, tmp_path) -> Path:
    """A copy, to be changed."""
    return Path(shutil.copytree(photo_folder, tmp_path / "photos"))


@pytest.fixture
def run(opt_folder, photos, tmp_path) -> Run:
    return make_run(opt_folder, photos, tmp_path / "cache")


@pytest.fixture
def two_processes(opt_folder, photos, tmp_path) -> Callable[..., subprocess.CompletedProcess]:
    def launch(**variables: str) -> subprocess.CompletedProcess:
        program = tmp_path / "program.py"
        program.write_text(PROGRAM)
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        own = {"TESTS": str(Path(__file__).parent), "CACHE": str(tmp_path / "cache")}
        own |= {"MODEL": str(opt_folder), "PHOTOS": str(photos), "ACCELERATE_USE_CPU": "true"}
        paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        return subprocess.run(
            [*launcher, "--nproc_per_node", "2", str(program)],
            env=os.environ | own | variables | {"PYTHONPATH": paths},
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=300,
        )

    return launch
