"""`blip2ft evaluate`."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from blip2ft.commands.options import add_model_options, command, named_model, quantized
from blip2ft.commands.overrides import TASKS, add_settings
from blip2ft.quiet import quiet_libraries

EPILOG = """\
The settings say which data are asked about, with which prompt, and how answers are decoded. They
are overridden as the recipes take them: --data.test.source other.csv --prompt "a picture of". What
is evaluated are the runs of --adapter, else --model, else the settings' own model as it is.

FOLDER gets predictions.jsonl, scores.json, and what the servers of COCO, NoCaps and VQA take.
Several processes share the work: accelerate launch --num_processes 4 -m blip2ft evaluate ...
"""


def add_evaluate(commands: Any) -> None:
    parser = command(
        commands,
        "evaluate",
        "Score a model, or a run, on a split, overall and by group, with confidence intervals.",
        _evaluate,
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument("subject_task", choices=TASKS, metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="what to write")
    parser.add_argument(
        "--split", choices=["test", "validation"], help="default: test, where the settings have one"
    )
    parser.add_argument(
        "--by",
        nargs="+",
        action="extend",
        default=[],
        metavar="FIELD",
        help="score groups of records too, by a field of theirs, such as domain or answer_type",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on in FOLDER with what was answered there"
    )
    add_model_options(parser, asked="")
    add_settings(parser, required=False, task=False, more="; default: that of the run of --adapter")


def _evaluate(arguments: argparse.Namespace) -> int:
    from blip2ft.evaluation.folder import check_out

    check_out(arguments.out, resume=arguments.resume)
    config = _config(arguments)
    quiet_libraries()
    from blip2ft.evaluation.evaluate import evaluate
    from blip2ft.evaluation.subject import Subject
    from blip2ft.hub import check_model_name, check_revision
    from blip2ft.settings import read_settings

    base, revision, runs = named_model(arguments)
    subject = Subject(base, revision, runs, quantized(arguments.quantize))
    subject.check_task(arguments.subject_task)  # else its settings would be found wrong
    task, settings = read_settings(config, arguments.overrides, arguments.subject_task)
    split = arguments.split or ("test" if settings["data"]["test"] else "validation")
    if not runs and base is None:
        base, revision = settings["model"]["name"], revision or settings["model"]["revision"]
    if base is not None:
        check_model_name(base)
        check_revision(base, revision)
    quantize = subject.quantize or settings["quantize"]
    subject = replace(subject, base=base, revision=revision, quantize=quantize)
    evaluate(
        task,
        settings,
        subject,
        arguments.out,
        split=split,
        fields=arguments.by,
        resume=arguments.resume,
    )
    return 0


def _config(arguments: argparse.Namespace) -> str:
    """The file of settings: the one given, or the first run's own."""
    if arguments.config is not None:
        return arguments.config
    if not arguments.adapter:
        raise ValueError("say what to evaluate on: --config F.yaml, or --adapter RUN for its own")
    run = arguments.adapter[0][0]
    for folder in (run, run.parent):
        if (folder / "config.yaml").is_file():
            return str(folder / "config.yaml")
    if not run.exists():
        raise ValueError(
            f"--adapter {run}: there is no such folder; for a run on the hub give a --config F.yaml"
        )
    raise ValueError(
        f"{run} has no config.yaml, so it doesn't say what to evaluate on; give a --config F.yaml"
    )
