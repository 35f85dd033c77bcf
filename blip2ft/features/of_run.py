"""What a recipe would keep, told from its settings: the same model, images and transforms."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from blip2ft.data.images import transforms_for
from blip2ft.data.questions import read_questions
from blip2ft.data.records import read_records
from blip2ft.features.build import build
from blip2ft.features.level import cache_level, obstacles
from blip2ft.features.together import together
from blip2ft.features.wanted import Wanted, want_features
from blip2ft.models.of_settings import load_for
from blip2ft.models.parts import check_parts, set_trainable
from blip2ft.models.source import read_config
from blip2ft.training.processes import (
    DTYPES,
    frozen_dtype,
    precision_of,
    start_processes,
    usable_workers,
)


def build_for(task: str, settings: Mapping[str, Any], say: Callable[[str], object]) -> None:
    """Compute the features that a run of `task` with `settings` would.

    Raises ValueError where it would keep none, and ValueError and Stopped as the run does.
    """
    level, model_settings = _level_of(settings), settings["model"]
    accelerator = start_processes(model_settings["precision"], [], settings["cache"]["folder"])
    records = [list(_records(task, settings, train)) for train in (True, False)]
    config = read_config(
        model_settings["name"], model_settings["revision"], ("blip-2", "instructblip")
    )
    model, processor = _load(task, settings, frozen_dtype(accelerator, config))
    model.to(accelerator.device)
    precision = precision_of(accelerator)
    wanted = together(
        accelerator, lambda: _want(model, processor, level, settings, records, precision)
    )
    quiet = say if accelerator.is_main_process else lambda _: None
    build(model, level, wanted, accelerator, usable_workers(settings["data"]["workers"]), quiet)
    accelerator.free_memory()
    accelerator.end_training()


def names_for(task: str, settings: Mapping[str, Any]) -> set[str]:
    """The folders in `cache.folder` that a run of `task` with `settings` uses.

    Precision "auto" is another on another machine, so that it names the folders of each.

    Raises ValueError where it can use none.
    """
    wrong = obstacles(settings)
    if settings.get("evaluate_only"):
        wrong.append("evaluate_only is true, and no cache is read then")
    if wrong:
        raise ValueError(
            "a run of these settings uses no kept features, so there is nothing to leave for it; "
            "leave it out, or give another run's:\n- " + "\n- ".join(wrong)
        )
    level, asked = _level_of(settings), settings["model"]["precision"]
    names = set()
    for precision, dtype in DTYPES.items():
        if asked in ("auto", precision):
            model, processor = _load(task, settings, dtype)
            wanted = _want(model, processor, level, settings, [(), ()], precision)
            names |= {each.store.key.name for each in wanted}
    return names


def _level_of(settings: Mapping[str, Any]) -> str:
    level = cache_level(settings)
    if level is None:
        why, mend = "cache.folder is null", "set it to a folder"
        if settings.get("evaluate_only"):
            why, mend = "evaluate_only is true", "set it to false"
        raise ValueError(f"{why}, so this run keeps no features; {mend}")
    check_parts(settings["parts"], settings["quantize"])
    return level


def _want(
    model: Any,
    processor: Any,
    level: str,
    settings: Mapping[str, Any],
    records: Sequence[Sequence[Any]],
    precision: str,
) -> list[Wanted]:
    data = settings["data"]
    transforms = transforms_for(
        processor.image_processor, scale=data["crop_scale"], flip=data["flip"]
    )
    return want_features(
        model,
        level,
        **settings["cache"],
        name=settings["model"]["name"],
        records=records,
        transforms=transforms,
        precision=precision,
    )


def _records(task: str, settings: Mapping[str, Any], train: bool) -> Iterator[Any]:
    data = settings["data"]
    read: Callable[..., Any] = read_questions if task == "vqa" else read_records
    sources = [data["validation"], data["test"]]
    if train:
        sources = data["train"] if task == "vqa" else [data["train"]]
        if not all(sources):
            raise ValueError("data.train is null: there is nothing to learn from; give its source")
    for source in sources:
        yield from read(**source) if source else ()


def _load(task: str, settings: Mapping[str, Any], frozen: torch.dtype) -> tuple[Any, Any]:
    model, processor = load_for(task, settings, frozen)
    set_trainable(model, settings["parts"], frozen)
    return model, processor
