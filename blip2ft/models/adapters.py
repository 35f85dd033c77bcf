"""LoRA on parts, and the trained weights as files: an adapter in peft's layout and the rest.

A folder of trained weights holds
    adapter_config.json, adapter_model.safetensors   the LoRA of all parts, as peft writes them
    trained.safetensors                              parts trained in full, query tokens included
    blip2ft.json                                     base, revision, parts, prompt, image size
"""

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoraConfig,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from blip2ft.models.identity import Base
from blip2ft.models.lora_init import (
    FROM_WEIGHT,
    INITS,
    check_init,
    frozen_starts,
    start_from_weight,
    whole_factors,
)
from blip2ft.models.parts import part_of
from blip2ft.whole import check_free, whole_folder

logger = logging.getLogger(__name__)

DESCRIPTION_FILE = "blip2ft.json"
FULL_FILE = "trained.safetensors"
LORA_FILE = "adapter_model.safetensors"


def lora_targets(model: nn.Module, parts: Mapping[str, str]) -> list[str]:
    """Full names of the linear layers of the parts in mode "lora", worked out from the model.

    The language model's output head is left alone: it is usually tied to the input embedding,
    and an update of one of the two can't be merged. Raises ValueError for a part without any.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    names = []
    for part, mode in parts.items():
        if mode != "lora":
            continue
        found = [
            name
            for name, module in model.named_modules()
            # quantised layers are subclasses of Linear
            if isinstance(module, nn.Linear) and module is not head and part_of(name) == part
        ]
        if not any(part_of(name) == part for name, _ in model.named_parameters()):
            raise ValueError(
                f"parts.{part} is lora, but a {type(model).__name__} has no such part; set it to "
                "frozen"
            )
        if not found:
            raise ValueError(f"part {part!r} is set to lora but has no linear layer; use full")
        names += found
    return names


def attach_lora(
    model: nn.Module,
    parts: Mapping[str, str],
    *,
    r: int = 16,
    alpha: int = 32,
    dropout: float = 0.05,
    dora: bool = False,
    rslora: bool = False,
    init: str = "default",
    device: torch.device | None = None,
) -> LoraConfig | None:
    """Put a LoRA on every linear layer of the parts in mode "lora", in place.

    The model stays of its stock class, its weights and answers stay as they are. Returns peft's
    config, None where no part is adapted.

    dora: magnitude and direction apart (arXiv 2402.09353); rslora: scaled by alpha / sqrt(r)
      (arXiv 2312.03732); init: where the factors start, one of `INITS` (see lora_init.py), where it
      is computed from the weights, one after the other on `device`, by default the model's; "eva"
      is as "default" until `blip2ft.training.eva.start_from_inputs` has seen samples.

    Raises ValueError for a part without linear layers, a rank or a start that can't be.
    """
    check_init(init, r)
    targets = lora_targets(model, parts)
    if not targets:
        return None
    if r < 1:
        raise ValueError(f"lora.r is {r}: the rank must be at least 1")
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        use_dora=dora,
        use_rslora=rslora,
        init_lora_weights=INITS[init],
        target_modules=targets,
    )
    inject_adapter_in_model(config, model)
    if init in FROM_WEIGHT:
        layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
        of_model = next(model.parameters()).device
        if device is None or of_model.type == "meta":
            device = of_model
        if device.type != "meta":  # a plan computes nothing
            logger.info(
                "lora.init %s: decomposing the weights of %d layers, on %s",
                init,
                len(layers),
                device,
            )
        for layer in layers:
            start_from_weight(layer, init, device)
    return config


def merge_lora(model: nn.Module) -> None:
    """Add every LoRA into the weight that it adapts and take it off, in place."""
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            # safe_merge looks for NaN before it writes
            module.merge(safe_merge=True)
    _take_off_lora(model)


def _take_off_lora(model: nn.Module) -> None:
    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that train, by name; of tied ones the first name."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def save_trained(
    model: nn.Module, folder: Path, lora: LoraConfig | None, description: Mapping[str, Any]
) -> None:
    """Write what was trained to `folder` (see the module's docstring), whole or not at all.

    Raises ValueError where the folder has something else in it than an adapter.
    """
    if not (folder / DESCRIPTION_FILE).is_file():
        check_free(folder)
    with whole_folder(folder, replace=True) as partial:
        _write_trained(model, partial, lora, description)


def _write_trained(
    model: nn.Module, folder: Path, lora: LoraConfig | None, description: Mapping[str, Any]
) -> None:
    full = {n: t.cpu().contiguous() for n, t in trainable_state(model).items() if ".lora_" not in n}
    if full:
        save_file(full, folder / FULL_FILE, {"format": "pt"})
    if lora is not None:
        # of a model in shards, state_dict() gives shards, though its weights are gathered
        own = {name: parameter.detach() for name, parameter in model.named_parameters()}
        # told no, peft doesn't look the base up on the hub, to see whether its vocabulary grew
        state = get_peft_model_state_dict(model, own, save_embedding_layers=False)
        if frozen_starts(model):
            state, lora = whole_factors(model, state), _of_twice_the_rank(lora)
        lora.base_model_name_or_path = description["base"]
        lora.revision = description.get("revision")
        lora.save_pretrained(str(folder))
        # the layout of a saved PeftModel, so that PeftModel.from_pretrained reads it
        state = {f"base_model.model.{n}": t.cpu().contiguous() for n, t in state.items()}
        save_file(state, folder / LORA_FILE, {"format": "pt"})
    (folder / DESCRIPTION_FILE).write_text(json.dumps(dict(description), indent=2) + "\n")


def _of_twice_the_rank(lora: LoraConfig) -> LoraConfig:
    """The config of a LoRA whose frozen start is a half of each factor, at the same scale."""
    scale = lora.lora_alpha / (math.sqrt(lora.r) if lora.use_rslora else lora.r)
    alpha: Any = scale * 2 * lora.r
    alpha = round(alpha) if math.isclose(alpha, round(alpha)) else alpha
    return replace(lora, r=2 * lora.r, lora_alpha=alpha, use_rslora=False)


def describe_training(task: str, base: Base, **rest: Any) -> dict[str, Any]:
    """What blip2ft.json says of trained weights."""
    return {"task": task, **asdict(base), **rest}


def read_description(folder: Path) -> dict[str, Any]:
    """What `save_trained` wrote about the weights in `folder`."""
    path = folder / DESCRIPTION_FILE
    if not path.is_file():
        raise ValueError(
            f"{folder} has no {DESCRIPTION_FILE}, so it holds no weights that blip2ft trained; "
            "pass a run's adapter folder, such as runs/NAME/adapter"
        )
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}); export or train the run again") from error


def load_trained(model: nn.Module, folder: Path) -> None:
    """Put the trained weights in `folder` on `model`, in place; LoRA layers are attached.

    Raises ValueError for weights that the model has no place for, as where it is quantised, before
    any weight is changed.
    """
    description = read_description(folder)
    full_path, lora_path = folder / FULL_FILE, folder / LORA_FILE
    origin = f"it was trained on {description.get('base')!r} at {description.get('image_size')} px"
    full = load_file(full_path) if full_path.is_file() else {}
    own = dict(model.named_parameters())
    check_fit(full_path, full, {name: own[name] for name in full if name in own}, origin)
    if lora_path.is_file():
        state = load_file(lora_path)
        state = {name.removeprefix("base_model.model."): t for name, t in state.items()}
        try:
            inject_adapter_in_model(LoraConfig.from_pretrained(str(folder)), model)
        except ValueError as error:  # peft finds none of the layers, and lists them all
            raise ValueError(
                f"{lora_path} doesn't fit the model: it has none of the layers; {origin}"
            ) from error
        try:
            places = get_peft_model_state_dict(model, save_embedding_layers=False)
            check_fit(lora_path, state, places, origin)
        except ValueError:
            _take_off_lora(model)
            raise
        set_peft_model_state_dict(model, state)
    with torch.no_grad():
        for name, tensor in full.items():
            own[name].copy_(tensor)


def check_fit(
    path: Path, state: Mapping[str, Tensor], places: Mapping[str, Tensor], origin: str
) -> None:
    """Raise ValueError where the tensors of a file and their places in the model differ.

    A quantised weight has no place for a tensor, though in 8 bits it has the shape.
    """
    for name in sorted(state.keys() | places.keys()):
        if name in places and not places[name].is_floating_point():
            raise ValueError(
                f"{path} has {name}, trained in full, and can't be put on a model where that is "
                "quantised; export the run, and quantise what is exported"
            )
        in_file = tuple(state[name].shape) if name in state else "missing"
        in_model = tuple(places[name].shape) if name in places else "nothing of that name"
        if in_file != in_model:
            raise ValueError(
                f"{path} doesn't fit the model: {name} is {in_file}, the model has {in_model}; "
                f"{origin}"
            )
