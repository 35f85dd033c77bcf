"""All that a card is made of: what a run's folder tells, what a person says, how it is given."""

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from safetensors import safe_open

from blip2ft.card.known import BASES, KnownBase
from blip2ft.card.markdown import own_words, plain
from blip2ft.card.said import NOT_SAID, QUESTIONS
from blip2ft.finetuned import adapter_folder
from blip2ft.models.adapters import FULL_FILE, LORA_FILE, read_description
from blip2ft.models.clip_vision import MARK
from blip2ft.publish.private import scrub, scrub_text
from blip2ft.report.reading import Contents, read_run
from blip2ft.training.learned_from import FILE as LEARNED_FROM

UNKNOWN_REPO = "OWNER/NAME"  # what code says where the repository isn't known yet


@dataclass(frozen=True)
class Release:
    """How a model is given away.

    Args:
        repo: Where on the hub, OWNER/NAME; None where that isn't known yet.
        merged: As a whole model in transformers' format, else as an adapter of its base.
        weights: Bytes of each file of weights; None takes those of the run's adapter.
        fields: Of the evaluated records, by which results are told apart; None takes those with a
            few values.
        examples: How many answers that got worse are shown, with their references.
    """

    repo: str | None = None
    merged: bool = False
    weights: Mapping[str, int] | None = None
    fields: tuple[str, ...] | None = None
    examples: int = 3


THE_ADAPTER = Release()  # to where isn't known


@dataclass(frozen=True)
class Facts:
    """What a card says, before it is put into words.

    Args:
        run: The folder's contents.
        settings, environment, resources: Of it, without paths of a machine.
        trained: What blip2ft.json says, without paths either.
        learned: training-data.json, {} where an earlier version trained the run.
        weights: Bytes of each file of weights that is given away.
        parameters: How many numbers were trained.
        base: Hub id of the model that training began with, None where it has none.
        folder: The last name of that model's folder; None of a hub id.
        is_clip: Whether its image encoder is CLIP's, which stock transformers has no class for.
        asked: Questions that were asked in vain while the card was made.
    """

    run: Contents
    settings: Mapping[str, Any]
    environment: Mapping[str, Any]
    resources: Mapping[str, Any]
    trained: Mapping[str, Any]
    learned: Mapping[str, Any]
    weights: Mapping[str, int]
    parameters: int
    base: str | None
    folder: str | None
    is_clip: bool
    release: Release
    said: Mapping[str, str | list[str]]
    asked: set[str] = field(default_factory=set)

    @property
    def task(self) -> str:
        return self.run.task

    @property
    def known(self) -> KnownBase | None:
        """What is known of the base, if it is one that we know."""
        return BASES.get(self.base or "")

    @property
    def repo(self) -> str:
        return self.release.repo or UNKNOWN_REPO

    @property
    def base_name(self) -> str:
        """The base's last name."""
        return (self.base or self.folder or "").rpartition("/")[-1]

    @property
    def is_streamed(self) -> bool:
        """Whether it learned from shards, as in pre-training."""
        return bool(self.settings["data"].get("stream"))

    @property
    def is_lora_alone(self) -> bool:
        """Whether peft alone loads all that was trained, at the image size of the training."""
        resized = self.settings["model"]["image_size"] is not None
        whole = not resized and FULL_FILE not in self.files and not self.is_clip
        return whole and self.trained.get("lora") is not None

    @property
    def devices(self) -> list[str]:
        """Names of what it was trained on; processes on CPUs share those of their machine."""
        found = self.resources.get("devices") or []
        if set(found) != {"cpu"}:
            return list(found)
        return [f"{self.resources.get('cpu') or 'CPU'} (CPU)"] * self.resources.get("machines", 1)

    @property
    def hardware(self) -> str:
        """The devices, as text, with how many there are of each; "" where that isn't known."""
        counts = Counter(self.devices or self.environment.get("gpus") or ())
        return ", ".join(name if n == 1 else f"{n} x {name}" for name, n in counts.items())

    @property
    def files(self) -> set[str]:
        """The files of the run's adapter, whatever is given away."""
        folder = adapter_folder(self.run.folder)
        return {path.name for path in folder.iterdir()}

    def shown(self, text: object) -> str:
        """Text of the data as a reader sees it, without paths of a machine."""
        return plain(scrub_text(str(text), {}))

    def answer(self, question: str) -> str | None:
        """What a person said, on one line; None where nothing was, which is then missing."""
        found = self.said.get(question)
        if found is None and QUESTIONS[question].needed:
            self.asked.add(question)
        if found is None:
            return None
        return " ".join((", ".join(found) if isinstance(found, list) else found).split())

    def inline(self, question: str) -> str:
        """What a person said, as Markdown on one line, or that nothing was."""
        found = self.answer(question)
        return NOT_SAID if found is None else own_words(found)

    def text(self, question: str) -> str:
        """What a person said, as Markdown of any length, or that nothing was."""
        found = self.said.get(question)
        if not isinstance(found, str):
            return self.inline(question)
        return own_words(found.strip())


def read_facts(folder: Path, said: Mapping[str, str | list[str]], release: Release) -> Facts:
    """Read a run.

    Raises ValueError where there is no run, where it hasn't ended or trained nothing, and for a
    file of it that is damaged.
    """
    if not (folder / "config.yaml").is_file():
        raise ValueError(f"{folder} is no run: it has no config.yaml; pass the --output of a run")
    run = read_run(folder)
    if run.settings.get("evaluate_only"):
        raise ValueError(
            f"{folder} only evaluated a model (evaluate_only) and trained nothing, so there is "
            "nothing to write a card of; its scores are on the page of blip2ft report"
        )
    adapter = adapter_folder(folder)
    trained = read_description(adapter)
    name, hub = trained["base"], said.get("base_model")
    at_home = Path(name).is_absolute()
    base = hub if isinstance(hub, str) else None if at_home else name
    found = _weights(adapter)
    return Facts(
        run=run,
        settings=scrub(run.settings, {}),
        environment=scrub(run.environment, {}),
        resources=scrub(run.resources, {}),
        trained=scrub(trained, {}),
        learned=_learned(folder),
        weights=found if release.weights is None else release.weights,
        parameters=sum(_parameters(adapter / file) for file in found),
        base=base,
        folder=Path(name).name if at_home and base is None else None,
        is_clip=_is_clip(name, trained.get("revision")),
        release=release,
        said=scrub(said, {}),
    )


def _is_clip(base: str, revision: str | None) -> bool:
    """Whether a base has CLIP's image encoder; False too where it isn't here any more."""
    path = Path(base, "config.json") if Path(base).is_absolute() else None
    if path is None:
        found = try_to_load_from_cache(base, "config.json", revision=revision)
        path = Path(found) if isinstance(found, str) else None
    if path is None or not path.is_file():
        return False
    vision = json.loads(path.read_text(encoding="utf-8")).get("vision_config", {})
    return str(vision.get("hidden_act")).startswith(MARK)


def _weights(adapter: Path) -> dict[str, int]:
    files = (adapter / LORA_FILE, adapter / FULL_FILE)
    return {file.name: file.stat().st_size for file in files if file.is_file()}


def _parameters(file: Path) -> int:
    with safe_open(file, framework="np") as tensors:
        names = tensors.keys()
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in names)


def _learned(folder: Path) -> dict[str, Any]:
    path = folder / LEARNED_FROM
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is damaged ({error}); delete it to have a card without"
        ) from error
