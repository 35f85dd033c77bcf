"""`blip2ft check`."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from blip2ft.commands.options import command, positive
from blip2ft.commands.overrides import add_settings
from blip2ft.data.entries import ALLOWABLE
from blip2ft.quiet import quiet_libraries

EPILOG = """\
DATA is anything that a recipe reads: a table, an image folder, COCO's or Karpathy's JSON, Parquet,
tar shards, a dataset of the hub. Given without a split, it is split as it says itself. With
--config everything is taken from a recipe's settings, which are overridden as the recipe takes
them: --data.train.source photos/train.csv.

Exit status: 0 without errors (warnings and notes may be there), 1 with errors in the data, tables
that can't be read among them, 2 where an option, a setting, a file or a column can't be used as it
was given.
"""
SPLITS = ("train", "validation", "test")
READING = ("format", "split", "image_root", "allow", "image_column", "id_column", "revision")
OF_CAPTIONS = ("caption_column",)
OF_QUESTIONS = ("question_column", "answer_column", "annotations", "images")
CPUS = 8  # more processes than that wait for the disk


def add_check(commands: Any) -> None:
    parser = command(
        commands, "check", "Look over images and texts before they are trained on.", _check
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument("data", metavar="DATA", nargs="*", help="what to check, as one or as split")
    for split in SPLITS:
        about = "what is learned from" if split == "train" else "compared with what is learned from"
        parser.add_argument(f"--{split}", metavar="DATA", nargs="+", default=[], help=about)
    parser.add_argument("--out", type=Path, help="folder for report.html and findings.jsonl")
    parser.add_argument(
        "--image-size", type=positive, metavar="PX", help="side of the model's input (224)"
    )
    parser.add_argument(
        "--max-tokens",
        type=positive,
        metavar="N",
        help="that training reads of a caption or answer",
    )
    parser.add_argument(
        "--model",
        help="hub id or folder, whose tokenizer counts; default: that of --config where it is a "
        "folder, else words are counted",
    )
    parser.add_argument("--workers", type=positive, help=f"processes (one a core, up to {CPUS})")
    parser.add_argument("--format", help="as data.train.format of the recipes")
    parser.add_argument("--split", help="the one to read, of a source that holds several")
    parser.add_argument(
        "--image-root", metavar="DIR", help="folder that image paths are relative to"
    )
    parser.add_argument(
        "--allow",
        action="append",
        choices=ALLOWABLE,
        help="image paths that leave that folder, or addresses; may be given for both",
    )
    parser.add_argument("--image-column", metavar="NAME", help="column of the image (image)")
    parser.add_argument(
        "--caption-column", metavar="NAME", help="column of the caption or captions"
    )
    parser.add_argument(
        "--id-column", metavar="NAME", help="column of the image's or question's id"
    )
    parser.add_argument("--question-column", metavar="NAME", help="column of the question")
    parser.add_argument("--answer-column", metavar="NAME", help="column of the answers")
    parser.add_argument("--annotations", metavar="FILE", help="with VQAv2's answers")
    parser.add_argument("--images", metavar="DATA", help="that the questions name by id")
    parser.add_argument("--no-answers", action="store_true", help="questions of a test set")
    parser.add_argument("--revision", help="branch, tag or commit of a hub dataset")
    add_settings(parser, required=False)


def _check(arguments: argparse.Namespace) -> int:
    quiet_libraries()
    from blip2ft.audit.audit import audit
    from blip2ft.audit.kept import FINDINGS, PAGE
    from blip2ft.audit.page import write_page
    from blip2ft.audit.table import as_text

    asked = _from_config(arguments) if arguments.config else _from_options(arguments)
    model = asked.pop("model", None) or arguments.model
    report = audit(
        **asked,
        count_tokens=None if model is None else _counter(model),
        out=arguments.out,
        workers=arguments.workers or min(os.cpu_count() or 1, CPUS),
        progress=True,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(as_text(report))
    if arguments.out is not None:
        write_page(arguments.out / PAGE, report)
        print(f"{arguments.out / PAGE} shows them, {arguments.out / FINDINGS} lists each")
    return 1 if report.count("error") else 0


def _from_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `audit` where the data are named one by one."""
    from blip2ft.audit.reading import Source

    if arguments.overrides:
        raise ValueError(f"{arguments.overrides[0]} is a setting of a recipe; it needs --config")
    task = arguments.task or "caption"
    others = OF_CAPTIONS if task == "vqa" else OF_QUESTIONS
    wrong = next((name for name in others if getattr(arguments, name)), None)
    if wrong is not None:
        needed = "a task of captions" if task == "vqa" else "--task vqa"
        raise ValueError(f"--{wrong.replace('_', '-')} belongs to {needed}; leave it out")
    names = READING + (OF_QUESTIONS if task == "vqa" else OF_CAPTIONS)
    reading = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    if arguments.no_answers:
        if task != "vqa":
            raise ValueError("--no-answers belongs to --task vqa; leave it out")
        reading["require_answers"] = False
    given = {None: arguments.data} | {split: getattr(arguments, split) for split in SPLITS}
    splits = {
        name: [Source(data, reading) for data in listed] for name, listed in given.items() if listed
    }
    if not splits:
        raise ValueError(
            "nothing to check: name a file or folder, or one for each of --train, --validation and "
            "--test, or a recipe's settings with --config"
        )
    if arguments.annotations and sum(map(len, splits.values())) > 1:
        raise ValueError(
            "--annotations belong to one file of questions; check one at a time, or give all in a "
            "recipe's settings with --config"
        )
    return {
        "splits": splits,
        "task": task,
        "image_size": arguments.image_size or 224,
        "max_tokens": arguments.max_tokens,
    }


