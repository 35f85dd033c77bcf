"""A run's trained weights on the base that they were trained on, from here or from the hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from blip2ft.models.adapter_set import Adapters
from blip2ft.models.adapters import DESCRIPTION_FILE, load_trained, read_description
from blip2ft.models.hub_adapter import download_adapter, is_on_hub
from blip2ft.models.identity import check_base
from blip2ft.models.load import load_captioner, load_retriever
from blip2ft.models.source import read_config
from blip2ft.models.vqa import load_vqa


def adapter_folder(run: str | Path) -> Path:
    """The folder of trained weights in `run`, or `run` itself where it is one.

    run: a folder, or weights on the hub, OWNER/NAME or OWNER/NAME@REVISION, which are downloaded.

    Raises ValueError for a folder without any, and says what to do for a run that hasn't ended.
    """
    if is_on_hub(run):
        return download_adapter(run)
    run = Path(run)
    for folder in (run / "adapter", run):
        if _is_adapter(folder):
            return folder
    if (run / "config.yaml").is_file():
        raise ValueError(
            f"the run {run} hasn't ended, so it has no adapter yet; go on with --resume"
        )
    raise ValueError(f"{run} is no run and no adapter folder; pass the --output of a run")


def is_run(name: str | Path) -> bool:
    """Whether a folder here has trained weights without their base, as `adapter_folder` finds."""
    return any(_is_adapter(folder) for folder in (Path(name) / "adapter", Path(name)))


def _is_adapter(folder: Path) -> bool:
    return (folder / DESCRIPTION_FILE).is_file() and not (folder / "config.json").is_file()


def load_finetuned(
    run: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    base: str | None = None,
    revision: str | None = None,
    quantize: Mapping[str, str] | None = None,
) -> tuple[Any, Any, dict[str, Any]]:
    """The base of a run with its trained weights on, unmerged.

    run: its folder, or where it was pushed to on the hub, OWNER/NAME or OWNER/NAME@REVISION.
    base: where the base model is now, if it moved; revision: of the base, where it isn't the run's.
    quantize: {"language": "nf4"} or "int8": parts to hold in fewer bits, however the run held them.
    Returns model, processor and description.

    Raises ValueError for parts to quantise that the run trained in full.
    """
    folder = adapter_folder(run)
    whose = _told(run, folder)
    model, processor, description = _load_base_of(folder, whose, dtype, base, revision, quantize)
    load_trained(model, folder)
    return model.eval(), processor, description


def load_mixed(
    runs: Mapping[Path, float] | Mapping[str, float],
    *,
    dtype: torch.dtype = torch.float32,
    base: str | None = None,
    revision: str | None = None,
    quantize: Mapping[str, str] | None = None,
) -> tuple[Adapters, Any, dict[str, Any]]:
    """The base of some runs with all their adapters on it, mixed by their weights.

    The adapters go by the names that `runs` gives them; the further arguments are those of
    `load_finetuned`. Returns the adapters, on their model, the processor, and the description of
    the first run, whose prompt and decoding are used.

    Raises ValueError for runs of different bases, classes or image sizes, and for parts to quantise
    that one of them trained in full.
    """
    folders = {str(run): adapter_folder(run) for run in runs}
    (name, first), *others = folders.items()
    for other, folder in others:
        _check_quantizable(_told(other, folder), read_description(folder), quantize or {})
    whose = _told(name, first)
    model, processor, description = _load_base_of(first, whose, dtype, base, revision, quantize)
    if revision is None and base is None:
        revision = description["revision"]
    name, stage1 = base or description["base"], description.get("stage1")
    adapters = Adapters(model.eval(), base=name, revision=revision, stage1=stage1)
    for name, folder in folders.items():
        adapters.load(folder, name)
    adapters.mix({str(run): weight for run, weight in runs.items()})
    return adapters, processor, description


def _told(run: str | Path, folder: Path) -> str:
    """How messages name trained weights: by their folder, those of the hub by their name there."""
    return str(run if is_on_hub(run) else folder)


def _load_base_of(
    folder: Path,
    whose: str,
    dtype: torch.dtype,
    base: str | None,
    revision: str | None,
    quantize: Mapping[str, str] | None,
) -> tuple[Any, Any, dict[str, Any]]:
    description = read_description(folder)
    lacking = [key for key in ("task", "base", "image_size") if key not in description]
    if lacking:
        raise ValueError(
            f"{whose}: its {DESCRIPTION_FILE} lacks {', '.join(lacking)}, so it is none that "
            "blip2ft wrote beside trained weights"
        )
    _check_quantizable(whose, description, quantize or {})
    gone = Path(description["base"])
    if base is None and gone.is_absolute() and not gone.exists():
        raise ValueError(
            f"{whose} was trained on {gone}, which isn't there; say where it is now "
            "(export --base, push --base-repo, or --model beside --adapter)"
        )
    if revision is None and base is None:
        revision = description.get("revision")
    name = base or description["base"]
    read_config(name, revision, ("blip-2", "instructblip"))  # what is no model is told as such
    check_base(whose, description, name, revision)
    options = {"revision": revision, "image_size": description["image_size"], "dtype": dtype}
    options["quantize"] = quantize
    model, processor = _load_base(name, description, options)
    return model, processor, description


def _check_quantizable(
    whose: str, description: Mapping[str, Any], quantize: Mapping[str, str]
) -> None:
    for part in quantize:
        if description.get("parts", {}).get(part) == "full":
            raise ValueError(
                f"{whose} trained {part} in full, and its weights can't be put on a quantised "
                f"{part}; export the run, and quantise what is exported"
            )


def _load_base(name: str, description: dict[str, Any], options: dict[str, Any]) -> tuple[Any, Any]:
    """The model that a run of any task started from."""
    if description["task"] == "retrieval":
        return load_retriever(name, objectives=description["objectives"], **options)
    if description["task"] == "vqa":
        options |= {key: description[key] for key in ("stage1", "question_in_qformer")}
        return load_vqa(name, **options)
    return load_captioner(name, **options)
