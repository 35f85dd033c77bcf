"""Fine-tune BLIP-2 for captioning: the run, from top to bottom.

python recipes/caption.py --config recipes/caption/tiny.yaml
accelerate launch --num_processes 8 recipes/caption.py --config recipes/caption/opt-2.7b.yaml
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from blip2ft.config import CaptionConfig
from blip2ft.counted import counted
from blip2ft.features.level import cache_level
from blip2ft.hub import check_model_name
from blip2ft.parse import parse_config, run_cleanly
from blip2ft.quiet import quiet_libraries
from blip2ft.training.hold import hold, holding
from blip2ft.training.run import check_output, stop_outside_of_steps
from blip2ft.training.same_run import changed_settings, check_same_base, check_same_settings
from blip2ft.training.settings import check_settings, lora_warning, warmup_warning


@holding()
def main(config: CaptionConfig, config_yaml: str) -> None:
    check_output(config.output, resume=config.train.resume)
    stop_outside_of_steps(config.output)
    check_settings(asdict(config))
    if config.train.resume:
        check_same_settings(config.output, asdict(config))
    level = cache_level(asdict(config))
    check_model_name(config.model.name)
    quiet_libraries()
    # Heavy imports come after the settings are read: --help and typing errors answer at once.
    import torch
    from accelerate.utils import broadcast_object_list, set_seed

    from blip2ft.data.batches import text_layout
    from blip2ft.data.images import transforms_for
    from blip2ft.data.order import check_shared
    from blip2ft.data.overlap import overlap_warning
    from blip2ft.data.records import Record, read_records
    from blip2ft.evaluation.rows import caption_rows
    from blip2ft.features.build import use_features
    from blip2ft.features.serve import set_tower_aside
    from blip2ft.models.adapters import attach_lora, describe_training, save_trained
    from blip2ft.models.identity import identify
    from blip2ft.models.kernels import check_kernels, choose_attention, compile_blocks
    from blip2ft.models.load import load_captioner
    from blip2ft.models.parts import check_parts, checkpoint_gradients, parts_table, set_trainable
    from blip2ft.models.source import read_config
    from blip2ft.report.report import told_report
    from blip2ft.tasks.caption import caption_loss, caption_pairs, count_labels, predict, score
    from blip2ft.training.adamw import check_kind
    from blip2ft.training.checkpoint import load_weights
    from blip2ft.training.eva import start_from_inputs
    from blip2ft.training.feed import broken_share, make_feed, open_training, size_of
    from blip2ft.training.filtered import filter_training, keep_filtered
    from blip2ft.training.learned_from import keep_learned_from
    from blip2ft.training.loop import train
    from blip2ft.training.milestones import check_metric, milestones_of
    from blip2ft.training.optimizer import optimizer_and_schedule
    from blip2ft.training.preflight import preflight
    from blip2ft.training.processes import frozen_dtype, start_processes, usable_workers
    from blip2ft.training.resources import Meter
    from blip2ft.training.run import read_evaluation, record_evaluation, start_run
    from blip2ft.training.sharded import check_sharded, gathered, prepare, shard
    from blip2ft.training.stored import checkpoint_of, newest_whole
    from blip2ft.training.summary import answer_table, score_table

    # What can't work is refused before anything is loaded or written.
    parts = asdict(config.parts)
    check_parts(parts, config.quantize)
    check_kernels("caption", config.model.attention, config.model.compile)
    accelerator = start_processes(config.model.precision, config.train.log_with, config.output)
    check_kind(config.optimizer.kind, accelerator.device)
    check_sharded(config.optimizer.kind, accelerator.mixed_precision)
    check_shared(config.train.batch_size, accelerator.num_processes)
    say = partial(print, flush=True) if accelerator.is_main_process else lambda *_: None
    if warning := lora_warning(asdict(config)):
        say(warning)
    if config.train.resume:
        if changed := changed_settings(config.output, asdict(config)):
            say(changed)
        hold(Path(config.output), accelerator)
    begun = newest_whole(Path(config.output) / "checkpoints", accelerator)
    meter = Meter(Path(config.output), accelerator, begun)
    workers = usable_workers(config.data.workers)
    set_seed(config.seed)

    data = asdict(config.data)
    share = broken_share(data)
    train_source = open_training(data["train"], data["stream"], skip=share is not None)
    filtered = filter_training(
        train_source, data["filters"], accelerator, run=config.output, workers=workers
    )
    if filtered is not None:
        train_source = filtered.kept
        say(filtered.told)
    validation_records = read_records(**asdict(config.data.validation))
    # without a test split, before and after are told of validation, by its name
    final, final_records = "validation", validation_records
    if config.data.test is not None:
        final, final_records = "test", read_records(**asdict(config.data.test))
    for split, records in {"validation": validation_records, final: final_records}.items():
        if warning := overlap_warning(train_source, records, split):
            say(warning)
    check_metric(config.train.best_metric, score(validation_records[:1], [""]).scores)

    # The model: loaded, adapted, frozen.
    source = read_config(config.model.name, config.model.revision)
    frozen = frozen_dtype(accelerator, source)
    model, processor = load_captioner(
        config.model.name,
        revision=config.model.revision,
        image_size=config.model.image_size,
        dtype=torch.float32,
        quantize=config.quantize,
        compute_dtype=frozen,
    )
    base = identify(config.model.name, config.model.revision)
    check_same_base(config.output, base)
    lora = attach_lora(model, parts, **asdict(config.lora), device=accelerator.device)
    set_trainable(model, parts, frozen)
    checkpoint_gradients(model, config.model.gradient_checkpointing)
    model.to(accelerator.device)
    choose_attention(model, config.model.attention)
    compile_blocks(model, config.model.compile)
    say(parts_table(model, parts))

    # Samples, their order, and how the processes share a step.
    layout = text_layout(model, processor, config.data.max_target_tokens)
    augment, resize = transforms_for(
        processor.image_processor, scale=config.data.crop_scale, flip=config.data.flip
    )
    if level is not None:
        augment, resize = use_features(
            model,
            level,
            **asdict(config.cache),
            name=config.model.name,
            train=train_source,
            evaluated=[*validation_records, *final_records],
            transforms=(augment, resize),
            accelerator=accelerator,
            workers=workers,
            say=say,
        )
    samples = caption_pairs(
        train_source,
        augment,
        config.prompt,
        config.seed,
        prefix_lm=config.prefix_lm,
        max_words=config.data.max_target_tokens,
        skip=share is not None,
    )
    feed = make_feed(
        train_source,
        samples,
        layout.collate,
        accelerator,
        batch_size=config.train.batch_size,
        micro_batch_size=config.train.micro_batch_size,
        workers=workers,
        seed=config.seed,
        length=samples.length,
        max_broken=share,
    )
    steps = feed.steps(config.train.epochs, config.train.max_steps)
    say(f"{size_of(train_source, samples)}; {feed.told(steps)}")
    if warning := warmup_warning(config.optimizer.warmup_steps, steps):
        say(warning)

    if config.train.preflight:
        preflight(model, parts, layout, feed.first(2), caption_loss, accelerator)

    run = Path(config.output)
    if config.lora.init == "eva" and begun is None:
        start_from_inputs(model, feed, caption_loss, accelerator)

    # From here on there is a run.
    start_run(run, config_yaml, base, accelerator, resume=config.train.resume)
    keep_filtered(run, filtered, accelerator)
    shard(model, accelerator)
    optimizer, schedule = optimizer_and_schedule(model, steps, asdict(config.optimizer))
    bare = model
    model, optimizer = prepare(accelerator, model, optimizer)
    if level is not None:
        set_tower_aside(bare)

    told: set[str] = set()

    @meter.evaluating()
    def evaluate(
        records: Sequence[Record], split: str, step: int, *, java: bool = False
    ) -> dict[str, float]:
        with gathered(bare):
            captions = predict(
                bare,
                layout,
                resize,
                records,
                prompts=config.prompt,
                workers=workers,
                accelerator=accelerator,
                progress=True,
                **asdict(config.generation),
            )
        scores: dict[str, float] = {}
        if accelerator.is_main_process:
            # METEOR and SPICE start a Java program each
            found = score(records, captions, java=java)
            scores = found.scores
            for name in found.unavailable.keys() - told:
                say(f"{name} is left out: {found.unavailable[name]}")
            told.update(found.unavailable)
            record_evaluation(run, split, step, scores, caption_rows(records, captions))
        (scores,) = broadcast_object_list([scores])  # the others wait for them
        accelerator.log({f"{split}/{name}": value for name, value in scores.items()}, step=step)
        return scores

    # a run that was stopped before its first checkpoint may have it already
    if not read_evaluation(run, final, 0).scores:
        say(f"scoring the model on the {final} split before its first step")
        evaluate(final_records, final, 0, java=True)
        meter.save(0)
    best = train(
        accelerator=accelerator,
        run=run,
        model=model,
        optimizer=optimizer,
        schedule=schedule,
        batches=partial(feed.batches, run),
        accumulation=feed.accumulation,
        steps=steps,
        loss=caption_loss,
        count=count_labels,
        evaluate=lambda step: evaluate(validation_records, "validation", step),
        origins=feed.origins,
        milestones=milestones_of(asdict(config.train), feed.order.steps(1)),
        max_grad_norm=config.optimizer.max_grad_norm,
        resume_from=begun,
        meter=meter,
    )

    # The best weights are the run's result.
    load_weights(checkpoint_of(run / "checkpoints", best), bare)
    evaluate(final_records, final, best, java=True)
    description = describe_training(
        "caption",
        base,
        image_size=bare.config.vision_config.image_size,
        parts=parts,
        lora=None if lora is None else asdict(config.lora),
        quantize=config.quantize,
        prompt=config.prompt,
        generation=asdict(config.generation),
    )
    with gathered(bare):
        if accelerator.is_main_process:
            save_trained(bare, run / "adapter", lora, description)
    answers = [row["caption"] for row in read_evaluation(run, final, best).answers]
    keep_learned_from(run, train_source, answers, accelerator)
    meter.end(steps)
    # freed while its group of processes lives: freed later, it may wait for the group forever
    model, optimizer = accelerator.free_memory(model, optimizer)
    accelerator.end_training()
    before, after = read_evaluation(run, final, 0), read_evaluation(run, final, best)
    say(f"\nscores on the {final} split, {counted(len(final_records), 'image')}")
    if config.data.test is None:
        say("it chose the best step, so they flatter: for a fair figure give a data.test too")
    say(f"\n{score_table(before.scores, after.scores, config.train.best_metric)}")
    say(f"\n{answer_table(before.answers, after.answers)}")
    say(f"\nbest step {best} of {steps}; everything lies in {run}")
    if accelerator.is_main_process:
        say(told_report(run))
    say(f"a model for stock transformers: blip2ft export {run} --out FOLDER")


if __name__ == "__main__":
    run_cleanly(
        lambda: main(*parse_config(CaptionConfig, sys.argv[1:], "recipes/caption.py")),
        debug="--debug" in sys.argv,
    )
