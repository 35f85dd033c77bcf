"""Fine-tune BLIP-2 to answer questions about images: the run, from top to bottom.

accelerate launch recipes/vqa.py --config recipes/vqa/tiny.yaml
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from blip2ft.config import VqaConfig
from blip2ft.counted import counted
from blip2ft.features.level import cache_level
from blip2ft.hub import check_model_name
from blip2ft.parse import parse_config, run_cleanly
from blip2ft.quiet import quiet_libraries
from blip2ft.training.hold import hold, holding
from blip2ft.training.run import check_output, stop_outside_of_steps
from blip2ft.training.same_run import changed_settings, check_same_base, check_same_settings
from blip2ft.training.settings import check_settings, lora_warning, warmup_warning
from blip2ft.whole import write_text


@holding()
def main(config: VqaConfig, config_yaml: str) -> None:
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
    from accelerate.utils import set_seed

    from blip2ft.data.batches import text_layout
    from blip2ft.data.images import transforms_for
    from blip2ft.data.order import check_shared
    from blip2ft.data.questions import Question, read_questions
    from blip2ft.evaluation.rows import answer_rows
    from blip2ft.features.build import use_features
    from blip2ft.features.serve import set_tower_aside
    from blip2ft.models.adapters import attach_lora, describe_training, save_trained
    from blip2ft.models.identity import identify, locate_source
    from blip2ft.models.kernels import check_kernels, choose_attention, compile_blocks
    from blip2ft.models.parts import check_parts, checkpoint_gradients, parts_table, set_trainable
    from blip2ft.models.source import read_config
    from blip2ft.models.vqa import load_vqa
    from blip2ft.report.report import told_report
    from blip2ft.tasks.caption import caption_loss, count_labels
    from blip2ft.tasks.of_settings import candidates_of
    from blip2ft.tasks.vqa import (
        answer,
        answer_samples,
        ask,
        check_questions,
        commonest_answers,
        score,
    )
    from blip2ft.training.adamw import check_kind
    from blip2ft.training.checkpoint import load_weights
    from blip2ft.training.eva import start_from_inputs
    from blip2ft.training.feed import broken_share, make_feed, open_questions
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
    check_kernels("vqa", config.model.attention, config.model.compile)
    ask(config.prompt, "what")
    candidates = candidates_of(asdict(config))
    accelerator = start_processes(config.model.precision, config.train.log_with, config.output)
    check_kind(config.optimizer.kind, accelerator.device)
    check_sharded(config.optimizer.kind, accelerator.mixed_precision)
    if not config.evaluate_only:
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

    share = broken_share(asdict(config.data))
    train_questions: list[Question] = []
    if not config.evaluate_only:
        train_questions = open_questions(map(asdict, config.data.train), skip=share is not None)
        filtered = filter_training(
            train_questions,
            asdict(config.data.filters),
            accelerator,
            run=config.output,
            workers=workers,
        )
        if filtered is not None:
            train_questions = filtered.kept
            say(filtered.told)
    validation_questions = read_questions(**asdict(config.data.validation))
    final, final_questions = "validation", validation_questions
    if config.data.test is not None:
        final, final_questions = "test", read_questions(**asdict(config.data.test))
    if not config.evaluate_only:
        known = score(validation_questions[:1], [""])
        check_metric(config.train.best_metric, known)

    # The model: loaded, adapted, frozen.
    source = read_config(config.model.name, config.model.revision, ("blip-2", "instructblip"))
    frozen = frozen_dtype(accelerator, source)
    model, processor = load_vqa(
        config.model.name,
        stage1=config.stage1,
        question_in_qformer=config.question_in_qformer,
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
    layout = text_layout(model, processor, config.data.max_target_tokens)
    for questions in (train_questions, validation_questions, final_questions):
        check_questions(layout, config.prompt, questions)
    augment, resize = transforms_for(
        processor.image_processor, scale=config.data.crop_scale, flip=config.data.flip
    )
    if level is not None:
        augment, resize = use_features(
            model,
            level,
            **asdict(config.cache),
            name=config.model.name,
            train=train_questions,
            evaluated=[*validation_questions, *final_questions],
            transforms=(augment, resize),
            accelerator=accelerator,
            workers=workers,
            say=say,
        )
    run, bare = Path(config.output), model

    @meter.evaluating()
    def evaluate(questions: Sequence[Question], split: str, step: int) -> dict[str, float]:
        with gathered(bare):
            answers = answer(
                bare,
                layout,
                resize,
                questions,
                template=config.prompt,
                candidates=candidates,
                workers=workers,
                accelerator=accelerator,
                progress=True,
                **asdict(config.generation),
            )
        scores = score(questions, answers)
        if accelerator.is_main_process:
            rows = answer_rows(questions, answers)
            record_evaluation(run, split, step, scores, rows)
            # what the evaluation servers take
            results = [{"question_id": row["question_id"], "answer": row["answer"]} for row in rows]
            path = run / "predictions" / f"{split}-{step:08d}-results.json"
            write_text(path, json.dumps(results, ensure_ascii=False) + "\n")
        accelerator.log({f"{split}/{name}": value for name, value in scores.items()}, step=step)
        return scores

    if config.evaluate_only:
        start_run(run, config_yaml, base, accelerator, resume=config.train.resume)
        scores = evaluate(final_questions, final, 0)
        meter.end(0)
        say(f"\n{score_table({}, scores, config.train.best_metric)}")
        say(f"\nnothing was trained; everything lies in {run}")
        if accelerator.is_main_process:
            say(told_report(run))
        return

    # Samples, their order, and how the processes share a step.
    samples = answer_samples(
        train_questions,
        augment,
        config.prompt,
        config.seed,
        answers=config.data.answers,
        skip=share is not None,
    )
    feed = make_feed(
        train_questions,
        samples,
        layout.collate,
        accelerator,
        batch_size=config.train.batch_size,
        micro_batch_size=config.train.micro_batch_size,
        workers=workers,
        seed=config.seed,
        max_broken=share,
        length=samples.length,
    )
    steps = feed.steps(config.train.epochs, config.train.max_steps)
    sizes = f"{counted(len(train_questions), 'question')}, {counted(len(samples), 'sample')}"
    say(f"{sizes}; {feed.told(steps)}")
    if warning := warmup_warning(config.optimizer.warmup_steps, steps):
        say(warning)

    if config.train.preflight:
        preflight(model, parts, layout, feed.first(2), caption_loss, accelerator)

    if config.lora.init == "eva" and begun is None:
        start_from_inputs(model, feed, caption_loss, accelerator)

    # From here on there is a run.
    start_run(run, config_yaml, base, accelerator, resume=config.train.resume)
    keep_filtered(run, filtered, accelerator)
    shard(model, accelerator)
    optimizer, schedule = optimizer_and_schedule(model, steps, asdict(config.optimizer))
    model, optimizer = prepare(accelerator, model, optimizer)
    if level is not None:
        set_tower_aside(bare)
    # a run that was stopped before its first checkpoint may have it already
    if not read_evaluation(run, final, 0).scores:
        say(f"scoring the model on the {final} split before its first step")
        evaluate(final_questions, final, 0)
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
        evaluate=lambda step: evaluate(validation_questions, "validation", step),
        origins=feed.origins,
        milestones=milestones_of(asdict(config.train), feed.order.steps(1)),
        max_grad_norm=config.optimizer.max_grad_norm,
        resume_from=begun,
        meter=meter,
    )

    # The best weights are the run's result.
    load_weights(checkpoint_of(run / "checkpoints", best), bare)
    if final == "test":
        evaluate(final_questions, final, best)
    description = describe_training(
        "vqa",
        base,
        image_size=bare.config.vision_config.image_size,
        parts=parts,
        lora=None if lora is None else asdict(config.lora),
        quantize=config.quantize,
        prompt=config.prompt,
        question_in_qformer=config.question_in_qformer,
        stage1=None if config.stage1 is None else locate_source(config.stage1),
        generation=asdict(config.generation),
    )
    with gathered(bare):
        if accelerator.is_main_process:
            save_trained(bare, run / "adapter", lora, description)
    answers = [row["answer"] for row in read_evaluation(run, final, best).answers]
    keep_learned_from(run, train_questions, answers, accelerator)
    meter.end(steps)
    # freed while its group of processes lives: freed later, it may wait for the group forever
    model, optimizer = accelerator.free_memory(model, optimizer)
    accelerator.end_training()
    before, after = read_evaluation(run, final, 0), read_evaluation(run, final, best)
    guessed = score(final_questions, commonest_answers(train_questions, final_questions))
    say(f"\nscores on the {final} split, {counted(len(final_questions), 'question')}")
    say(score_table(before.scores, after.scores, config.train.best_metric))
    say(f"always the commonest answer of the type: {guessed.get('accuracy', 0):.2f}")
    say(f"\n{answer_table(_as_captions(before.answers), _as_captions(after.answers))}")
    say(f"\nbest step {best} of {steps}; everything lies in {run}")
    if accelerator.is_main_process:
        say(told_report(run))
    say(f"a model for stock transformers: blip2ft export {run} --out FOLDER")


def _as_captions(rows: Sequence[dict]) -> list[dict]:
    """Answers as `answer_table` shows captions: what was asked, and what people said."""
    return [
        {
            "image_id": f"{row['image_id']}  {row['question']}",
            "caption": row["answer"],
            "references": sorted(set(row["answers"]), key=row["answers"].count, reverse=True),
        }
        for row in rows
    ]


if __name__ == "__main__":
    run_cleanly(
        lambda: main(*parse_config(VqaConfig, sys.argv[1:], "recipes/vqa.py")),
        debug="--debug" in sys.argv,
    )
