"""The settings of a run for commands that don't start one: a recipe's YAML with its overrides."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from blip2ft.config import CaptionConfig, RetrievalConfig, VqaConfig
from blip2ft.models.source import is_retriever, read_config
from blip2ft.parse import check_config_file, parse_config
from blip2ft.training.settings import check_settings

CONFIGS: dict[str, Any] = {
    "caption": CaptionConfig,
    "retrieval": RetrievalConfig,
    "vqa": VqaConfig,
}
# Settings that only one task has.
OWN = {"objectives": "retrieval", "itg_head": "retrieval", "search": "retrieval"}
OWN |= {"question_in_qformer": "vqa", "stage1": "vqa", "candidates": "vqa"}
OWN |= {"prefix_lm": "caption"}


def read_settings(config: str, overrides: Sequence[str], task: str | None) -> tuple[str, Any]:
    """The task and all settings of a recipe's YAML with its overrides; ValueError as the recipe's.

    Without `task` it is told from the settings that only one task has, from the prompt or from the
    model.
    """
    check_config_file(config)
    argv = ["--config", config, *overrides]
    for key in _top_level(config):
        if task is not None and OWN.get(key, task) != task:
            raise ValueError(f"{config} is of {OWN[key]}, not of {task}: only {OWN[key]} has {key}")
    task = task or _task_of(config, argv)
    settings, _ = parse_config(CONFIGS[task], argv, f"recipes/{task}.py")
    found = asdict(settings)
    check_settings(found)
    return task, found


def _task_of(config: str, argv: Sequence[str]) -> str:
    keys = _top_level(config) | {word[2:].split(".")[0] for word in argv if word.startswith("--")}
    told = {OWN[key] for key in keys if key in OWN}
    if len(told) == 1:
        return told.pop()
    fits = {}
    for task, kind in CONFIGS.items():
        try:
            fits[task], _ = parse_config(kind, argv, "")
        except ValueError:
            continue
    if len(fits) == 1:
        return next(iter(fits))
    if not fits:  # the recipe's own words say what is wrong
        named = [task for task in CONFIGS if task in Path(config).parts]
        return named[0] if named else "caption"
    if "{}" in getattr(fits.get("vqa"), "prompt", "") and "prompt" in keys:
        return "vqa"
    model = next(iter(fits.values())).model
    return "retrieval" if is_retriever(read_config(model.name, model.revision)) else "caption"


def _top_level(config: str) -> set[str]:
    try:
        read = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
    except yaml.YAMLError:
        return set()  # told by the parser, in clear words
    return set(read) if isinstance(read, dict) else set()
