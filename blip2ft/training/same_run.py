"""Whether a run that is resumed is still the same: its base, what trains on it, and its order."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from blip2ft.filters.rules import is_idle
from blip2ft.whole import write_text

BASE = "base.json"  # in a run's folder
FILTERS = "data.filters"
# What decides which weights there are, what they learn and from which samples. Folders may move.
FIXED = (
    "model.image_size",
    "parts",
    "quantize",
    "lora.r",
    "lora.alpha",
    "lora.dora",
    "lora.rslora",
    "lora.init",
    "prompt",
    "prefix_lm",
    "question_in_qformer",
    "stage1",
    "objectives",
    "data.answers",
    FILTERS,
    "train.batch_size",
    "seed",
)
IN_LORA = "lora."  # of no account where no part has one
OF_THE_COMMAND = ("output", "train.resume")  # where a run lies, and that it goes on


def check_same_settings(run: str | Path, settings: Mapping[str, Any]) -> None:
    """Raise ValueError where a run is to go on with settings that make it another.

    settings: groups by name, as `asdict` makes them of a recipe's config; the folder's own
      config.yaml is what the run was begun with.
    """
    begun = yaml.safe_load((Path(run) / "config.yaml").read_text(encoding="utf-8")) or {}
    differing = []
    for key in FIXED:
        if key.startswith(IN_LORA) and "lora" not in settings["parts"].values():
            continue
        then, now = _value(begun, key), _value(settings, key)
        if then != now:
            differing.append(f"{key} was {_shown(then)} and is {_shown(now)}")
    if differing:
        raise ValueError(
            f"{run} was begun with other settings, and what goes on with these is another run:\n  "
            + "\n  ".join(differing)
            + "\ngo on with those of before (its config.yaml has them), or begin another run with "
            "--output FOLDER"
        )


def changed_settings(run: str | Path, settings: Mapping[str, Any]) -> str | None:
    """What to say of settings that a run goes on with and didn't have before; None where all are.

    settings: as for `check_same_settings`, after it. Compared with those that the run had last: it
      may have gone on before. What older settings don't name is left out.
    """
    folder = Path(run)
    resumed = sorted(folder.glob("config-resumed-*.yaml"), key=_times)
    last = resumed[-1] if resumed else folder / "config.yaml"
    then = dict(_flat(yaml.safe_load(last.read_text(encoding="utf-8")) or {}))
    now = dict(_flat(settings))
    differing = [
        f"{key} {_shown(then[key])} -> {_shown(now[key])}"
        for key in now
        if key in then and then[key] != now[key] and key not in OF_THE_COMMAND
    ]
    if not differing:
        return None
    return f"the run goes on with other settings than before ({last}): {', '.join(differing)}"


def check_same_base(run: str | Path, base: Any) -> None:
    """Raise ValueError where a run is to go on upon other weights than it was begun on.

    base: a `blip2ft.models.identity.Base`.
    """
    path = Path(run) / BASE
    if not path.is_file():
        return
    begun = json.loads(path.read_text(encoding="utf-8"))
    if begun["base_digest"] == base.base_digest:
        return
    commit = begun["revision"]
    hint = f"--model.revision {commit}" if commit else "the weights of before as model.name"
    raise ValueError(
        f"{run} was begun on {begun['base']}, and the weights of {base.base} are others: frozen "
        f"ones aren't in a checkpoint, so the model would be another; go on with {hint}"
    )


def keep_base(run: Path, base: Any) -> None:
    """Write what the run starts from into its folder, once; call on one process."""
    if not (run / BASE).exists():
        write_text(run / BASE, json.dumps(asdict(base), indent=2) + "\n")


def _value(settings: Any, key: str) -> Any:
    for name in key.split("."):
        settings = settings.get(name) if isinstance(settings, Mapping) else None
    if key == "stage1" and settings is not None:
        return Path(settings).name  # a folder may move
    # as in the config.yaml of a run from before there were filters
    return None if key == FILTERS and settings and is_idle(settings) else settings


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each setting with the groups that it is in, such as ("train.epochs", 1)."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            # YAML has no tuples
            yield f"{prefix}{name}", list(value) if isinstance(value, tuple) else value


def _times(config: Path) -> int:
    return int(config.stem.rpartition("-")[2])


def _shown(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()
