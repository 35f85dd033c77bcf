"""Two steps of each task and an evaluation, by the real loop, on as many processes as there are.

torchrun --nproc_per_node 3 tests/training/shared_run.py MODELS PHOTOS OUT PRECISION TASK...

With ACCELERATE_USE_FSDP=true and FSDP_VERSION=2 the model is in shards. MODELS holds opt/, t5/,
wide/ and retriever/; OUT gets a run a task, and answers.json in it.
"""

import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from small_run import PAPER, turn_off_dropout
from torch import nn

from blip2ft.data.batches import text_layout
from blip2ft.data.images import transforms_for
from blip2ft.data.loading import load_batches
from blip2ft.data.order import Order
from blip2ft.data.pairs import Pair, pair_layout
from blip2ft.data.questions import Question
from blip2ft.data.records import read_records
from blip2ft.models.adapters import attach_lora
from blip2ft.models.load import load_captioner, load_retriever
from blip2ft.models.parts import checkpoint_gradients, set_trainable
from blip2ft.models.vqa import load_vqa
from blip2ft.tasks.caption import caption_loss, caption_pairs, count_labels, predict
from blip2ft.tasks.ranking import rank
from blip2ft.tasks.retrieval import cache_itc, count_pairs, retrieval_loss
from blip2ft.tasks.vqa import answer, answer_samples
from blip2ft.training.checkpoint import load_weights, save_checkpoint
from blip2ft.training.loop import train
from blip2ft.training.milestones import Milestones
from blip2ft.training.optimizer import make_optimizer, make_schedule
from blip2ft.training.processes import frozen_dtype, start_processes
from blip2ft.training.sharded import gathered, prepare, shard
from blip2ft.training.stored import list_checkpoints

LORA = {"vision": "lora", "qformer": "full", "projection": "full", "language": "lora"}
BATCH = 12  # by 1 to 4 processes; 8 photos, so that a step begins within an epoch
EVALUATED = 7  # of which no number of processes above 1 has as many each
TEXTS = ("a cat", "the dog and a bird on the apple", "a car", "a blue bird", "an apple", "red")


def spoiled(what: str) -> Callable:
    """`caption_loss`, which isn't finite for the first micro-batch of the last process."""
    bad: list[torch.Tensor] = []

    def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        last = int(os.environ.get("RANK", "0")) + 1 == int(os.environ.get("WORLD_SIZE", "1"))
        if last and not bad:
            bad.append(batch["pixel_values"])
        hit = last and torch.equal(batch["pixel_values"], bad[0])
        if what == "loss":
            pixels = batch["pixel_values"] * (math.nan if hit else 1.0)
            return caption_loss(model, batch | {"pixel_values": pixels})
        value = caption_loss(model, batch)
        # the root's slope at 0 is infinite, the loss stays as it is
        return value + (value * 0).sqrt() if hit else value

    return loss


