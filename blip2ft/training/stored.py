"""Checkpoints on the disk: each whole and with checksums of its files, or not there."""

import hashlib
import json
import logging
import os
import re
import shutil
from itertools import count
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from blip2ft.whole import PARTIAL, whole_folder, write_text

PREFIX, DAMAGED = "step-", "damaged-"
WEIGHTS, REST, STATE = "trained.safetensors", "rest.pt", "state.json"
SUMS = "sha256"  # in state.json: of the other files, and of state.json itself

logger = logging.getLogger(__name__)


def checkpoint_of(folder: Path, step: int) -> Path:
    """The checkpoint of `step` in `folder`."""
    return folder / f"{PREFIX}{step:08d}"


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint was saved after."""
    return int(checkpoint.name.removeprefix(PREFIX))


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in `folder`, oldest first: they were whole when they were written."""
    found = (p for p in folder.glob(f"{PREFIX}*") if re.fullmatch(rf"{PREFIX}\d+", p.name))
    return sorted(found, key=step_of)


def write_checkpoint(
    final: Path, weights: dict[str, Tensor], rest: dict[str, Any], state: dict[str, Any]
) -> None:
    """Write a checkpoint beside, flush it to the disk, and rename it to `final`.

    weights, rest: what `take` gives; state: JSON. A kill at any moment leaves all of it or none.

    Raises ValueError where the disk is full, can't be written to, or fails.
    """
    try:
        with whole_folder(final) as partial:
            save_file(weights, partial / WEIGHTS, {"format": "pt"})
            # to an open file: to a path, torch hides why it failed, such as a full disk
            with (partial / REST).open("wb") as file:
                torch.save(rest, file)
            sums = {name: _sha256(partial / name) for name in (WEIGHTS, REST)}
            (partial / STATE).write_text(_sealed(state, sums), encoding="utf-8")
    except (OSError, SafetensorError, RuntimeError) as error:
        # torch ends its file in spite of an error, and fails anew
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        if type(cause) is RuntimeError:
            raise
        raise ValueError(
            f"{final} can't be saved: {_reason(cause)}. The checkpoints before it are whole: see "
            "to the disk, then go on with the same command and --resume"
        ) from error


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The `state` that a checkpoint was written with, or that was put in its place."""
    state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    return {key: value for key, value in state.items() if key != SUMS}


def rewrite_state(checkpoint: Path, state: dict[str, Any]) -> None:
    """Put another `state` in the place of a checkpoint's own, at once; call on one process."""
    sums = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))[SUMS]
    del sums[STATE]
    write_text(checkpoint / STATE, _sealed(state, sums))


def damage_of(checkpoint: Path) -> str:
    """What of a checkpoint isn't as it was written, in words; "" for a whole one.

    All of it is read.
    """
    for name in (STATE, WEIGHTS, REST):
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
    try:
        text = (checkpoint / STATE).read_bytes()
        state = json.loads(text)
        sums = {name: state[SUMS][name] for name in (WEIGHTS, REST)}
        del state[SUMS]
    except OSError as error:
        return f"{STATE} can't be read: {_reason(error)}"
    except (ValueError, LookupError, TypeError):
        return f"{STATE} is no longer what was written, or has no checksums"
    if text != _sealed(state, sums).encode():
        return f"{STATE} is no longer what was written"
    for name, expected in sums.items():
        try:
            found = _sha256(checkpoint / name)
        except OSError as error:
            return f"{name} can't be read: {_reason(error)}"
        if found != expected:
            return f"{name} is no longer what was written"
    return ""


