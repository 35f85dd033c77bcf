"""DeepSpeed's ZeRO beside one process: what comes out alike, and what a run here would miss.

    pip install deepspeed==0.19.8
    DS_ACCELERATOR=cpu torchrun --standalone --nproc_per_node 2 scripts/bench/zero.py

A small captioner takes three steps of two micro-batches, by AdamW in groups of their own rates, on
one process and under ZeRO-2 and ZeRO-3, whose engine is called by hand here. Then three things that
docs/launching.md names, under From DeepSpeed: each says whether DeepSpeed still does so.
"""

import json
import logging
import warnings
from collections.abc import Callable
from typing import Any

import deepspeed
import torch
import torch.distributed
from accelerate import Accelerator, DeepSpeedPlugin
from captioners import captioner
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from loss_memory import captions
from plain import turn_off_dropout
from torch import Tensor, nn

from blip2ft.models.parts import set_trainable
from blip2ft.tasks.caption import caption_loss, count_labels
from blip2ft.training.optimizer import make_optimizer

PARTS = {"vision": "full", "qformer": "full", "projection": "full", "language": "frozen"}
STEPS, BATCH, MICRO, CLIP = 3, 8, 2, 0.5
# softmax doesn't see them: their gradient is rounding alone, of which Adam makes whole steps
BLIND = (".key.bias", ".k_proj.bias")
Course = tuple[list[float], dict[str, Tensor]]  # loss and norm of each step; weights at the end


def main() -> None:
    # else a C++ operator is compiled at the first start, and one that was killed leaves a lock
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", FutureWarning)  # of a gather that torch 2.13 names otherwise
    torch.set_num_threads(1)
    deepspeed.init_distributed(dist_backend="gloo")
    first = torch.distributed.get_rank() == 0
    alone, start = by_itself()
    result: dict[str, Any] = {"deepspeed": deepspeed.__version__, "torch": torch.__version__}
    result["moved"] = farthest(start, alone[1])
    for stage in (2, 3):
        numbers, weights = under_zero(stage)
        apart = max(abs(a - b) / abs(a) for a, b in zip(alone[0], numbers, strict=True))
        result[f"zero{stage}"] = {"loss_and_norm": apart, "weights": farthest(alone[1], weights)}
    result["takes_a_number_as_parameter"] = takes_a_number()
    result["tells_averages_of_two_groups"] = tells_averages()
    result["moved_within_accelerates_backward"] = moved_within_backward()
    if first:
        print(json.dumps(result))
    torch.distributed.destroy_process_group()


def small_captioner() -> tuple[nn.Module, torch.optim.Optimizer, dict[str, nn.Parameter]]:
    model = captioner("tiny")
    set_trainable(model, PARTS, torch.float32)
    turn_off_dropout(model)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return model, make_optimizer(model, lr=1e-3, vision_layer_decay=0.9), trained


def micro_batches(rank: int, processes: int) -> list[dict[str, Tensor]]:
    """One process's share of a step."""
    batch = captions("opt", 500, BATCH, 12)
    batch["pixel_values"] = torch.randn(
        BATCH, 3, 56, 56, generator=torch.Generator().manual_seed(2)
    )
    share = BATCH // processes
    rows = range(rank * share, (rank + 1) * share, MICRO)
    return [{key: value[i : i + MICRO] for key, value in batch.items()} for i in rows]


def by_itself() -> tuple[Course, dict[str, Tensor]]:
    """What one process makes of it, and the weights that it begins with."""
    model, optimizer, trained = small_captioner()
    start = {name: p.detach().clone() for name, p in trained.items()}
    batches = micro_batches(0, 1)
    total = sum(map(count_labels, batches))
    numbers = []
    for _ in range(STEPS):
        losses = [caption_loss(model, batch) / total for batch in batches]
        torch.stack(losses).sum().backward()
        norm = nn.utils.clip_grad_norm_(trained.values(), CLIP)
        numbers += [sum(float(loss.detach()) for loss in losses), float(norm)]
        optimizer.step()
        optimizer.zero_grad()
    return (numbers, {name: p.detach() for name, p in trained.items()}), start


def under_zero(stage: int) -> Course:
    model, optimizer, trained = small_captioner()
    # else weights of this size are kept whole
    zero = {"stage": stage, "stage3_param_persistence_threshold": 0}
    engine = engine_of(model, optimizer, zero_optimization=zero, gradient_clipping=CLIP)
    processes = torch.distributed.get_world_size()
    batches = micro_batches(torch.distributed.get_rank(), processes)
    total = torch.tensor(float(sum(map(count_labels, batches))))
    torch.distributed.all_reduce(total)
    numbers = []
    for _ in range(STEPS):
        mean = torch.zeros(())
        for i, batch in enumerate(batches):
            engine.set_gradient_accumulation_boundary(i == len(batches) - 1)
            loss = caption_loss(engine, batch) * (processes / total)
            engine.backward(loss, scale_wrt_gas=False)
            mean += loss.detach() / processes
        engine.step()
        torch.distributed.all_reduce(mean)
        numbers += [float(mean), float(engine.get_global_grad_norm())]
    return numbers, {name: safe_get_full_fp32_param(p).detach() for name, p in trained.items()}


def engine_of(model: nn.Module, optimizer: torch.optim.Optimizer, **settings: Any) -> Any:
    # the steps, rates and losses are the caller's
    settings |= {"train_micro_batch_size_per_gpu": 1, "zero_allow_untested_optimizer": True}
    return deepspeed.initialize(model=model, optimizer=optimizer, config=settings)[0]


def farthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    seen = [name for name in one if not name.endswith(BLIND)]
    return max(float((one[name] - other[name].view_as(one[name])).abs().max()) for name in seen)


def takes_a_number() -> bool | str:
    """A parameter without a dimension, as the retriever's temperature is."""
    model = nn.Linear(4, 4)
    model.temperature = nn.Parameter(torch.tensor(0.07))
    optimizer = torch.optim.AdamW(model.parameters())
    return _says(lambda: engine_of(model, optimizer, zero_optimization={"stage": 2}))


def tells_averages() -> bool | str:
    """AdamW's averages of a second group, in full: what a checkpoint is written from."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    groups = [{"params": list(layer.parameters())} for layer in model]
    engine = engine_of(model, torch.optim.AdamW(groups), zero_optimization={"stage": 2})
    engine.backward(engine(torch.ones(2, 4)).sum())
    engine.step()
    # of 20 numbers each process has 10, so both have a piece of the first 16
    return _says(lambda: safe_get_full_optimizer_state(model[1].weight, "exp_avg"))


def moved_within_backward() -> float:
    """How far weights have moved before anyone could look at the gradient, at a rate of 1."""
    config = {"zero_optimization": {"stage": 2}, "zero_allow_untested_optimizer": True}
    config |= {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}
    plugin = DeepSpeedPlugin(hf_ds_config=config | {"gradient_clipping": CLIP})
    layer = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    accelerator = Accelerator(deepspeed_plugin=plugin)
    model, _ = accelerator.prepare(layer, optimizer)
    before = nn.utils.parameters_to_vector(layer.parameters()).detach().clone()
    accelerator.backward(model(torch.ones(2, 4)).sum())
    after = nn.utils.parameters_to_vector(layer.parameters()).detach()
    return float((after - before).norm())


def _says(call: Callable[[], object]) -> bool | str:
    try:
        call()
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return True


if __name__ == "__main__":
    main()
