"""EVA: what the layers read decides where their LoRA starts, and padding doesn't."""

import pytest
import torch
from accelerate import Accelerator
from peft.tuners.lora import LoraLayer

from blip2ft.data.batches import Sample, text_layout
from blip2ft.data.order import Order
from blip2ft.models.adapters import attach_lora
from blip2ft.models.load import load_captioner
from blip2ft.tasks.caption import caption_loss
from blip2ft.training.eva import start_from_inputs
from blip2ft.training.feed import Feed

PARTS = {"vision": "lora", "qformer": "lora", "projection": "frozen", "language": "lora"}
LAYERS = {
    "opt": ["language_model.model.decoder.layers.0.fc2", "vision_model.encoder.layers.1.mlp.fc1"],
    "t5": ["language_model.encoder.block.0.layer.0.SelfAttention.q"],
}


class Samples:
    """Noise, and captions of several lengths; `words` is what they consist of."""

    def __init__(self, words: str = "red cat") -> None:
        self.words = words

    def __getitem__(self, key):
        pixels = torch.randn(3, 28, 28, generator=torch.Generator().manual_seed(key.sample))
        return Sample(pixels, "a photo of", " ".join(["a", *[self.words] * (key.sample % 3 + 1)]))


def feed_of(layout, samples, size):
    return Feed(samples, Order(24, 24, seed=0), layout.collate, Accelerator(cpu=True), size, 0)


def started(folder, size=6, **options):
    model, processor = load_captioner(folder)
    attach_lora(model, PARTS, init="eva", **options)
    feed = feed_of(text_layout(model, processor, 16), Samples(), size)
    return model, feed


@pytest.mark.parametrize("family", ["opt", "t5"])
def test_a_layers_lora_starts_where_its_inputs_vary_most(family, request):
    model, feed = started(request.getfixturevalue(f"{family}_folder"), size=24, r=3)
    before = {n: m.lora_B["default"].weight.clone() for n, m in loras(model)}
    batch = feed.collate(feed.first(24))
    read = {}
    for name in LAYERS[family]:
        keep = lambda module, inputs, name=name: read.update({name: inputs[0].detach()})  # noqa: E731
        model.get_submodule(name).register_forward_pre_hook(keep)
    with torch.no_grad():
        expected = caption_loss(model.eval(), batch)
    model.train()
    state = torch.random.get_rng_state()
    inputs = {name: tensor.clone() for name, tensor in read.items()}
    start_from_inputs(model, feed, caption_loss, feed.accelerator)
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), state)
    with torch.no_grad():
        assert torch.equal(caption_loss(model.eval(), batch), expected)
    assert all(torch.equal(m.lora_B["default"].weight, before[n]) for n, m in loras(model))
    for name, x in inputs.items():
        text = batch["attention_mask"].bool()
        rows = x.flatten(0, -2)
        if name.startswith("language"):
            rows = rows[text.flatten()]
        directions = torch.linalg.svd(rows - rows.mean(0), full_matrices=False).Vh[:3]
        rows_of_a = model.get_submodule(name).lora_A["default"].weight
        torch.testing.assert_close(rows_of_a @ rows_of_a.T, torch.eye(3), atol=1e-4, rtol=0)
        # how much of the inputs' variance the rows hold, beside the most that three can
        held, most = ((rows - rows.mean(0)) @ v.T for v in (rows_of_a, directions))
        assert held.square().sum() > 0.98 * most.square().sum()


def loras(model):
    return [(n, m) for n, m in model.named_modules() if isinstance(m, LoraLayer)]


def test_it_is_the_same_again_and_however_far_texts_are_padded(opt_folder):
    found = []
    for longest in (0, 0, 9):
        model, feed = started(opt_folder, size=24, r=2)
        if longest:  # one long text more pads the others; it is left out itself
            collate = feed.collate

            def padded(samples, collate=collate):
                batch = collate(
                    [*samples, Sample(samples[0].pixel_values, "a photo of", "a " * 15)]
                )
                return {key: value[:-1] for key, value in batch.items()}

            feed = Feed(feed.samples, feed.order, padded, feed.accelerator, feed.size, 0)
        torch.manual_seed(len(found))
        start_from_inputs(model, feed, caption_loss, feed.accelerator)
        found.append({n: m.lora_A["default"].weight.detach() for n, m in loras(model)})
    for name, weight in found[0].items():
        assert torch.equal(found[1][name], weight)
        if name.startswith("language_model"):
            torch.testing.assert_close(found[2][name].abs(), weight.abs(), atol=2e-3, rtol=0)


def test_without_a_lora_nothing_happens(opt_folder):
    model, processor = load_captioner(opt_folder)
    feed = feed_of(text_layout(model, processor, 16), Samples(), 6)
    start_from_inputs(model, feed, pytest.fail, feed.accelerator)
