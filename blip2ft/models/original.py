"""A file of the original: read without running code, and every tensor of it accounted for."""

import logging
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedConfig

logger = logging.getLogger(__name__)


class Differences(NamedTuple):
    """Names of tensors that aren't as expected; `misshapen` has (found, expected) shapes."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]


def read_original(path: str | Path) -> dict[str, Tensor]:
    """The tensors of the original's file: {"model": tensors, ...}, or bare.

    They stay on disk until used. Raises ValueError for anything else, and for a pickle with code in
    it, which isn't run.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(
            f"{path} is a folder, not a file of the original; for the way back pass --to lavis"
        )
    if not path.is_file():
        raise ValueError(f"there is no file {path}; check the spelling")
    try:
        # files from before torch 1.6 are no archives and can't stay on disk
        loaded = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except OSError:
        raise
    except Exception as error:  # damaged bytes make unpickling raise anything
        code = re.search(r"GLOBAL (\S+)", str(error))
        if isinstance(error, UnpicklingError) and code:
            raise ValueError(
                f"{path} holds code ({code[1]}), which was not run: only tensors are read. If you "
                "trust it, save its state dict alone: torch.save({'model': state_dict}, ...)"
            ) from None
        reason = (str(error).strip().splitlines() or ["it is empty"])[0].partition(". ")[0]
        raise ValueError(
            f"{path} is no checkpoint of torch, or damaged ({reason}); download it again"
        ) from None
    state = loaded
    if isinstance(loaded, Mapping) and isinstance(loaded.get("model"), Mapping):
        state = loaded["model"]
        others = [str(name) for name in loaded if name != "model"]
        if others:
            logger.info("%s: beside the model it holds %s, left out", path, ", ".join(others))
    if not isinstance(state, Mapping) or not state:
        raise ValueError(
            f"{path} holds no state dict; it must be {{'model': state dict}} or a bare state dict"
        )
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ValueError(
                f"{path} holds a {type(tensor).__name__} as {name!r} and no state dict; it must "
                "be {'model': state dict} or a bare state dict"
            )
    return dict(state)


def compare(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Differences:
    """What is missing from `found`, is too much, or has another shape than in `expected`."""
    shapes = {
        name: (tuple(found[name].shape), tuple(tensor.shape))
        for name, tensor in expected.items()
        if name in found
    }
    return Differences(
        tuple(name for name in expected if name not in found),
        tuple(name for name in found if name not in expected),
        {name: pair for name, pair in shapes.items() if pair[0] != pair[1]},
    )


def report_differences(
    name: str,
    differences: Differences,
    allow_partial: bool,
    settings: PreTrainedConfig | None = None,
) -> None:
    """Log each tensor that doesn't fit; ValueError with their number unless `allow_partial`."""
    missing, unexpected, misshapen = differences
    lines = [f"missing     {key}" for key in missing]
    lines += [f"unexpected  {key}" for key in unexpected]
    lines += [
        f"misshapen   {key}: {list(found)}, expected is {list(wanted)}"
        for key, (found, wanted) in misshapen.items()
    ]
    for line in lines:
        logger.warning(line)
    if not lines or allow_partial:
        return
    hint = "check that the config is this model's, or go on without them with --allow-partial"
    grid = misshapen.get("visual_encoder.pos_embed")
    if grid and grid[0][2] == grid[1][2] and settings is not None:
        size = round((grid[0][1] - 1) ** 0.5) * settings.vision_config.patch_size
        hint = (
            f"its images have {size} pixels: set image_size in the config's vision_config to that"
        )
    if any(key.startswith(("opt_proj.", "t5_proj.")) for key in misshapen):
        hint = "pass the language model that it was trained with as --language-model"
    raise ValueError(
        f"{name}: {len(missing)} tensors are missing, {len(unexpected)} unexpected and "
        f"{len(misshapen)} misshapen for the config, each listed in the log, such as "
        f"{' '.join(lines[0].split())}; {hint}"
    )
