"""LoRAs in the layers of one model, by keys: put in, set to answer with weights, taken off."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import LoraVariant
from torch import Tensor, nn


def lora_places(
    model: nn.Module, config: LoraConfig, state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Empty tensors of the shapes that a LoRA's must have on a model, by name."""
    modules = dict(model.named_modules())
    places = {}
    for layer in {key.partition(".lora_")[0] for key in state}:
        module = modules.get(layer)
        if isinstance(module, LoraLayer):
            module = module.get_base_layer()
        if not isinstance(module, nn.Linear):
            continue
        shapes: dict[str, tuple[int, ...]] = {
            "lora_A.weight": (config.r, module.in_features),
            "lora_B.weight": (module.out_features, config.r),
        }
        if config.use_dora:
            shapes["lora_magnitude_vector"] = (module.out_features,)
        for factor, shape in shapes.items():
            places[f"{layer}.{factor}"] = torch.empty(shape, device="meta")
    return places


def inject(
    model: Any, config: LoraConfig, layers: Sequence[str], state: dict[str, Tensor], key: str
) -> None:
    """Put a LoRA with the tensors `state` on `layers` of a model, beside others; it is on then."""
    config.target_modules = set(layers)
    config.init_lora_weights = True  # what a start of its own would draw is overwritten
    config.inference_mode = True
    others = model.__dict__.pop("peft_config", {})  # peft warns of them
    inject_adapter_in_model(config, model, adapter_name=key)
    model.peft_config = others | model.peft_config
    set_peft_model_state_dict(model, state, adapter_name=key)
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.train(model.training)


def take_off(model: nn.Module, layers: Sequence[str], key: str) -> None:
    """Take a LoRA off its layers; one that has no other is the model's own again."""
    for layer in layers:
        module: Any = model.get_submodule(layer)
        module.delete_adapter(key)
        if not module.lora_A:
            parent, _, child = layer.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    configs: Any = getattr(model, "peft_config", {})
    configs.pop(key, None)
    if not configs and hasattr(model, "peft_config"):
        del model.peft_config


def set_active(layer: LoraLayer, weights: Mapping[str, float]) -> None:
    """Let the adapters in `weights` answer in `layer`, each with its weight; keys are peft's."""
    here = [key for key in weights if key in layer.lora_A]
    layer.set_adapter(here, inference_mode=True)
    for key in here:
        variant = layer.lora_variant.get(key)
        if variant is None:
            layer.set_scale(key, weights[key])
            continue
        variant = variant.variant if isinstance(variant, _Share) else variant
        alone = here == [key] and weights[key] == 1
        layer.lora_variant[key] = variant if alone else _Share(variant, weights[key])


class _Share(LoraVariant):
    """A share of what a variant of LoRA adds to the base's result, whatever others add.

    peft's own DoRA takes the result of the adapters before it for the base's.
    """

    def __init__(self, variant: LoraVariant, weight: float) -> None:
        self.variant, self.weight = variant, weight

    def forward(
        self, module: Any, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any
    ) -> Tensor:
        layer = module.get_base_layer()
        # x has the factors' dtype by now
        given = x.to(layer.weight.dtype) if layer.weight.is_floating_point() else x
        base = layer(given)
        own = self.variant.forward(
            module, active_adapter=active_adapter, x=x, result=base, **kwargs
        )
        return result + self.weight * (own - base)
