"""Every benchmark of a shape runs and ends with its line of JSON."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "scripts" / "bench"
SHAPED = sorted(path for path in BENCH.glob("*.py") if '"--shape"' in path.read_text())


def test_the_benchmarks_that_take_a_shape_are_found():
    names = {path.stem for path in SHAPED}
    assert names == {"cache", "caption_step", "dataloader", "loss_memory", "quantized"}


@pytest.mark.slow
@pytest.mark.parametrize("path", SHAPED, ids=lambda path: path.stem)
def test_a_benchmark_ends_with_its_figures(path, tmp_path):
    if path.stem == "quantized":
        pytest.importorskip("bitsandbytes")
    done = subprocess.run(
        [sys.executable, str(path), "--shape", "tiny", "--repeats", "1"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["ratio"] > 0
    # loss and gradient are those of the peer; kept features are in bf16, halved JPEGs are others
    allowed = {"cache": 0.1, "dataloader": 1.0}.get(path.stem, 1e-4)
    assert 0 <= result["max_difference"] < allowed
