"""The folder of a finished run, written by hand: nothing is trained, and no model is there."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from blip2ft.evaluation.sums import sums
from blip2ft.parse import parse_config
from blip2ft.settings import CONFIGS

STEPS = 40
BASE = "Salesforce/blip2-opt-2.7b"
FINDER = "Salesforce/blip2-itm-vit-g"
COMMIT = "59a1ef6c1e5117b3f65523d1c6066825bcf315e3"
PARTS = {"vision": "frozen", "qformer": "full", "projection": "full", "language": "frozen"}
COLOURS = ("red", "green", "blue")


def make_run(run: Path, task: str) -> Path:
    """Write a run of `task` (caption, vqa or retrieval) that has ended to the folder `run`.

    12 images, in photos/ beside it, of which half are in group "day" and half in "night"; scored
    before (step 0) and after (step 40), where the best lies. The third test image got worse.
    """
    photos = run.parent / "photos"
    write_photos(photos)
    for name in ("predictions", "checkpoints/step-00000040", "adapter"):
        (run / name).mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text(settings_of(task, str(photos)))
    base = FINDER if task == "retrieval" else BASE
    stands_for = {"base": base, "revision": COMMIT, "base_digest": "0" * 64}
    write_json(run / "base.json", stands_for)
    write_json(run / "environment.json", ENVIRONMENT)
    write_json(run / "samples.json", {"samples": 36})
    write_json(run / "training-data.json", LEARNED_FROM)
    write_json(run / "resources.json", RESOURCES)
    rows_of = {"caption": captions, "vqa": answers, "retrieval": rankings}[task]
    scores = []
    for split, step in (("test", 0), ("validation", 20), ("validation", 40), ("test", 40)):
        rows = rows_of(photos, after=step > 0)
        write_rows(run / "predictions" / f"{split}-{step:08d}.jsonl", rows)
        table = sums(task, rows)
        assert table is not None
        scores.append({"step": step, "split": split, **table.value()})
    write_rows(run / "metrics.jsonl", scores)
    losses = [{"step": n, "loss": 3 - n / 20, "lr": 1e-5} for n in range(10, STEPS + 1, 10)]
    rest = {"images_per_second": 8.0, "waiting": 0.05, "grad_norm": 1.5}
    write_rows(run / "log.jsonl", [row | rest for row in losses])
    described = {"task": task, **stands_for, "image_size": 224, "parts": PARTS, "lora": None}
    described |= {"quantize": {}}
    if task != "retrieval":
        decoding = {"num_beams": 5, "max_new_tokens": 30, "length_penalty": 1.0, "batch_size": 16}
        asked = {"caption": "a photo of", "vqa": "Question: {} Answer:"}[task]
        described |= {"prompt": asked, "generation": decoding}
    if task == "vqa":
        described |= {"question_in_qformer": False, "stage1": None}
    if task == "retrieval":
        described |= {"objectives": {"itc": 1.0, "itm": 1.0, "itg": 1.0}, "max_text_tokens": 32}
    write_json(run / "adapter" / "blip2ft.json", described)
    weights = {"query_tokens": torch.zeros(1, 4, 8)}
    save_file(weights, run / "adapter" / "trained.safetensors", {"format": "pt"})
    save_file(weights, run / "checkpoints/step-00000040/trained.safetensors", {"format": "pt"})
    return run


def captions(photos: Path, *, after: bool) -> list[dict[str, Any]]:
    """Predictions on 12 images; of those after training all are right but two."""
    rows = []
    for i, row in enumerate(images(photos)):
        colour = COLOURS[i % 3]
        right = f"a {colour} square number {i}"
        said = right if after else "a photo of something"
        if i == 2:
            said = "a cat" if after else right
        if i == 5 and after:
            said = "a red square"
        rows.append(row | {"caption": said, "references": [right, f"{colour} paper"]})
    return rows


def answers(photos: Path, *, after: bool) -> list[dict[str, Any]]:
    """Predictions on 24 questions, two to an image; after training one image's are wrong."""
    rows = []
    for i, row in enumerate(images(photos)):
        for kind, asked, right in (
            ("other", "What colour is it?", COLOURS[i % 3]),
            ("yes/no", "Is it a square?", "yes"),
        ):
            said = right if after != (i == 2) else "no"
            row = row | {"question_id": 2 * i + (kind != "other"), "question": asked}
            fields = row["fields"] | {"answer_type": kind}
            rows.append(row | {"answer": said, "answers": [right] * 10, "fields": fields})
    return rows


