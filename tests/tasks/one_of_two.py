"""One step of retrieval, and a ranking, on as many processes as there are.

torchrun --standalone --nproc_per_node 2 tests/tasks/one_of_two.py MODEL PHOTOS OUT [cached]
"""

import os
import sys
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from blip2ft.data.images import transforms_for
from blip2ft.data.pairs import pair_layout
from blip2ft.data.records import read_records
from blip2ft.models.load import load_retriever
from blip2ft.tasks.ranking import rank
from blip2ft.tasks.retrieval import cache_itc, count_pairs, retrieval_loss

# Of six pairs, which the two processes hold: uneven, with one image on both.
SHARES = {1: [[0, 1, 2, 3, 4, 5]], 2: [[0, 1, 2, 3], [4, 5]]}
IMAGE_IDS = [0, 1, 2, 3, 3, 5]
TEXTS = [
    "a cat",
    "the dog and a bird on the apple",
    "a car",
    "a blue bird",
    "an apple",
    "a red car",
]


def main(model_folder: str, photos: str, out: str, cached: bool = False) -> None:
    accelerator = Accelerator(cpu=True)
    model, processor = load_retriever(model_folder)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    if cached:
        model.objectives = {"itc": 1.0}
    layout = pair_layout(model, processor, 16)
    model.requires_grad_(True)
    for _, parameter in model.unused_parameters():
        parameter.requires_grad_(False)
    bare, model = model, accelerator.prepare(model)

    if "WORLD_SIZE" in os.environ:  # a launcher that starts one process would test nothing
        assert accelerator.num_processes == 2
    mine = SHARES[accelerator.num_processes][accelerator.process_index]
    pixels = torch.randn(6, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    batches = []
    for part in [mine[: len(mine) // 2], mine[len(mine) // 2 :]] if cached else [mine]:
        ids, mask = layout.pad(layout.ids([TEXTS[i] for i in part]))
        numbers = torch.tensor([IMAGE_IDS[i] for i in part])
        inputs = {"pixel_values": pixels[part], "input_ids": ids, "attention_mask": mask}
        batches.append({**inputs, "image_ids": numbers})
    total = sum(accelerator.reduce(torch.tensor(count_pairs(batch))).item() for batch in batches)
    torch.manual_seed(7)
    if cached:
        batches = cache_itc(model, batches)
    value = torch.zeros(())
    for i, batch in enumerate(batches):
        with accelerator.no_sync(model) if i < len(batches) - 1 else torch.enable_grad():
            loss = retrieval_loss(model, batch) * accelerator.num_processes / total
            accelerator.backward(loss)
            value += loss.detach()
    value = accelerator.reduce(value, "mean")

    records = read_records(photos)
    _, resize = transforms_for(processor.image_processor)
    # unlike texts: equal ones have equal scores, and either may come first
    rankings = rank(
        bare, layout, resize, records, TEXTS, candidates=5, batch_size=3, accelerator=accelerator
    )
    if accelerator.is_main_process:
        found = {n: p.grad for n, p in bare.named_parameters() if p.grad is not None}
        of_images, of_texts = rankings.texts_of_images, rankings.images_of_texts
        arrays = (of_images.indices, of_images.scores, of_texts.indices, of_texts.scores)
        for name, array in zip(
            ["texts", "text scores", "images", "image scores"], arrays, strict=True
        ):
            found[name] = torch.from_numpy(np.ascontiguousarray(array))
        save_file({**found, "loss": value}, Path(out))
    model, batches = accelerator.free_memory(model, batches)
    accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:4], cached="cached" in sys.argv)
