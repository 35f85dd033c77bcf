"""`blip2ft score`."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from blip2ft.commands.options import command
from blip2ft.counted import counted


def add_score(commands: Any) -> None:
    parser = command(commands, "score", "Score predictions as the official tools do.", None)
    tasks = parser.add_subparsers(metavar="TASK", required=True, parser_class=type(parser))
    caption = command(tasks, "caption", "BLEU, ROUGE-L, CIDEr, METEOR, SPICE.", _score_captions)
    caption.add_argument(
        "--predictions",
        type=Path,
        required=True,
        help='JSON lines {"image_id", "caption"}, or a COCO results file',
    )
    caption.add_argument(
        "--references",
        type=Path,
        required=True,
        help='JSON lines {"image_id", "captions"}, COCO annotations, or what a recipe trains on: '
        "CSV, JSONL, Parquet, Karpathy's JSON, an image folder, a dataset",
    )
    caption.add_argument("--split", help="of references that hold several")
    vqa = command(tasks, "vqa", "Accuracy on VQAv2, OK-VQA and files like them.", _score_vqa)
    vqa.add_argument(
        "--questions", type=Path, required=True, help='{"questions": [{"question_id", "question"}]}'
    )
    vqa.add_argument(
        "--annotations",
        type=Path,
        required=True,
        help='{"annotations": [{"question_id", "answers", "answer_type", "question_type"}]}',
    )
    vqa.add_argument(
        "--predictions", type=Path, required=True, help='a JSON list of {"question_id", "answer"}'
    )
    vqa.add_argument(
        "--allow-missing",
        action="store_true",
        help="score only the questions that have a prediction; without it all annotated ones must "
        "have one, as for the official tool",
    )


def _score_captions(arguments: argparse.Namespace) -> int:
    from blip2ft.metrics import read_predictions, read_references, score_captions

    scores = score_captions(
        read_predictions(arguments.predictions),
        read_references(arguments.references, split=arguments.split),
    )
    for metric, reason in scores.unavailable.items():
        print(f"{metric} is left out: {reason}", file=sys.stderr)
    # the official tools know no exact match
    printed = {name: value for name, value in scores.scores.items() if name != "exact_match"}
    print(json.dumps(printed))
    return 0


def _score_vqa(arguments: argparse.Namespace) -> int:
    from blip2ft.metrics.vqa_files import read_vqa

    predictions, annotations, missing = read_vqa(
        arguments.questions,
        arguments.annotations,
        arguments.predictions,
        allow_missing=arguments.allow_missing,
    )
    from blip2ft.metrics.vqa_accuracy import vqa_accuracy

    scores = vqa_accuracy(
        list(predictions.values()),
        [annotation.answers for annotation in annotations.values()],
        [annotation.answer_type for annotation in annotations.values()],
        [annotation.question_type for annotation in annotations.values()],
    )
    if missing:
        questions = counted(missing, "annotated question")
        print(f"{questions} without a prediction, not scored", file=sys.stderr)
    print(json.dumps(scores, ensure_ascii=False))
    return 0
