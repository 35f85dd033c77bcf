"""A model in shards (FSDP2): each process keeps its slice of weights, gradients and averages.

The layers of ViT, Q-Former and language model are gathered one by one as they compute, and let go
of again. All else is gathered from the forward to the backward pass: embeddings, heads, projection
and queries, tied weights among them, and the Q-Former of a retriever, whose layers are called in
pieces (see models/qformer.py). Frozen weights and those that train, of another dtype, lie in shards
side by side. What can't be cut stays whole on every process: quantised weights, which are frozen
and small, and numbers such as the temperature.

Whatever isn't a training step, such as evaluation, computes on `gathered` weights, as on a model
that was never cut. Checkpoints hold full tensors, so that a run goes on under any launcher.
"""

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from transformers.modeling_layers import GradientCheckpointingLayer

from blip2ft.models.parts import FROZEN_START
from blip2ft.models.retriever import Retriever

Model = TypeVar("Model", bound=nn.Module)

ASKED = "ACCELERATE_USE_FSDP"  # by `accelerate launch`, as are the settings FSDP_*


@dataclass(frozen=True)
class Sharding:
    """How `accelerate launch` asked for FSDP.

    reshard: let go of a layer's gathered weights after its forward too, and gather them again for
      its backward (as ZeRO-3 does); else keep them from one to the other (as ZeRO-2 does).
    """

    reshard: bool


def asked_sharding() -> Sharding | None:
    """What `accelerate launch --use_fsdp`, or its config file, asked for; None where it didn't.

    Layers to cut, dtypes and checkpoints are chosen here, whatever it says of them.

    Raises ValueError for FSDP's first version, and for what isn't done here.
    """
    if not _is_true(ASKED):
        return None
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise ValueError(
            "accelerate was told to use FSDP's first version; set fsdp_version to 2 in its config "
            "file, or take recipes/accelerate/fsdp2.yaml"
        )
    for variable, instead in (
        ("FSDP_OFFLOAD_PARAMS", "shards stay on the GPU: set it to false, and see docs/memory.md"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "set it to false, and model.gradient_checkpointing"),
    ):
        if _is_true(variable):
            raise ValueError(f"accelerate was told {variable.lower()}: true; {instead}")
    return Sharding(reshard=_is_true("FSDP_RESHARD_AFTER_FORWARD", "true"))


def check_sharded(kind: str, precision: str) -> None:
    """Raise ValueError where shards were asked for and the run has what doesn't go with them.

    kind: the optimizer's, see adamw.py; precision: as `Accelerator.mixed_precision` says it.
    """
    if asked_sharding() is None:
        return
    if kind != "adamw":
        raise ValueError(
            f"optimizer.kind is {kind}, whose averages can't be cut for FSDP; take adamw, which "
            "FSDP cuts by the number of processes, or launch without FSDP"
        )
    if precision == "fp16":
        raise ValueError(
            "model.precision is fp16, which isn't done under FSDP; take bf16 or fp32, or launch "
            "without FSDP"
        )


def shard(model: nn.Module, accelerator: Accelerator) -> None:
    """Cut `model` into shards, in place, if `accelerate launch` asked for it.

    model: on its device, frozen as it shall be, the same on all processes; the optimizer is made
      afterwards, of the parameters that there are then.

    With one process nothing is cut. Trained weights and starting values are those of the first
    process, as DDP has it.
    """
    asked = asked_sharding()
    if asked is None or accelerator.num_processes == 1:
        return
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or name.endswith(FROZEN_START):
            torch.distributed.broadcast(parameter.data, 0)
    whole = {p for p in model.parameters() if not p.is_floating_point() or p.ndim == 0}
    for parameter in whole:
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_average)
    # of outputs that nothing here changes in place
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")
    # untold, it would be the GPUs', also of processes that are to leave them alone
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for layer in layers_of(model):
        again = asked.reshard
        fully_shard(layer, mesh=mesh, reshard_after_forward=again, ignored_params=whole)
    fully_shard(model, mesh=mesh, ignored_params=whole)
    # The first to run a forward becomes the root, and generation runs the layers alone.
    root: Any = model
    root.begin_shards = lambda: None
    register_fsdp_forward_method(root, "begin_shards")
    root.begin_shards()
    del root.begin_shards
    root.reshard()


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The layers that are gathered one by one: the outermost that transformers marks as such."""
    skipped = (model.qformer,) if isinstance(model, Retriever) else ()

    def look(module: nn.Module) -> Iterator[nn.Module]:
        for child in module.children():
            if isinstance(child, GradientCheckpointingLayer):
                yield child
            elif child not in skipped:
                yield from look(child)

    return list(look(model))


def prepare(
    accelerator: Accelerator, model: Model, optimizer: Optimizer
) -> tuple[Model, Optimizer]:
    """As `accelerator.prepare` does; without DDP where the model is in shards."""
    if not isinstance(model, FSDPModule):
        return accelerator.prepare(model, optimizer)
    # told that it won't train, Accelerate leaves out DDP, and nothing else
    model = accelerator.prepare_model(model, device_placement=False, evaluation_mode=True)
    return model, accelerator.prepare(optimizer)


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Within, every process holds the whole model, plain tensors, and computes for itself.

    Every process must enter and leave. What is changed of the weights within is lost. A model that
    isn't in shards stays as it is.
    """
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    reshards = asked_sharding()
    for module in parts:
        module.unshard()
        module.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for module in parts:
            again = module is not model and reshards is not None and reshards.reshard
            module.set_reshard_after_forward(again, recurse=False)
            module.reshard()


def whole_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor of which each process has a shard, on its device; every process must call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_shard(tensor: Tensor) -> Tensor:
    """What this process has of a tensor: its shard, or all of one that isn't in shards."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def give_shards(values: Any) -> None:
    """Take part in `whole_tensor` of all tensors in a tree of mappings, lists and tuples."""
    if isinstance(values, Mapping):
        values = list(values.values())
    if isinstance(values, list | tuple):
        for value in values:
            give_shards(value)
    elif isinstance(values, Tensor):
        whole_tensor(values)


def like(place: Tensor, full: Tensor) -> Tensor:
    """`full`, the same on every process, cut as `place` is; as it is where that isn't in shards."""
    if not isinstance(place, DTensor):
        return full
    # None: each process has all of it, so none sends any
    return distribute_tensor(full, place.device_mesh, place.placements, src_data_rank=None)


def _average(parameter: Tensor) -> None:
    """Make a gradient the mean over the processes; of earlier micro-batches it is one already."""
    assert parameter.grad is not None
    torch.distributed.all_reduce(parameter.grad)
    parameter.grad /= torch.distributed.get_world_size()


def _is_true(variable: str, default: str = "false") -> bool:
    return os.environ.get(variable, default).lower() in ("true", "1")
