"""Before the first step: does the image reach the loss, and the loss what shall train?"""

import logging
import unicodedata
from collections.abc import Callable, Mapping, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from blip2ft.data.batches import IGNORE, Sample, TextLayout
from blip2ft.models.parts import part_of
from blip2ft.training.nonfinite import name_nonfinite_part

logger = logging.getLogger(__name__)


def preflight(
    model: nn.Module,
    parts: Mapping[str, str],
    layout: TextLayout,
    samples: Sequence[Sample],
    loss: Callable[[nn.Module, dict[str, Tensor]], Tensor],
    accelerator: Accelerator,
) -> None:
    """Check a few samples of a model that generates text, and stop with what is wrong.

    Raises ValueError where image tokens are missing or too many, or labels don't decode to the
    target text, and as `check_training` does.
    """
    batch = layout.collate(samples)
    # what the model expects, not what the layout believes: the two must agree
    queries = model.get_parameter("query_tokens").shape[1]
    check_image_tokens(batch["input_ids"], model.config.image_token_index, queries)  # type: ignore
    check_labels(layout, samples, batch["labels"])
    check_training(model, parts, batch, loss, accelerator)


def check_training(
    model: nn.Module,
    parts: Mapping[str, str],
    batch: Mapping[str, Tensor],
    loss: Callable[[nn.Module, dict[str, Tensor]], Tensor],
    accelerator: Accelerator,
) -> None:
    """Check a batch end to end, and stop with what is wrong; weights and seeds stay.

    parts: how each part shall train, whatever `requires_grad` says.
    Raises ValueError where a part computes NaN or infinity, another image leaves the loss as it
    is, a part that trains gets no gradient, or a frozen one gets any.
    """
    batch = {key: value.to(accelerator.device) for key, value in batch.items()}
    devices = [accelerator.device] if accelerator.device.type == "cuda" else []
    was_training = model.training

    def seeded(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        torch.manual_seed(0)  # where a loss draws, it must draw the same for every image
        return loss(model, batch)

    with torch.random.fork_rng(devices):
        model.eval()
        where = name_nonfinite_part(model, lambda m: seeded(m, batch), accelerator)
        if where:
            raise ValueError(f"preflight: the loss isn't finite before any training; {where}")
        check_image_matters(model, batch, seeded, accelerator)
        check_gradients(model, parts, batch, seeded, accelerator)
    model.zero_grad(set_to_none=True)
    model.train(was_training)


def check_image_tokens(input_ids: Tensor, image_token_id: int, expected: int) -> None:
    """Every row must have exactly `expected` image tokens, or the image isn't all there."""
    found = (input_ids == image_token_id).sum(1).tolist()
    if set(found) != {expected}:
        raise ValueError(
            f"preflight: a sample has {min(found)} image tokens, the model has {expected} queries; "
            "the image would not reach the language model: check the tokenizer's <image> token"
        )


def check_labels(layout: TextLayout, samples: Sequence[Sample], labels: Tensor) -> None:
    """The labels, decoded, must be the target and the end token, and nothing else.

    White space and Unicode's compatible forms don't count: SentencePiece makes one of many.
    """
    for sample, row in zip(samples, labels, strict=True):
        ids = row[row != IGNORE]
        ended = int(ids[-1]) == layout.end_token_id
        text = layout.decode(ids[None, :-1] if ended else ids[None])[0]
        target = sample.target or ""
        logger.info("preflight: %r learns to answer %r%s", sample.prompt, text, " + end" * ended)
        read, wanted = _plain(text), _plain(target)
        fits = read == wanted if ended else wanted.startswith(read)
        if not fits and layout.tokenizer.unk_token_id not in ids.tolist():
            raise ValueError(
                f"preflight: the labels decode to {text!r}, the target is {target!r}; "
                "the tokenizer changes the text: check that it is the checkpoint's own"
            )


def check_image_matters(
    model: nn.Module,
    batch: dict[str, Tensor],
    loss: Callable[[nn.Module, dict[str, Tensor]], Tensor],
    accelerator: Accelerator,
) -> None:
    """Another image must change the loss."""
    other = dict(batch)
    other["pixel_values"] = -batch["pixel_values"].roll(1, dims=0) + 0.5
    with torch.no_grad(), accelerator.autocast():
        here, there = float(loss(model, batch)), float(loss(model, other))
    if here == there:
        raise ValueError(
            f"preflight: the loss is {here:.6f} whatever the image; nothing of the image reaches "
            "it (are the query tokens or the projection all zeros?)"
        )


def check_gradients(
    model: nn.Module,
    parts: Mapping[str, str],
    batch: dict[str, Tensor],
    loss: Callable[[nn.Module, dict[str, Tensor]], Tensor],
    accelerator: Accelerator,
) -> None:
    """The gradient must reach every part that trains, and no other."""
    with accelerator.autocast():
        value = loss(model, batch)
    value.backward()
    reached = {
        part_of(name)
        for name, p in model.named_parameters()
        if p.grad is not None and bool(p.grad.any())
    }
    trains = {part for part, mode in parts.items() if mode != "frozen"}
    for part in trains - reached:
        raise ValueError(
            f"preflight: part {part!r} shall train, but the gradient doesn't reach it; "
            "look for zero weights between it and the loss"
        )
    for part in reached - trains:
        raise ValueError(f"preflight: part {part!r} shall be frozen, but the gradient reaches it")


def _plain(text: str) -> str:
    # a cut between the bytes of a character decodes to a replacement character
    return "".join(unicodedata.normalize("NFKC", text).rstrip("\ufffd").split())
