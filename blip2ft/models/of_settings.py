"""The model of a run, told from its settings."""

from collections.abc import Mapping
from typing import Any

import torch

from blip2ft.models.load import load_captioner, load_retriever
from blip2ft.models.vqa import load_vqa


def load_for(task: str, settings: Mapping[str, Any], frozen: torch.dtype) -> tuple[Any, Any]:
    """The model and processor that a recipe of `task` with `settings` starts from.

    settings: groups by name, as `asdict` makes them of a recipe's config; frozen: what quantised
    weights are multiplied in. Raises ValueError as the loaders do.
    """
    model_settings = settings["model"]
    name = model_settings["name"]
    options: dict[str, Any] = {
        "revision": model_settings["revision"],
        "image_size": model_settings["image_size"],
        "dtype": torch.float32,
        "quantize": settings["quantize"],
        "compute_dtype": frozen,
    }
    if task == "vqa":
        own = {key: settings[key] for key in ("stage1", "question_in_qformer")}
        return load_vqa(name, **options, **own)
    if task == "retrieval":
        objectives = {key: settings["objectives"][key] for key in ("itc", "itm", "itg")}
        return load_retriever(name, **options, objectives=objectives, itg_head=settings["itg_head"])
    return load_captioner(name, **options)
