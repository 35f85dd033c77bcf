"""What the page on launching says of DeepSpeed, where it is installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "scripts" / "bench" / "zero.py"


@pytest.mark.slow
def test_zero_computes_alike_and_lacks_what_the_page_names():
    """A newer DeepSpeed that does what it lacked is a reason to look at the page again."""
    pytest.importorskip("deepspeed")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, str(PROGRAM)],
        capture_output=True,
        text=True,
        env=os.environ | {"DS_ACCELERATOR": "cpu"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["moved"] > 1e-3
    for stage in ("zero2", "zero3"):
        assert found[stage]["loss_and_norm"] < 1e-6
        assert found[stage]["weights"] < 1e-4
    assert "self.dim() cannot be 0" in found["takes_a_number_as_parameter"]
    assert "exp_avg not found" in found["tells_averages_of_two_groups"]
    # by as much as DeepSpeed clips to, at a rate of 1
    assert found["moved_within_accelerates_backward"] == pytest.approx(0.5, abs=1e-4)