class Shared:
    """What the tasks have in common: processes, a feed of batches, the loop."""

    def __init__(self, models: Path, photos: Path, out: Path, precision: str = "fp32") -> None:
        self.models, self.photos, self.out = models, photos, out
        self.accelerator = start_processes(precision, [], out)
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.records = read_records(photos / "captions.csv")

    def train(
        self,
        name: str,
        model: nn.Module,
        parts: dict[str, str],
        batches: Callable[[int, int], Iterator[Any]],
        accumulation: int,
        evaluate: Callable[[nn.Module], Any],
        *,
        loss: Callable = caption_loss,
        count: Callable = count_labels,
        steps: int = 2,
        adamw: bool = False,
        **options: Any,
    ) -> None:
        run = self.out / name
        run.mkdir(parents=True, exist_ok=True)
        dtype = frozen_dtype(self.accelerator, model.config)  # type: ignore[arg-type]
        if parts is LORA:
            torch.manual_seed(5 + self.rank)  # the first process's start is everyone's
            attach_lora(model, parts, r=2, dropout=0.0)
        set_trainable(model, parts, dtype)
        if hasattr(model, "unused_parameters"):
            for _, parameter in model.unused_parameters():
                parameter.requires_grad_(False)
        turn_off_dropout(model)
        shard(model, self.accelerator)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = make_optimizer(model, lr=1e-3) if adamw else torch.optim.SGD(trained, lr=0.1)
        schedule = make_schedule(optimizer, steps=8, warmup_steps=1, lr=0.1)
        prepared, optimizer = prepare(self.accelerator, model, optimizer)

        def evaluation(step: int) -> dict[str, float]:
            with gathered(model):
                found = evaluate(model)
            if self.accelerator.is_main_process:
                (run / f"answers-{step}.json").write_text(json.dumps(found))
            return {"cider": float(step)}

        evaluation(0)
        found = list_checkpoints(run / "checkpoints")
        torch.manual_seed(11)
        best = train(
            accelerator=self.accelerator,
            run=run,
            model=prepared,
            optimizer=optimizer,
            schedule=schedule,
            batches=batches,
            accumulation=accumulation,
            steps=steps,
            loss=loss,
            count=count,
            evaluate=evaluation,
            origins=lambda step: [[f"{self.rank}:{i}"] for i in range(accumulation)],
            milestones=Milestones(2, 1, 1, 9, max_nonfinite=1),
            resume_from=found[-1] if found else None,
            **options,
        )
        load_weights(run / "checkpoints" / f"step-{best:08d}", model)
        save_checkpoint(
            run / "end",
            accelerator=self.accelerator,
            model=prepared,
            optimizer=optimizer,
            schedule=schedule,
            state={"step": steps},
        )
        self.accelerator.free_memory(prepared, optimizer)

    def feed(self, samples: Any, layout: Any, micro: int = 2) -> tuple[Callable, int]:
        order = Order(len(samples), BATCH, seed=0)

        def batches(first: int, last: int) -> Iterator[Any]:
            keys = order.micro_batches(
                first,
                last,
                rank=self.rank,
                world_size=self.world,
                size=micro,
                length=samples.length,
            )
            return iter(load_batches(samples, keys, layout.collate, workers=0))

        return batches, order.accumulation(self.world, micro)

    def caption(
        self, name: str, folder: str, parts: dict[str, str], loading: dict, **options: Any
    ) -> None:
        model, processor = load_captioner(self.models / folder, **loading)
        layout = text_layout(model, processor)
        augment, resize = transforms_for(processor.image_processor, scale=(0.5, 1.0), flip=True)
        samples = caption_pairs(self.records, augment, "a photo of", 0)

        def evaluate(model: Any) -> list[str]:
            return predict(
                model,
                layout,
                resize,
                self.records[:EVALUATED],
                prompts="a photo of",
                batch_size=2,
                num_beams=2,
                max_new_tokens=4,
                accelerator=self.accelerator,
            )

        if options.pop("recompute", False):
            checkpoint_gradients(model, ["vision", "qformer", "language"])
        self.train(name, model, parts, *self.feed(samples, layout), evaluate, **options)

    def vqa(self) -> None:
        model, processor = load_vqa(self.models / "t5", stage1=self.models / "retriever")
        layout = text_layout(model, processor, 8)
        augment, resize = transforms_for(processor.image_processor)
        questions = [
            Question(
                self.photos / f"photo{i}.jpg",
                f"photo{i}",
                i,
                TEXTS[i % 6],
                ("cat", "cat", "a red dog", TEXTS[i % 5]),
                "here:1",
                choices=("a cat", "left", "the red bird")[: i % 4],
            )
            for i in range(8)
        ]
        samples = answer_samples(questions, augment, "photo of {}", 0, answers="all")

        def evaluate(model: Any) -> list[str]:
            return answer(
                model,
                layout,
                resize,
                questions[:EVALUATED],
                template="photo of {}",
                batch_size=2,
                num_beams=2,
                max_new_tokens=4,
                accelerator=self.accelerator,
            )

        self.train("vqa", model, PAPER, *self.feed(samples, layout, 3), evaluate)

    def retrieval(self, name: str, *, cached: bool = False) -> None:
        model, processor = load_retriever(self.models / "retriever")
        layout = pair_layout(model, processor, 16)
        _, resize = transforms_for(processor.image_processor)
        if cached:  # the others look at what is computed at once alone
            model.objectives = {"itc": 1.0}
        pixels = torch.randn(BATCH, 3, 28, 28, generator=torch.Generator().manual_seed(1))
        texts = [f"{TEXTS[i % 6]} {TEXTS[i % 5]}" for i in range(BATCH)]
        share = BATCH // self.world
        mine = range(BATCH)[self.rank * share : (self.rank + 1) * share]
        pieces = [mine[: share // 2], mine[share // 2 :]] if cached else [mine]

        def batches(first: int, last: int) -> Iterator[Any]:
            for _ in range(first, last):
                for rows in pieces:
                    batch = layout.collate([Pair(pixels[i], texts[i], i // 2) for i in rows])
                    yield batch

        def evaluate(model: Any) -> list[list[int]]:
            found = rank(
                model,
                layout,
                resize,
                self.records[:EVALUATED],
                TEXTS,
                candidates=5,
                batch_size=2,
                accelerator=self.accelerator,
            )
            return found.texts_of_images.indices.tolist()

        self.train(
            name,
            model,
            {**PAPER, "language": "frozen"},
            batches,
            len(pieces),
            evaluate,
            loss=retrieval_loss,
            count=count_pairs,
            prepare=cache_itc if cached else None,
        )


def shared_run(
    models: Path, photos: Path, out: Path, tasks: list[str], precision: str = "fp32"
) -> None:
    shared = Shared(models, photos, out, precision)
    todo: dict[str, Callable[[], None]] = {
        "caption": lambda: shared.caption("caption", "opt", PAPER, {}),
        "recomputed": lambda: shared.caption("recomputed", "opt", LORA, {}, recompute=True),
        "adamw": lambda: shared.caption("adamw", "opt", LORA, {}, adamw=True),
        "longer": lambda: shared.caption("adamw", "opt", LORA, {}, adamw=True, steps=4),
        "nf4": lambda: shared.caption("nf4", "wide", LORA, {"quantize": {"language": "nf4"}}),
        "int8": lambda: shared.caption("int8", "wide", LORA, {"quantize": {"language": "int8"}}),
        "bad-loss": lambda: shared.caption("bad-loss", "opt", LORA, {}, loss=spoiled("loss")),
        "bad-gradient": lambda: shared.caption(
            "bad-gradient", "opt", PAPER, {}, loss=spoiled("gradient")
        ),
        "vqa": shared.vqa,
        "retrieval": lambda: shared.retrieval("retrieval"),
        "cached": lambda: shared.retrieval("cached", cached=True),
    }
    for task in tasks:
        todo[task]()
    shared.accelerator.end_training()


if __name__ == "__main__":
    torch.set_num_threads(1)
    *folders, precision = sys.argv[1:5]
    models, photos, out = map(Path, folders)
    shared_run(models, photos, out, sys.argv[5:], precision)