def _from_config(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `audit` as a recipe's settings have them."""
    from blip2ft.audit.reading import Source
    from blip2ft.settings import read_settings

    named = [arguments.data, *(getattr(arguments, split) for split in SPLITS)]
    one_by_one = (*READING, *OF_CAPTIONS, *OF_QUESTIONS, "no_answers")
    if any(named) or any(getattr(arguments, name) for name in one_by_one):
        raise ValueError(
            "--config names the data and how they are read; leave out the others, or override its "
            "settings: --data.train.source DATA"
        )
    task, settings = read_settings(arguments.config, arguments.overrides, arguments.task)
    data = settings["data"]
    given = {split: data.get(split) for split in SPLITS}
    if data.get("stream"):
        given["train"] = data["stream"]["sources"]
    splits = {}
    for name, found in given.items():
        listed = found if isinstance(found, list | tuple) else [found] if found else []
        sources = []
        for source in listed:
            reading = {k: v for k, v in source.items() if k not in ("source", "weight", "repeat")}
            kept = {k: v for k, v in reading.items() if v is not None}
            sources.append(Source(source["source"], kept))
        if sources:
            splits[name] = sources
    model = settings["model"]["name"]
    return {
        "splits": splits,
        "task": task,
        "model": arguments.model or (model if Path(model).is_dir() else None),
        "image_size": arguments.image_size or settings["model"]["image_size"] or 224,
        "max_tokens": arguments.max_tokens or data["max_target_tokens"],
    }


def _counter(model: str) -> Callable[[Sequence[str]], list[int]]:
    """Tokens of texts as a model's tokenizer counts them, with its special tokens."""
    from blip2ft.hub import check_model_name
    from blip2ft.models.source import explained

    check_model_name(model)
    from transformers import AutoTokenizer

    with explained(model):
        tokenizer = AutoTokenizer.from_pretrained(model)

    def count(texts: Sequence[str]) -> list[int]:
        found: list[int] = []
        for start in range(0, len(texts), 1000):
            found += map(len, tokenizer(list(texts[start : start + 1000]))["input_ids"])
        return found

    return count