def newest_whole(folder: Path, accelerator: Accelerator) -> Path | None:
    """The newest checkpoint in `folder` that is as it was written; None where there is none at all.

    Every process must call; the first one looks, and tells where a run goes on. Newer ones, which
    are damaged, are set aside under another name, and a warning names them.

    Raises ValueError, on every process, where there are checkpoints and none is whole.
    """
    found: Path | None = None
    problem = ""
    if accelerator.is_main_process:
        damaged: dict[Path, str] = {}
        for checkpoint in reversed(list_checkpoints(folder)):
            if not (damage := damage_of(checkpoint)):
                found = checkpoint
                break
            damaged[checkpoint] = damage
        if damaged and found is None:
            problem = _none_is_whole(folder, damaged)
        elif damaged and found is not None:
            problem = _set_aside(damaged, found)
        elif found is not None:
            logger.info("the run goes on from %s", found)
        elif (folder.parent / "config.yaml").is_file():
            logger.info("%s holds no checkpoint yet: the run begins at its first step", folder)
    found, problem = broadcast_object_list([found, problem])
    if problem:
        raise ValueError(problem)
    return found


def best_whole(
    folder: Path, step: int, score: float | None, accelerator: Accelerator
) -> tuple[int, float | None]:
    """The best step and its score: those given, unless the step's checkpoint is damaged or gone.

    Every process must call. In the place of a damaged one comes the best of those that are whole
    and were evaluated, with a warning, or 0 and None. `step` 0 says that there is no best yet.
    """
    if not step:
        return step, score
    if accelerator.is_main_process:
        best = checkpoint_of(folder, step)
        if damage := (damage_of(best) if best.exists() else "it isn't there"):
            step, score = _best_of(folder)
            instead = f"step {step} is the best of those that are whole" if step else "none is left"
            logger.warning("%s, the best so far, is damaged (%s): %s", best, damage, instead)
    step, score = broadcast_object_list([step, score])
    return step, score


def remove_old(folder: Path, keep: int, best: int | None) -> None:
    """Remove all but the `keep` newest checkpoints and that of step `best`."""
    checkpoints = list_checkpoints(folder)
    for checkpoint in checkpoints[: max(0, len(checkpoints) - keep)]:
        if step_of(checkpoint) != best:
            # renamed first: a half-removed checkpoint must not look whole
            gone = checkpoint.rename(folder / f"{PARTIAL}{checkpoint.name}")
            shutil.rmtree(gone)


def _best_of(folder: Path) -> tuple[int, float | None]:
    best: tuple[int, float | None] = (0, None)
    for checkpoint in list_checkpoints(folder):
        if not damage_of(checkpoint):
            state = read_state(checkpoint)
            evaluated = state["evaluated"] == state["step"]
            if evaluated and (best[1] is None or state["score"] > best[1]):
                best = state["step"], state["score"]
    return best


def _none_is_whole(folder: Path, damaged: dict[Path, str]) -> str:
    each = "\n  ".join(f"{checkpoint.name}: {damage}" for checkpoint, damage in damaged.items())
    return (
        f"the run can't be resumed: no checkpoint in {folder} is whole\n  {each}\n"
        "put a copy of one in its place, or begin another run with --output FOLDER"
    )


def _set_aside(damaged: dict[Path, str], whole: Path) -> str:
    """Rename what is damaged, and tell of it; the error of a folder that can't be written to."""
    for checkpoint, damage in damaged.items():
        names = (f"{DAMAGED}{checkpoint.name}{'-again' * times}" for times in count())
        aside = next(path for path in map(checkpoint.with_name, names) if not path.exists())
        try:
            checkpoint.rename(aside)
        except OSError as error:
            return f"{checkpoint} is damaged ({damage}) and can't be set aside: {_reason(error)}"
        logger.warning(
            "%s is damaged (%s): it is set aside as %s, and the run goes on from %s",
            checkpoint,
            damage,
            aside.name,
            whole.name,
        )
    return ""


def _sealed(state: dict[str, Any], sums: dict[str, str]) -> str:
    """The text of state.json, with a checksum of itself too."""
    said = state | {SUMS: sums}
    own = hashlib.sha256(json.dumps(said).encode()).hexdigest()
    return json.dumps(state | {SUMS: sums | {STATE: own}}, indent=2) + "\n"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def _reason(error: Exception) -> str:
    """The system's words; safetensors' error has the number in its text alone."""
    number = getattr(error, "errno", None)
    if number is None and (told := re.search(r"\(os error (\d+)\)", str(error))):
        number = int(told[1])
    return os.strerror(number) if number is not None else str(error)
