"""What is evaluated: the base that settings name, another model, or a run's weights on its base."""

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from blip2ft.finetuned import adapter_folder, load_finetuned, load_mixed
from blip2ft.models.adapters import read_description
from blip2ft.models.hub_adapter import read_notes
from blip2ft.models.identity import identify, weights_sample
from blip2ft.models.of_settings import load_for
from blip2ft.models.parts import set_trainable
from blip2ft.models.source import read_config
from blip2ft.training.processes import frozen_dtype


@dataclass(frozen=True)
class Subject:
    """A model as the command line names it.

    Args:
        base: Hub id or folder, with its revision; None is the runs' own.
        runs: Trained weights on the base, each with its share of the mix; {} is the base alone.
        quantize: Parts to hold in fewer bits.
    """

    base: str | None
    revision: str | None
    runs: Mapping[Path, float]
    quantize: Mapping[str, str]

    @property
    def name(self) -> str:
        """What to call it: a hub id, a folder, or the runs with their weights."""
        if not self.runs:
            return str(self.base)
        if list(self.runs.values()) == [1.0]:
            return str(next(iter(self.runs)))
        return " + ".join(f"{weight:g} {run}" for run, weight in self.runs.items())

    def notes(self) -> dict[str, Any]:
        """What is known of how it was trained; {} for a model that blip2ft didn't make.

        Raises ValueError for a run without trained weights.
        """
        if self.runs:
            return read_description(adapter_folder(next(iter(self.runs))))
        assert self.base is not None
        return read_notes(self.base, self.revision)

    def check_task(self, task: str) -> None:
        """Raise ValueError for a run of another task; a model may be asked anything."""
        trained_for = self.notes().get("task", task) if self.runs else task
        if trained_for != task:
            raise ValueError(
                f"{self.name} was trained for {trained_for}, not for {task}: "
                f"blip2ft evaluate {trained_for}"
            )

    def identity(self) -> dict[str, Any]:
        """Digests of all weights, to know the same model by. Raises ValueError for none."""
        found: dict[str, Any] = {"quantize": dict(self.quantize)}
        if self.base is not None:
            found |= asdict(identify(self.base, self.revision))
        else:
            notes = self.notes()
            found |= {name: notes.get(name) for name in ("base", "revision", "base_digest")}
        for run, weight in self.runs.items():
            files = sorted(adapter_folder(run).glob("*.safetensors"))
            digest = {"weight": weight, "digest": weights_sample(files)}
            found.setdefault("runs", []).append({"run": str(run), **digest})
        return found

    def load(
        self, task: str, settings: Mapping[str, Any], accelerator: Accelerator
    ) -> tuple[Any, Any]:
        """Model, on the accelerator's device, and processor.

        Weights are kept as the recipe keeps them, so that what it scored is scored again. Raises
        ValueError as the loaders do.
        """
        if self.runs:
            return self._load_runs(accelerator)
        return self._load_base(task, settings, accelerator)

    def _load_base(
        self, task: str, settings: Mapping[str, Any], accelerator: Accelerator
    ) -> tuple[Any, Any]:
        assert self.base is not None
        config = read_config(self.base, self.revision, ("blip-2", "instructblip"))
        dtype = frozen_dtype(accelerator, config)
        asked = dict(settings["model"])
        if asked["name"] != self.base:
            # another model: it has its own size and its own text branch, or none
            own = {"name": self.base, "revision": self.revision, "image_size": None}
            settings = {**settings, "model": asked | own}
            if task == "vqa":
                has_branch = config.model_type == "instructblip"
                settings |= {"stage1": None, "question_in_qformer": has_branch}
        if task == "retrieval":  # the head that writes isn't needed
            settings = {**settings, "objectives": {**settings["objectives"], "itg": 0.0}}
        model, processor = load_for(task, {**settings, "quantize": self.quantize}, dtype)
        kept = {
            part: "full" if mode == "full" and part not in self.quantize else "frozen"
            for part, mode in settings["parts"].items()
        }
        set_trainable(model, kept, dtype)
        return model.to(accelerator.device).eval(), processor

    def _load_runs(self, accelerator: Accelerator) -> tuple[Any, Any]:
        given: dict[str, Any] = {"base": self.base, "revision": self.revision}
        given["quantize"] = dict(self.quantize)
        first, *_ = self.runs
        notes = self.notes()
        base, revision = self.base, self.revision
        if base is None:
            base, revision = notes["base"], notes["revision"]
        config = read_config(base, revision, ("blip-2", "instructblip"))
        dtype = frozen_dtype(accelerator, config)
        if self.runs == {first: 1.0}:
            model, processor, _ = load_finetuned(first, dtype=torch.float32, **given)
            set_trainable(model, notes["parts"], dtype)
        else:
            adapters, processor, _ = load_mixed(self.runs, dtype=dtype, **given)
            model = adapters.model
        return model.to(accelerator.device).eval(), processor


def prompt_note(subject: Subject, task: str, settings: Mapping[str, Any]) -> str | None:
    """In words, that the settings ask a model with another prompt than it was trained with."""
    notes = subject.notes()
    trained, asked = notes.get("prompt"), settings.get("prompt")
    if notes.get("task") != task or trained in (None, asked) or asked is None:
        return None
    return (
        f"{subject.name} was trained with the prompt {trained!r} and is asked with {asked!r}, as "
        f"the settings say; as it was trained: --prompt {shlex.quote(trained)}"
    )
