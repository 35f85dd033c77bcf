"""Everything that a run does before its first step, without starting it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from blip2ft.counted import counted
from blip2ft.data.batches import text_layout
from blip2ft.data.images import transforms_for
from blip2ft.data.overlap import overlap_warning
from blip2ft.data.pairs import pair_layout
from blip2ft.data.questions import read_questions
from blip2ft.data.records import read_records
from blip2ft.models.adapters import attach_lora
from blip2ft.models.identity import identify
from blip2ft.models.kernels import check_kernels
from blip2ft.models.of_settings import load_for
from blip2ft.models.parts import check_parts, checkpoint_gradients, parts_table, set_trainable
from blip2ft.models.source import read_config
from blip2ft.tasks import caption, retrieval, vqa
from blip2ft.tasks.caption import caption_loss, caption_pairs
from blip2ft.tasks.retrieval import image_text_pairs, retrieval_loss
from blip2ft.tasks.vqa import answer_samples, check_questions
from blip2ft.training.adamw import check_kind
from blip2ft.training.feed import (
    Feed,
    broken_share,
    make_feed,
    open_questions,
    open_training,
)
from blip2ft.training.filtered import filter_training
from blip2ft.training.milestones import check_metric
from blip2ft.training.preflight import check_training, preflight
from blip2ft.training.processes import frozen_dtype, precision_of, start_processes
from blip2ft.training.settings import lora_warning, warmup_warning
from blip2ft.training.sharded import check_sharded

Say = Callable[[str], object]


@dataclass(frozen=True)
class Splits:
    """What is learned from and evaluated on: records or questions, or a stream to learn from."""

    train: Any
    validation: Sequence[Any]
    test: Sequence[Any] | None


def try_run(task: str, settings: Mapping[str, Any], say: Say) -> str:
    """Load, read and check what a run of `task` with `settings` would, and take no step.

    It is one process, whatever the run will have. Gives the precision it computes in: fp32, bf16
    or fp16.

    Raises ValueError where the run would, in its words.
    """
    model_settings, parts = settings["model"], settings["parts"]
    check_parts(parts, settings["quantize"])
    check_kernels(task, model_settings["attention"], model_settings["compile"])
    accelerator = start_processes(
        model_settings["precision"], settings["train"]["log_with"], settings["output"]
    )
    kind = settings["optimizer"]["kind"]
    check_kind(kind, accelerator.device)
    check_sharded(kind, accelerator.mixed_precision)
    say(f"computing    on {accelerator.device} in {precision_of(accelerator)}")
    if warning := lora_warning(settings):
        say(warning)

    splits = _read(task, settings)
    check_metric(settings["train"]["best_metric"], _metrics(task, splits.validation))
    if settings.get("candidates") is not None:
        Path(settings["candidates"]).read_text(encoding="utf-8")
    noun = "question" if task == "vqa" else "image"
    filtered = filter_training(
        splits.train, settings["data"]["filters"], accelerator, run=settings["output"]
    )
    if filtered is not None:
        splits = replace(splits, train=filtered.kept)
        say(filtered.told)
    for split in ("train", "validation", "test"):
        found = getattr(splits, split)
        if found is not None:
            say(f"{split:<13}{counted(len(found), noun)}")
    if task != "vqa":
        for split in ("validation", "test"):
            evaluated = getattr(splits, split)
            if evaluated and (warning := overlap_warning(splits.train, evaluated, split)):
                say(warning)

    name, revision = model_settings["name"], model_settings["revision"]
    config = read_config(name, revision, ("blip-2", "instructblip"))
    frozen = frozen_dtype(accelerator, config)
    model, processor = load_for(task, settings, frozen)
    base = identify(name, revision)
    commit = f", commit {base.revision[:12]}" if base.revision else ""
    say(f"base         {base.base}{commit}, weights {base.base_digest[:12]}\n")
    attach_lora(model, parts, **settings["lora"], device=accelerator.device)
    set_trainable(model, parts, frozen)
    if task == "retrieval":
        for _, parameter in model.unused_parameters():
            parameter.requires_grad_(False)
    checkpoint_gradients(model, model_settings["gradient_checkpointing"])
    model.to(accelerator.device)
    say(f"{parts_table(model, parts)}\n")

    layout: Any
    longest = settings["data"]["max_target_tokens"]
    layout = (pair_layout if task == "retrieval" else text_layout)(model, processor, longest)
    feed = _feed(task, settings, splits, layout, processor, accelerator)
    train = settings["train"]
    steps = feed.steps(train["epochs"], train["max_steps"])
    say(f"steps        {counted(steps, 'step')} of {train['batch_size']}")
    if warning := warmup_warning(settings["optimizer"]["warmup_steps"], steps):
        say(warning)
    if task == "retrieval":
        few = layout.collate(feed.first(4))
        check_training(model, parts, few, retrieval_loss, accelerator)
    else:
        preflight(model, parts, layout, feed.first(2), caption_loss, accelerator)
    trained = ", ".join(part for part, mode in parts.items() if mode != "frozen")
    say(
        "preflight    the image reaches the loss, and the gradient what trains "
        f"({trained}) and nothing else; all is finite"
    )
    return precision_of(accelerator)


def _metrics(task: str, validation: Sequence[Any]) -> Iterable[str]:
    """The names of an evaluation's scores, to choose the best step by."""
    if task == "retrieval":
        return retrieval.SCORES
    few = validation[:1]
    return vqa.score(few, [""]) if task == "vqa" else caption.score(few, [""]).scores


def _read(task: str, settings: Mapping[str, Any]) -> Splits:
    data = settings["data"]
    skips = broken_share(data) is not None
    if task == "vqa":
        questions = open_questions(data["train"], skip=skips)
        test = None if data["test"] is None else read_questions(**data["test"])
        return Splits(questions, read_questions(**data["validation"]), test)
    train = open_training(data["train"], data["stream"], skip=skips)
    records = None if data["test"] is None else read_records(**data["test"])
    return Splits(train, read_records(**data["validation"]), records)


def _feed(
    task: str,
    settings: Mapping[str, Any],
    splits: Splits,
    layout: Any,
    processor: Any,
    accelerator: Accelerator,
) -> Feed:
    data, seed, share = settings["data"], settings["seed"], broken_share(settings["data"])
    augment, _ = transforms_for(
        processor.image_processor, scale=data["crop_scale"], flip=data["flip"]
    )
    skip = share is not None
    samples: Any
    if task == "vqa":
        for questions in (splits.train, splits.validation, splits.test or ()):
            check_questions(layout, settings["prompt"], questions)
        samples = answer_samples(
            splits.train, augment, settings["prompt"], seed, answers=data["answers"], skip=skip
        )
    elif task == "retrieval":
        samples = image_text_pairs(splits.train, augment, seed, skip=skip)
    else:
        samples = caption_pairs(
            splits.train,
            augment,
            settings["prompt"],
            seed,
            prefix_lm=settings["prefix_lm"],
            max_words=data["max_target_tokens"],
            skip=skip,
        )
    return make_feed(
        splits.train,
        samples,
        layout.collate,
        accelerator,
        batch_size=settings["train"]["batch_size"],
        micro_batch_size=settings["train"]["micro_batch_size"],
        workers=0,
        seed=seed,
        max_broken=share,
        length=getattr(samples, "length", None),
    )
