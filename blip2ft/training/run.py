"""A run's folder: what was asked for, on what, and everything that came of it.

config.yaml          every setting, resolved
base.json            what it started from: name, commit and digest of the weights
environment.json     versions, git commit, hardware, command
stream.json          the shards that a run on a stream learns from
samples.json         how many samples another run learns from
log.jsonl            loss, rate and speed while training
metrics.jsonl        each evaluation's scores
filtered.jsonl       texts that data.filters left out or masked
broken.jsonl         training samples that couldn't be read
nonfinite.jsonl      steps that were left out, with the part and the samples concerned
predictions/         each evaluation's answers
resources.json       time, samples, memory and energy that it took, over its resumes
training-data.json   how many images and texts it learned from
checkpoints/         to resume from
adapter/             what was trained, when the run has ended
report.html          scores, curves and answers on a page, when the run has ended
.lock                held while the run goes on, by its first process
stopped.json         which signal stopped the run, until it goes on: --resume does
"""

import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip2ft.training.hold import hold
from blip2ft.training.same_run import keep_base
from blip2ft.training.signals import stop_at_once
from blip2ft.whole import check_writable, in_use, remove_partial, whole, write_text

if TYPE_CHECKING:
    from accelerate import Accelerator

    from blip2ft.models.identity import Base

STOPPED = "stopped.json"
PACKAGES = ("blip2ft", "torch", "transformers", "peft", "accelerate", "datasets", "pillow")


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a run: its scores, and its answers with their references."""

    scores: dict[str, float]
    answers: list[dict[str, Any]]


def check_output(output: str | Path, *, resume: bool) -> None:
    """Raise ValueError for a folder that can't be written, or is in use and `resume` is off.

    With `resume`, for one that has nothing to resume.
    """
    run = Path(output)
    if in_use(run) and not resume:
        raise ValueError(
            f"the output folder {run} is in use and nothing in it is ever overwritten; resume it "
            "with --resume, or choose another with --output FOLDER"
        )
    if resume and not (run / "config.yaml").is_file():
        raise ValueError(f"nothing to resume: {run} holds no run; leave out --resume")
    check_writable(run)


def open_run(run: Path, config_yaml: str, *, resume: bool) -> None:
    """Make the folder of a new run, on one process.

    A resumed run keeps its first config.yaml and gets a further one, named after it. What a kill
    left half-written is removed.
    """
    if not resume:
        check_output(run, resume=False)  # another may have begun here while this one loaded
    times = len(list(run.glob("config*.yaml")))
    suffix = f"-resumed-{times}" if resume else ""
    # the first of all: with it the folder is a run's, and --resume goes on
    write_text(run / f"config{suffix}.yaml", config_yaml)
    (run / "checkpoints").mkdir(exist_ok=True)
    (run / "predictions").mkdir(exist_ok=True)
    for folder in (run, run / "checkpoints", run / "predictions"):
        remove_partial(folder)
    text = json.dumps(environment(), indent=2) + "\n"
    (run / f"environment{suffix}.json").write_text(text, encoding="utf-8")


def start_run(
    run: Path, config_yaml: str, base: "Base", accelerator: "Accelerator", *, resume: bool
) -> None:
    """Open the folder and the trackers of a run; call on every process, after `check_output`.

    A new run's folder is made and held only here; one that goes on is held already.

    Raises InUse, a ValueError, where another run has begun in the folder since.
    """
    if not resume:
        hold(run, accelerator)
    if accelerator.is_main_process:
        open_run(run, config_yaml, resume=resume)
        keep_base(run, base)
    accelerator.init_trackers("blip2ft", config={"yaml": config_yaml})
    accelerator.wait_for_everyone()


def stop_outside_of_steps(output: str | Path) -> None:
    """Let a run's process end cleanly by SIGTERM and SIGUSR1 while it loads and evaluates, too.

    A run that is begun gets the sign of `note_stop`. One that goes on loses that of before: however
    it ends now.
    """
    run = Path(output)
    (run / STOPPED).unlink(missing_ok=True)

    def say(number: int) -> str:
        if not (run / "config.yaml").is_file():
            return "stopped before there was a run; the same command begins it"
        note_stop(run, max((run / "checkpoints").glob("step-*"), default=None), number)
        return "stopped; the same command with --resume goes on with what is saved"

    stop_at_once(say)


def note_stop(run: Path, checkpoint: Path | None, number: int) -> None:
    """Leave a sign that a signal stopped the run, for scripts that requeue it.

    checkpoint: what it goes on from; None is its beginning. A launcher doesn't pass exit statuses
    on. The sign goes as the run goes on.
    """
    name = None if checkpoint is None else checkpoint.name
    words = {"signal": signal.Signals(number).name, "checkpoint": name}
    write_text(run / STOPPED, json.dumps(words) + "\n")


def record_evaluation(
    run: Path, split: str, step: int, scores: Mapping[str, float], answers: Sequence[Any]
) -> None:
    """Keep an evaluation's scores and answers in the run's folder, in place of earlier ones."""
    write_lines(_answers_path(run, split, step), answers)
    path = run / "metrics.jsonl"
    rows = [row for row in read_lines(path) if (row["split"], row["step"]) != (split, step)]
    write_lines(path, [*rows, {"step": step, "split": split, **scores}])


def read_evaluation(run: Path, split: str, step: int) -> Evaluation:
    """The evaluation that `record_evaluation` kept; empty where there was none."""
    rows = [
        row
        for row in read_lines(run / "metrics.jsonl")
        if row["split"] == split and row["step"] == step
    ]
    scores = {k: v for k, v in rows[-1].items() if k not in ("split", "step")} if rows else {}
    return Evaluation(scores, read_lines(_answers_path(run, split, step)))


def environment() -> dict[str, Any]:
    """Versions, commit, hardware and command of this process."""
    import torch  # here: the checks of this module must answer at once

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "packages": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "gpus": gpus,
        "git_commit": _git_commit(),
        "command": sys.argv,
    }


def append_line(path: Path, values: Mapping[str, Any]) -> None:
    """Add one line of JSON to `path`."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(dict(values), ensure_ascii=False) + "\n")


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as lines of JSON, whole or not at all."""
    with whole(path) as partial, partial.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(dict(row), ensure_ascii=False) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines; none where there is no file.

    A last line without its end was cut off, by a full disk for one, and is left out.
    """
    if not path.is_file():
        return []
    # bytes: what was cut off may end in the middle of a character
    *lines, _unfinished = path.read_bytes().split(b"\n")
    return [json.loads(line) for line in lines if line]


def drop_lines_after(path: Path, step: int) -> None:
    """Forget what a run logged after the checkpoint that it resumes from."""
    if path.is_file():
        write_lines(path, [row for row in read_lines(path) if row["step"] <= step])


def _answers_path(run: Path, split: str, step: int) -> Path:
    return run / "predictions" / f"{split}-{step:08d}.jsonl"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    here = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "-C", here, "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
