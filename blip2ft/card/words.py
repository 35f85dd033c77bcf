"""Tasks and metrics in words, and as the hub names them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Task:
    """title: what it is called; does: what the model does; pipeline: the hub's name of the task.

    inputs: what one is asked about, of which the scores count so many.
    """

    title: str
    does: str
    pipeline: str
    inputs: str


TASKS = {
    "caption": Task(
        "image captioning", "It writes a caption for an image.", "image-to-text", "image"
    ),
    "vqa": Task(
        "visual question answering",
        "It answers a question about an image.",
        "visual-question-answering",
        "question",
    ),
    "retrieval": Task(
        "image-text retrieval",
        "It tells how well an image and a text fit each other, to search images by words and words "
        "by image; it writes no text.",
        # the only task of the hub that stock transformers has this class for
        "zero-shot-image-classification",
        "image",
    ),
}
CLASSES = {
    "caption": "Blip2ForConditionalGeneration",
    "vqa": "Blip2ForConditionalGeneration",
    "retrieval": "Blip2ForImageTextRetrieval",
}
PARTS = {
    "vision": "image encoder",
    "qformer": "Q-Former with its queries",
    "projection": "projection into the language model",
    "language": "language model",
}
MODES = {"full": "trained in full", "lora": "trained by LoRA", "frozen": "as it was (frozen)"}


def part_name(task: str, part: str) -> str:
    """What a part of the model is called; "" where a model for this task has none."""
    if task == "retrieval":
        return {"projection": "heads", "language": ""}.get(part, PARTS[part])
    return PARTS[part]


def class_of(trained: Mapping[str, Any]) -> str:
    """The stock class of a run's model."""
    if trained["task"] == "vqa" and trained.get("question_in_qformer"):
        return "InstructBlipForConditionalGeneration"
    return CLASSES[trained["task"]]


def metric_name(name: str) -> str:
    """What a score of metrics.jsonl is called."""
    if name.startswith("bleu"):
        return f"BLEU-{name[4:]}"
    for way in ("image_to_text", "text_to_image"):
        if name.startswith(f"{way}_r"):
            return f"{way.replace('_', ' ')}, recall@{name.removeprefix(f'{way}_r')}"
    if name.startswith("accuracy_"):
        return f"accuracy, {name.removeprefix('accuracy_')}"
    named = {"cider": "CIDEr-D", "rougeL": "ROUGE-L", "meteor": "METEOR", "spice": "SPICE"}
    return named.get(name, name.replace("_", " "))


def hub_metric(name: str) -> str:
    """The hub's name of a score's metric."""
    for known in ("bleu", "rouge", "accuracy"):
        if name.startswith(known):
            return known
    return "recall" if "_r" in name or name == "mean_recall" else name


def told_metrics(task: str, scores: Mapping[str, float], rows: Any) -> list[str]:
    """A line for each metric among the scores: what it measures, and from where to where."""
    if task == "vqa":
        return [_accuracy(rows)]
    if task == "retrieval":
        return [
            "**recall@K** is the share of images that have one of their own texts among the first "
            "K of all texts, and of texts that have their own image among the first K; 0 to 1. "
            "The mean recall is that of the six."
        ]
    lines = {
        "cider": "**CIDEr-D**: agreement with the references in runs of one to four words, of "
        "which rare ones count more; 0 to 10, as the official scorer prints it (papers: times 100)",
        "exact_match": "**exact match**: the share of captions that are one of the references, to "
        "the letter; 0 to 1",
        "bleu4": "**BLEU-N**: the share of runs of up to N words that are in a reference too; 0 to "
        "1",
        "rougeL": "**ROUGE-L**: the longest common sequence of words with a reference; 0 to 1",
        "meteor": "**METEOR**: words in common with a reference, stems and synonyms too; 0 to 1",
        "spice": "**SPICE**: things, properties and relations in common with the references; 0 to "
        "1",
    }
    return [line for name, line in lines.items() if name in scores]


def _accuracy(rows: Any) -> str:
    if all(row.get("choices") and row.get("correct_choice") is not None for row in rows):
        return "**accuracy**: the percentage of questions of which the right choice was taken"
    if all(len(row["answers"]) > 1 for row in rows):
        return (
            "**accuracy**: VQA accuracy, as the official tool counts it: an answer that three "
            "people gave is right, one that fewer gave in part; a percentage"
        )
    return "**accuracy**: the percentage of answers that are the right one, but for capitals"
