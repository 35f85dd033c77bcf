"""The loss of a language model with logits of labelled tokens only, a few rows at a time.

Of a batch of captions four tokens in five are image, prompt or padding, and at 50,000 words the
logits of all are most of what the language model's loss needs. So the output head is asked for the
loss itself, while the stock model runs as it is: wrapped (DDP, autocast), checkpointed, adapted or
quantised.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn

from blip2ft.losses import language_modeling, linear_language_modeling

# Heads whose model scales, caps or shifts their logits (Gemma, Cohere, Granite), as was seen.
_not_last: WeakSet[nn.Module] = WeakSet()


def language_loss(
    model: nn.Module,
    inputs: Mapping[str, Any],
    labels: Tensor,
    *,
    shift: bool,
    weights: Tensor | None = None,
) -> Tensor:
    """`language_modeling` of `model(**inputs).logits`, without these where the head allows it.

    model: one with `get_output_embeddings` that gives `logits`, or a wrapper around one. A head
    that isn't a plain linear layer (adapted, quantised), or whose output the model goes on to
    change, gives its logits in full. What shows the latter is one forward too many; its dropout is
    drawn again, so that a run that goes on elsewhere is the uninterrupted one.
    """
    head = extract_model_from_parallel(model, keep_torch_compile=False).get_output_embeddings()
    if type(head) is nn.Linear and head not in _not_last:
        losses, device = [], head.weight.device
        before = _random_state(device)

        def loss_of(states: Tensor) -> Tensor:
            losses.append(
                linear_language_modeling(
                    states, head.weight, head.bias, labels, shift=shift, weights=weights
                )
            )
            return losses[0]

        with _head_computes(head, loss_of):
            given = model(**inputs).logits
        if _same(given, losses[0]):
            return given
        _not_last.add(head)
        _draw_again(before, device)
    return language_modeling(model(**inputs).logits, labels, shift=shift, weights=weights)


@contextmanager
def _head_computes(head: Any, compute: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within, `head(states)` is compute(states).

    The call still goes through the module, so that its hooks see it, and what uses the weight is
    inside the model's forward, as DDP and FSDP ask for.
    """
    own = head.__dict__.get("forward")
    head.forward = compute
    try:
        yield
    finally:
        del head.forward
        if own is not None:
            head.forward = own


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Of the CPU, and of `device` where that is a GPU."""
    on_gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return torch.get_rng_state(), on_gpu


def _draw_again(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    on_cpu, on_gpu = state
    torch.set_rng_state(on_cpu)
    if on_gpu is not None:
        torch.cuda.set_rng_state(on_gpu, device)


def _same(given: Tensor, loss: Tensor) -> bool:
    # on CUDA this waits for the forward, as the choice of rows in it has done already
    if given.shape != loss.shape:
        return False
    found, expected = float(given.detach()), float(loss.detach())
    return found == expected or math.isnan(expected)
