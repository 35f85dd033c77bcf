"""The Slurm script starts a process a GPU, and puts a job whose time is over back in the queue."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_caption_recipe import ROOT, tiny

from blip2ft.training.run import read_lines

SCRIPT = ROOT / "recipes" / "slurm" / "train.sbatch"
SRUN = """#!/bin/bash
echo "srun $1" >> calls
shift
export SLURM_NTASKS=2 SLURM_NTASKS_PER_NODE=2
for i in 0 1; do SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & pids[i]=$!; done
echo "${pids[@]}" > tasks
status=0
for pid in "${pids[@]}"; do wait "$pid" || status=$?; done
exit $status
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then printf '127.0.0.1\\nnode2\\n'; else echo "scontrol $*" >> calls; fi
"""
# in the place of Python: notes what it was told, and ends as it shall
RECIPE = """#!/bin/bash
here="$LOCAL_RANK of $LOCAL_WORLD_SIZE"
echo "$RANK of $WORLD_SIZE here $here $MASTER_ADDR:$MASTER_PORT $*" >> told
sh ./behave
"""


@pytest.fixture
def slurm(tmp_path):
    """A folder with stand-ins of Slurm's commands; call it as sbatch calls the script."""
    (tmp_path / "bin").mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        command = tmp_path / "bin" / name
        command.write_text(text)
        command.chmod(0o755)

    def start(*words: object) -> subprocess.Popen:
        variables = {
            "PATH": f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "41234",
            "SLURM_JOB_NODELIST": "node[1-2]",
            "PYTHONPATH": str(ROOT),
        }
        return subprocess.Popen(
            ["bash", str(SCRIPT), *map(str, words)],
            cwd=tmp_path,
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture
def recipe(tmp_path, slurm):
    """The script with a stand-in of the recipe that behaves as a line of shell says."""
    python = tmp_path / "bin" / "python"
    python.write_text(RECIPE)
    python.chmod(0o755)

    def run(behaviour: str, *words: str) -> tuple[int, str, list[str]]:
        (tmp_path / "behave").write_text(behaviour)
        process = slurm(*words)
        out, err = process.communicate(timeout=60)
        calls = tmp_path / "calls"
        return (
            process.returncode,
            out + err,
            calls.read_text().split("\n") if calls.exists() else [],
        )

    return run


def test_the_script_is_clean():
    shellcheck = shutil.which("shellcheck", path=Path(sys.executable).parent)
    assert shellcheck, 'pip install -e ".[dev]" brings it'
    found = subprocess.run([shellcheck, SCRIPT], capture_output=True, text=True)
    assert found.stdout + found.stderr == ""


def test_every_process_is_told_who_it_is(recipe, tmp_path):
    status, said, calls = recipe("exit 0", "recipes/caption.py", "--output", "runs/it")
    assert (status, said) == (0, "")
    assert calls == ["srun --wait=300", ""]
    words = "127.0.0.1:21234 recipes/caption.py --output runs/it"
    assert sorted((tmp_path / "told").read_text().splitlines()) == [
        f"{i} of 2 here {i} of 2 {words}" for i in range(2)
    ]


def test_a_job_whose_time_is_over_is_requeued_and_resumes(recipe, tmp_path):
    run = tmp_path / "runs" / "it"
    run.mkdir(parents=True)
    stopped = """echo '{"signal": "SIGUSR1"}' > runs/it/stopped.json; touch runs/it/config.yaml"""
    status, said, calls = recipe(f"{stopped}; exit 138", "recipes/vqa.py", "--output=runs/it")
    assert status == 0
    assert "the job goes on from runs/it when its turn comes" in said
    assert calls == ["srun --wait=300", "scontrol requeue 41234", ""]
    (tmp_path / "told").unlink()
    status, _, calls = recipe("rm -f runs/it/stopped.json", "recipes/vqa.py", "--output=runs/it")
    assert status == 0
    assert calls == ["srun --wait=300", "scontrol requeue 41234", "srun --wait=300", ""]
    told = (tmp_path / "told").read_text().splitlines()
    assert all(line.endswith("recipes/vqa.py --output=runs/it --resume") for line in told)


def test_a_job_whose_time_is_over_before_there_is_a_run_is_requeued(recipe):
    status, _, calls = recipe("exit 138", "recipes/caption.py", "--output", "runs/it")
    assert status == 0
    assert calls == ["srun --wait=300", "scontrol requeue 41234", ""]


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [
        ("exit 2", 2),
        (
            """mkdir -p runs/it; echo '{"signal": "SIGTERM"}' > runs/it/stopped.json; exit 143""",
            143,
        ),
    ],
    ids=["failed", "cancelled"],
)
def test_a_job_that_fails_or_is_cancelled_is_not_requeued(recipe, behaviour, expected):
    status, _, calls = recipe(behaviour, "recipes/caption.py", "--output", "runs/it")
    assert status == expected
    assert calls == ["srun --wait=300", ""]


@pytest.mark.parametrize("words", [("--output", "runs/it"), ("--output=runs/it",)])
def test_a_requeued_job_that_fails_before_it_begins_is_not_requeued_again(recipe, tmp_path, words):
    run = tmp_path / "runs" / "it"
    run.mkdir(parents=True)
    (run / "config.yaml").touch()
    (run / "stopped.json").write_text('{"signal": "SIGUSR1"}')
    status, _, calls = recipe("exit 2", "recipes/caption.py", *words)
    assert status == 2
    assert calls == ["srun --wait=300", ""]


@pytest.mark.parametrize("words", [(), ("--output",)])
def test_a_run_without_a_folder_of_its_own_is_refused(recipe, words):
    status, said, calls = recipe("exit 0", "recipes/caption.py", *words)
    assert status == 2
    assert "error: say with --output where the run goes" in said
    assert calls == []


@pytest.mark.slow
def test_a_run_is_stopped_requeued_and_finished(slurm, opt_folder, photo_folder, tmp_path):
    run = tmp_path / "runs" / "it"
    words = [ROOT / "recipes" / "caption.py", *tiny(opt_folder, photo_folder, run)]
    words += ["--train.evaluate_every", 9999, "--train.checkpoint_every", 5, "--train.epochs", 999]
    first = slurm(*words, "--train.max_steps", 5000)
    checkpoint = run / "checkpoints" / "step-00000005"
    while not checkpoint.exists():
        assert first.poll() is None, first.communicate()
        time.sleep(0.2)
    for task in (tmp_path / "tasks").read_text().split():
        os.kill(int(task), signal.SIGUSR1)
    out, err = first.communicate(timeout=120)
    assert first.returncode == 0, err[-3000:]
    assert "the job goes on from" in out
    assert (tmp_path / "calls").read_text().endswith("scontrol requeue 41234\n")
    done = read_lines(run / "log.jsonl")[-1]["step"]
    second = slurm(*words, "--train.max_steps", done + 3)
    out, err = second.communicate(timeout=120)
    assert second.returncode == 0, err[-3000:]
    assert "best step" in out
    steps = [row["step"] for row in read_lines(run / "log.jsonl")]
    assert steps == list(range(1, done + 4))
