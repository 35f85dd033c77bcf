"""The filters of a run: all processes leave out the same, and a run that goes on does too."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate import Accelerator

from blip2ft.data.records import Record
from blip2ft.training.filtered import FILE, filter_training, keep_filtered
from blip2ft.training.run import read_lines

RECORDS = [
    Record(Path(f"{i}.jpg"), f"{i}.jpg", (caption,), f"captions.csv:{i + 2}", {})
    for i, caption in enumerate(["a dog", "a fucking dog", "call (212) 555-0187"])
]
BOTH = {"harmful": "drop", "personal": "mask"}


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


def test_without_filters_nothing_is_looked_at_nor_written(tmp_path, accelerator):
    filtered = filter_training(RECORDS, {"harmful": "keep"}, accelerator, run=tmp_path)
    assert filtered is None
    keep_filtered(tmp_path, filtered, accelerator)
    assert list(tmp_path.iterdir()) == []


def test_the_report_lies_in_the_folder_of_the_run(tmp_path, accelerator):
    filtered = filter_training(RECORDS, BOTH, accelerator, run=tmp_path)
    assert [r.captions for r in filtered.kept] == [("a dog",), ("call phone number",)]
    keep_filtered(tmp_path, filtered, accelerator)
    assert read_lines(tmp_path / FILE) == filtered.rows
    again = filter_training(RECORDS, BOTH, accelerator, run=tmp_path)
    assert again == filtered


def test_a_run_that_goes_on_must_lose_the_same_texts(tmp_path, accelerator):
    keep_filtered(tmp_path, filter_training(RECORDS, BOTH, accelerator, run=tmp_path), accelerator)
    said = r"filtered\.jsonl has other texts .* the data or the filters' libraries have changed"
    with pytest.raises(ValueError, match=said):
        filter_training(RECORDS[:2], BOTH, accelerator, run=tmp_path)


ALONE = """
import json, sys
from accelerate import Accelerator
import blip2ft.training.filtered as filtered
from test_filtered import BOTH, RECORDS

accelerator = Accelerator(cpu=True)
if not accelerator.is_main_process:
    filtered.judge_all = None  # who calls it fails
found = filtered.filter_training(RECORDS, BOTH, accelerator, run=sys.argv[1])
filtered.keep_filtered(filtered.Path(sys.argv[1]), found, accelerator)
with open(f"{sys.argv[1]}/{accelerator.process_index}.json", "w") as file:
    json.dump([[r.captions for r in found.kept], found.rows], file)
accelerator.end_training()
"""


def test_one_process_looks_and_all_leave_out_the_same(tmp_path):
    script = tmp_path / "alone.py"
    script.write_text(ALONE)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    subprocess.run(
        [*command, "--nproc_per_node", "2", script, tmp_path],
        check=True,
        capture_output=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"},
    )
    first, second = (json.loads((tmp_path / f"{i}.json").read_text()) for i in range(2))
    assert first == second
    assert first[0] == [["a dog"], ["call phone number"]]
    assert read_lines(tmp_path / FILE) == first[1]


def test_settings_that_cannot_be_are_refused(tmp_path, accelerator):
    with pytest.raises(ValueError, match=r"filters\.harmful is 'mask'"):
        filter_training(RECORDS, {"harmful": "mask"}, accelerator, run=tmp_path)
