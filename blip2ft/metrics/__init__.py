"""Metrics: the official COCO caption scores, in Python where possible, recall at K, VQA.

Each of `MODULES` is a file that holds a function and the `evaluate` module around it:
`evaluate.load(module_path("cider"))` works offline.
"""

from pathlib import Path

from blip2ft.metrics.caption_files import read_predictions, read_references
from blip2ft.metrics.captions import CaptionScores, score_captions
from blip2ft.metrics.java import MetricUnavailable
from blip2ft.metrics.ptb import tokenize

__all__ = [
    "CaptionScores",
    "MetricUnavailable",
    "module_path",
    "read_predictions",
    "read_references",
    "score_captions",
    "tokenize",
]

MODULES = ("bleu", "rouge", "cider", "meteor", "spice", "recall_at_k", "vqa_accuracy")


def module_path(name: str) -> str:
    """Path of a metric's file, for `evaluate.load`."""
    if name not in MODULES:
        raise ValueError(f"There is no metric {name!r}. Choose one of: {', '.join(MODULES)}.")
    return str(Path(__file__).with_name(f"{name}.py"))
