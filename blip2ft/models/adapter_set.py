"""Several adapters on one base: side by side, switched, mixed and taken off while it answers.

adapters = Adapters(model)
adapters.load(Path("runs/birds/adapter"), "birds")
adapters.load(Path("runs/signs/adapter"), "signs")
with adapters.answering("birds"):
    caption(model, processor, images)
adapters.mix({"birds": 0.7, "signs": 0.3})

A mix of weights w_i answers as a model with the weights

    W + sum_i w_i (W_i - W)

where W is the base's weight and W_i that of adapter i alone: W with its scaled B A on top, or what
its DoRA makes of W; of what it trained in full, such as query tokens, heads and the temperature,
what it holds; of the rest, W. Weights need not sum to 1.

What is held: the LoRA factors of every adapter, once, under a name of its own in peft's layers; the
tensors that an adapter trained in full, in the model's dtype on its device; the base's own of
these, once; and while a mix of such tensors is on, the mix.
"""

import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Blip2ForConditionalGeneration, InstructBlipForConditionalGeneration

from blip2ft.models.adapters import (
    FULL_FILE,
    LORA_FILE,
    check_fit,
    read_description,
)
from blip2ft.models.identity import check_base, locate_source
from blip2ft.models.peft_layers import inject, lora_places, set_active, take_off
from blip2ft.models.retriever import Retriever


@dataclass(frozen=True)
class _Adapter:
    """key: its name in peft's layers; layers: those that have its LoRA; full: other tensors."""

    key: str
    layers: tuple[str, ...]
    dora: bool
    full: dict[str, Tensor]


