"""A training step of ITC, ITM and ITG from image features, ours beside stock transformers.

    python scripts/bench/retrieval_step.py

The peer calls the stock Q-Former once a pass, as LAVIS does: queries, texts, 3 B pairs to match,
and queries with the text to generate, texts padded to 35 tokens. Both draw the same negatives; both
differentiate with respect to weights and image features. Dropout is off, so that results compare.
"""

import argparse
import json

import torch
from machine import (
    describe_machine,
    full_size_retriever,
    random_images,
    random_texts,
    time_in_turn,
)
from plain import image_features, losses, text_features, turn_off_dropout

from blip2ft.gather import share_batch
from blip2ft.losses import similarities
from blip2ft.models.in_batch import draw_negatives, same_image


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=677)
    options = parser.parse_args()
    model = full_size_retriever(options.device)
    turn_off_dropout(model.train())
    model.vision_model.requires_grad_(False)
    embeds = random_images(options.images, options.tokens, options.device).requires_grad_()
    ids, mask = random_texts(options.images, options.device)
    numbers = torch.arange(options.images, device=options.device)
    width = int(mask.sum(1).max())

    def ours() -> dict[str, torch.Tensor]:
        model.zero_grad()
        embeds.grad = None
        torch.manual_seed(7)
        output = model(None, ids[:, :width], mask[:, :width], numbers, image_embeds=embeds)
        output.loss.backward()
        return {name: output[name].detach() for name in ("itc", "itm", "itg")}

    def peer() -> dict[str, torch.Tensor]:
        model.zero_grad()
        embeds.grad = None
        torch.manual_seed(7)
        with torch.no_grad():
            # the draw needs similarities, which the peer has from its own pass below; a hundredth
            # of the step, left out of its time by taking ours
            shares = share_batch(len(ids), width, ids.device)
            negatives = draw_negatives(shares, same_image(shares, numbers, ids.device), *logits)
        found = losses(model, embeds, ids, mask, numbers, negatives)
        torch.stack(list(found.values())).sum().backward()
        return {name: value.detach() for name, value in found.items()}

    with torch.no_grad():
        similarity = similarities(image_features(model, embeds), text_features(model, ids, mask))
        logits = similarity / model.temperature, similarity.T / model.temperature

    found, gradients = ours(), _gradients(model, embeds)
    expected, wanted = peer(), _gradients(model, embeds)
    difference = max(float((found[name] - expected[name]).abs()) for name in found)
    norm = {name: float(gradient.norm()) for name, gradient in wanted.items()}
    # a key's bias has no gradient but rounding, hence the floor
    floor = 1e-4 * max(norm.values())
    relative = max(
        float((gradients[name] - wanted[name]).norm()) / max(norm[name], floor) for name in wanted
    )
    fast, slow = time_in_turn((ours, peer), options.repeats, options.device)
    print(
        f"{options.images} images of {options.tokens} tokens: ours {fast:.3f} s, stock {slow:.3f} s"
    )
    print(f"losses differ by {difference:.1e}, gradients by {relative:.1e} of their norm")
    print(describe_machine(options.device))
    result = {"ratio": round(slow / fast, 2), "max_difference": difference}
    print(json.dumps({**result, "max_gradient_difference": relative}))


def _gradients(model: torch.nn.Module, embeds: torch.Tensor) -> dict[str, torch.Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    assert embeds.grad is not None
    return {**found, "image_embeds": embeds.grad.clone()}


if __name__ == "__main__":
    main()