def rankings(photos: Path, *, after: bool) -> list[dict[str, Any]]:
    """Predictions on 12 images with two texts each; after training all but one are first."""
    rows = []
    for i, row in enumerate(images(photos)):
        own = [f"a {COLOURS[i % 3]} square number {i}", f"paper number {i}"]
        first = after != (i == 2)
        texts = [own[0], "a cat"] if first else ["a cat", own[0]]
        row = row | {"references": own, "caption": texts[0], "texts": texts, "scores": [0.9, 0.4]}
        ranks = {"image_rank": 1, "text_ranks": [1, 2]} if first else {"image_rank": 2}
        rows.append(row | {"text_ranks": [3, 12]} | ranks)
    return rows


def images(photos: Path) -> list[dict[str, Any]]:
    """What rows of each task say of an image."""
    return [
        {
            "image_id": f"{i:02d}.png",
            "image": str(photos / f"{i:02d}.png"),
            "fields": {"group": "night" if i % 2 else "day"},
        }
        for i in range(12)
    ]


def write_photos(folder: Path) -> None:
    """Twelve small squares of one colour each, with some noise."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(12):
        pixels = rng.integers(0, 60, (24, 24, 3), dtype=np.uint8)
        pixels[:, :, i % 3] = 220
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")


def settings_of(task: str, photos: str) -> str:
    """All settings of such a run, as its config.yaml has them."""
    words = ["--output", "runs/made", "--model.name", FINDER if task == "retrieval" else BASE]
    words += ["--model.revision", COMMIT, "--model.image_size", "224"]
    for split in ("validation", "test"):
        words += [f"--data.{split}.source", f"{photos}/{split}.csv"]
    train = f"{photos}/train.csv"
    words += ["--data.train", f'[{{"source": "{train}"}}]'] if task == "vqa" else []
    words += ["--data.train.source", train] if task != "vqa" else []
    words += ["--train.max_steps", str(STEPS), "--train.batch_size", "8"]
    words += ["--train.micro_batch_size", "4", "--optimizer.warmup_steps", "4"]
    words += [f"--parts.{part}={mode}" for part, mode in PARTS.items()]
    return parse_config(CONFIGS[task], words, f"recipes/{task}.py")[1]


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")


ENVIRONMENT = {
    "packages": {"blip2ft": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "peft": None},
    "python": "3.11.7",
    "platform": "Linux-6.1-x86_64",
    "cpus": 8,
    "gpus": ["NVIDIA A100-SXM4-40GB"],
    "git_commit": "c162ee9",
    "command": ["recipes/caption.py", "--config", "recipes/caption/my-folder.yaml"],
}
LEARNED_FROM = {
    "images": 12,
    "texts": 36,
    "distinct_texts": 30,
    "words_per_text": 4.5,
    "languages": {"en": 34, "not sure": 2},
    "repeated": 0.25,
}
RESOURCES = {
    "seconds": {"training": 40.0, "evaluating": 12.0, "total": 60.0},
    "steps": STEPS,
    "samples": 320,
    "samples_per_second": 8.0,
    "starts": 2,
    "processes": 1,
    "machines": 1,
    "devices": ["NVIDIA A100-SXM4-40GB"],
    "cpu": "AMD EPYC 7763",
    "precision": "bf16",
    "peak_memory": {"host": [4_000_000_000], "device": [12_000_000_000]},
    "energy": {
        "kwh": 0.006,
        "cpu_kwh": 0.001,
        "gpu_kwh": 0.0045,
        "ram_kwh": 0.0005,
        "cpu": "estimated from its load",
        "country": None,
        "co2e_kg": None,
        "measured_by": "codecarbon 3.3.2",
    },
}