class Adapters:
    """The adapters of one base model; nothing trains while they are on it.

    Every method may be called from any thread. What changes the model waits until the answers that
    are under way are done (see `answering`); answers that start meanwhile wait for the change.

    active: the adapters that answer now, with their weights; none is the base itself.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        base: str | None = None,
        revision: str | None = None,
        stage1: str | None = None,
    ) -> None:
        """model: a base as it is loaded, on its device.

        base: what it was loaded from, where the model doesn't say; revision: of a hub base;
        stage1: where the text branch of its Q-Former came from, as for `load_vqa`.
        """
        if any(isinstance(module, LoraLayer) for module in model.modules()):
            raise ValueError(
                "the model has a LoRA already; start from the base, or merge it (merge_lora)"
            )
        self.model = model
        self.active: dict[str, float] = {}
        self._name = base if base is not None else str(getattr(model, "name_or_path", ""))
        if not self._name:
            raise ValueError("what the model was loaded from isn't known; say it (base=)")
        self._revision = revision
        self._stage1 = None if stage1 is None else locate_source(stage1)
        # the same parameters keep their places within peft's layers, where their names are longer
        self._own = dict(model.named_parameters())
        self._base_tensors: dict[str, Tensor] = {}
        self._adapters: dict[str, _Adapter] = {}
        self._loaded = 0
        self._changes = threading.Condition()
        self._waiting = 0
        self._answering: list[int] = []

    @property
    def names(self) -> list[str]:
        """The adapters that are loaded, in order."""
        return list(self._adapters)

    def load(self, folder: Path, name: str) -> None:
        """Load the adapter in `folder` beside the others; what answers stays as it is.

        Raises ValueError for a name that is taken, and for an adapter of another base, another
        task's class or another image size, and for one that trained in full what the base holds
        quantised, before anything is changed.
        """
        folder = Path(folder)
        self._check_description(folder, read_description(folder))
        full_path, lora_path = folder / FULL_FILE, folder / LORA_FILE
        full = load_file(full_path) if full_path.is_file() else {}
        origin = f"it was trained on {self._name!r}"
        places = {key: self._own[key] for key in full if key in self._own}
        check_fit(full_path, full, places, origin)
        state: dict[str, Tensor] = {}
        config = None
        if lora_path.is_file():
            config = LoraConfig.from_pretrained(str(folder))
            state = {
                key.removeprefix("base_model.model."): tensor
                for key, tensor in load_file(lora_path).items()
            }
            check_fit(lora_path, state, lora_places(self.model, config, state), origin)
        with self._changing():
            if name in self._adapters:
                raise ValueError(
                    f"an adapter {name!r} is loaded already; unload it, or take another name"
                )
            self._loaded += 1
            key = f"adapter_{self._loaded}"
            layers = tuple(sorted({key.partition(".lora_")[0] for key in state}))
            if config is not None:
                inject(self.model, config, layers, state, key)
            for place in full:
                self._base_tensors.setdefault(place, self._own[place].data)
            held = {place: tensor.to(self._own[place]) for place, tensor in full.items()}
            dora = config is not None and bool(config.use_dora)
            self._adapters[name] = _Adapter(key, layers, dora, held)
            self._activate(self.active)  # injecting switches to what is new

    def switch(self, name: str | None) -> None:
        """Answer with the adapter `name` alone; None is the base."""
        self.mix({} if name is None else {name: 1.0})

    def mix(self, weights: Mapping[str, float]) -> None:
        """Answer with a weighted sum of what the adapters change (see the module's docstring).

        Raises ValueError for unknown names, weights that aren't finite, and where a DoRA, which
        scales whole weights, meets weights that another one trained in full.
        """
        with self._changing():
            self._activate(self._checked(weights))

    def unload(self, name: str) -> None:
        """Take an adapter off and forget it; if it answers, the base does from then on.

        Without any adapter the model is the base again, bit for bit.
        """
        with self._changing():
            self._checked({name: 1.0})
            if name in self.active:
                self._activate({})
            gone = self._adapters.pop(name)
            take_off(self.model, gone.layers, gone.key)
            wanted = {place for held in self._adapters.values() for place in held.full}
            self._base_tensors = {k: t for k, t in self._base_tensors.items() if k in wanted}

    @contextmanager
    def answering(self, weights: str | Mapping[str, float] | None = None) -> Iterator[None]:
        """While the body runs, nothing is switched, mixed, loaded or unloaded.

        weights: answer with this adapter or mix, switching to it first if it isn't on, and keeping
          it on afterwards; {} is the base; None leaves it at what is on.
        Several threads may be inside at once, with one adapter. Raises RuntimeError where a body
        asks for a change, which would wait for its own end.
        """
        wanted = {weights: 1.0} if isinstance(weights, str) else weights
        me = threading.get_ident()
        with self._changes:
            if me not in self._answering:  # within an answer, waiting would be for oneself
                self._changes.wait_for(lambda: not self._waiting)
            if wanted is not None and self._checked(wanted) != self.active:
                with self._changing():
                    self._activate(self._checked(wanted))
            self._answering.append(me)
        try:
            yield
        finally:
            with self._changes:
                self._answering.remove(me)
                self._changes.notify_all()

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Alone with the model: no answer is under way, and none starts."""
        with self._changes:
            if threading.get_ident() in self._answering:
                raise RuntimeError(
                    "the adapters were to be changed within `answering`, which keeps them as they "
                    "are; leave its body first"
                )
            self._waiting += 1
            try:
                self._changes.wait_for(lambda: not self._answering)
                yield
            finally:
                self._waiting -= 1
                self._changes.notify_all()

    def _check_description(self, folder: Path, description: Mapping[str, Any]) -> None:
        task = description["task"]
        reads = task == "vqa" and description.get("question_in_qformer", True)
        wanted = InstructBlipForConditionalGeneration if reads else Blip2ForConditionalGeneration
        if task == "retrieval":
            wanted = Retriever
        if not isinstance(self.model, wanted):
            raise ValueError(
                f"{folder} was trained for {task}, on a {wanted.__name__}; the model is a "
                f"{type(self.model).__name__}: take an adapter of its own task"
            )
        check_base(folder, description, self._name, self._revision)
        if description.get("stage1") != self._stage1:
            raise ValueError(
                f"{folder} was trained on another base: its stage1 is {description.get('stage1')!r}"
                f", the model's {self._stage1!r}; adapters of one base go together"
            )
        config: Any = self.model.config
        size, here = description.get("image_size"), config.vision_config.image_size
        if size not in (None, here):
            raise ValueError(
                f"{folder} was trained at {size} px, the model is at {here} px; load the base with "
                f"image_size={size}"
            )

    def _checked(self, weights: Mapping[str, float]) -> dict[str, float]:
        for name, weight in weights.items():
            if name not in self._adapters:
                loaded = ", ".join(map(repr, self._adapters)) or "none"
                raise ValueError(f"there is no adapter {name!r}; loaded are {loaded}")
            if not math.isfinite(weight):
                raise ValueError(f"the weight of adapter {name!r} is {weight}: allowed is a number")
        mixed = {name: float(weight) for name, weight in weights.items() if weight}
        for name in mixed:
            own = self._adapters[name]
            scaled = {f"{layer}.weight" for layer in own.layers} if own.dora else set()
            for other in mixed:
                if scaled & self._adapters[other].full.keys():
                    raise ValueError(
                        f"{name!r} is a DoRA on weights that {other!r} trained in full, and what "
                        "it makes of them is no sum; mix adapters that train other parts"
                    )
        return mixed

    @torch.no_grad()
    def _activate(self, weights: dict[str, float]) -> None:
        mixed = {self._adapters[name].key: weight for name, weight in weights.items()}
        for module in self.model.modules():
            if isinstance(module, LoraLayer):
                set_active(module, mixed)
        for place, base in self._base_tensors.items():
            holders = [
                (weight, self._adapters[name].full[place])
                for name, weight in weights.items()
                if place in self._adapters[name].full
            ]
            self._own[place].data = _weighted(base, holders)
        self.active = dict(weights)


def _weighted(base: Tensor, holders: list[tuple[float, Tensor]]) -> Tensor:
    """base + sum of weight * (tensor - base), exact where it is one of them."""
    if not holders:
        return base
    if len(holders) == 1 and holders[0][0] == 1:
        return holders[0][1]
    mixed = base.float() * (1 - sum(weight for weight, _ in holders))
    for weight, tensor in holders:
        mixed += weight * tensor.float()
    return mixed.to(base.dtype)
