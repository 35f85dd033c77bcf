"""How long a run is: its samples, steps and hours, and what it leaves on disk."""

import glob
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blip2ft.data.order import Order
from blip2ft.data.patterns import expand_braces
from blip2ft.data.questions import read_questions
from blip2ft.data.records import read_records
from blip2ft.data.remote import is_remote
from blip2ft.data.stream import open_stream
from blip2ft.features.key import image_digest
from blip2ft.filters.rules import is_idle
from blip2ft.tasks.caption import caption_pairs
from blip2ft.tasks.retrieval import image_text_pairs
from blip2ft.tasks.vqa import answer_samples


def count_samples(task: str, settings: Mapping[str, Any]) -> tuple[int | None, str]:
    """Samples of an epoch, or None; and where the number is from, or why there is none.

    Only data that lies here is read.
    """
    data = settings["data"]
    how = "counted" if is_idle(data.get("filters", {})) else "counted before data.filters"
    transform: Any = None
    try:
        if task == "vqa":
            sources = data["train"]
            if missing := [s["source"] for s in sources if not _is_here(s["source"])]:
                return None, f"{missing[0]} isn't here"
            questions = [question for s in sources for question in read_questions(**s)]
            samples: Any = answer_samples(
                questions, transform, settings["prompt"], 0, answers=data["answers"]
            )
            return len(samples), how
        train, stream = data["train"], data["stream"]
        if (train is None) == (stream is None):
            raise ValueError("training takes data.train or data.stream, exactly one of them")
        named = [train] if stream is None else stream["sources"]
        if missing := [s["source"] for s in named if not _is_here(s["source"])]:
            return None, f"{missing[0]} isn't here"
        if stream is None:
            source: Any = read_records(**train)
        else:
            source = open_stream(**{key: stream[key] for key in stream if key != "max_broken"})
        if task == "retrieval":
            return len(image_text_pairs(source, transform, 0)), how
        return len(caption_pairs(source, transform, settings["prompt"], 0)), how
    except OSError as error:
        return None, str(error)


def count_images(task: str, settings: Mapping[str, Any]) -> tuple[int | None, str]:
    """Images whose features a run keeps, or None, and why there is no number.

    Training and evaluation count for themselves: large JPEGs are decoded otherwise for the two.
    """
    data, read = settings["data"], read_questions if task == "vqa" else read_records
    train = data["train"] if task == "vqa" else [data["train"]]
    evaluated = [source for source in (data["validation"], data["test"]) if source is not None]
    if missing := [s["source"] for s in (*train, *evaluated) if not _is_here(s["source"])]:
        return None, f"{missing[0]} isn't here"
    try:
        return sum(
            len({image_digest(one.image) for source in sources for one in read(**source)})
            for sources in (train, evaluated)
        ), "counted"
    except (OSError, ValueError) as error:
        return None, str(error)


def _is_here(source: str) -> bool:
    if is_remote(source):
        return False
    return any(glob.glob(pattern) or Path(pattern).exists() for pattern in expand_braces(source))


def count_steps(
    train: Mapping[str, Any], samples: int | None, *, stream: bool
) -> tuple[int | None, float | None]:
    """Optimizer steps and passes over the samples, as far as they are known."""
    batch, steps = train["batch_size"], None
    if stream and train["max_steps"] is not None:
        steps = train["max_steps"]
    elif samples is not None:
        steps = Order(samples, batch, 0).steps(train["epochs"])
        steps = min(steps, train["max_steps"] or steps)
    if steps is None or not samples:
        return steps, None
    return steps, steps * batch / samples


def speed_of(run: Path) -> float:
    """Images a second of an earlier run, all its processes together: the median of its log."""
    path = run / "log.jsonl"
    if not path.is_file():
        raise ValueError(f"--like {run} has no log.jsonl; give the folder of a run that trained")
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    speeds = [row["images_per_second"] for row in rows if "images_per_second" in row]
    if not speeds:
        raise ValueError(f"{path} has no images_per_second; give a run that took some steps")
    return statistics.median(speeds)


def disk(
    settings: Mapping[str, Any], saved: int, averages: int, images: int | None, an_image: int
) -> dict[str, Any]:
    """Bytes that the run writes: checkpoints at most, what was trained, shards and features kept.

    saved: parameters; averages: bytes of AdamW's; images: whose features are kept, None where they
    aren't known; an_image: bytes of one's, 0 without a cache of features.
    """
    state = 4 * saved + averages
    kept = settings["train"]["keep_checkpoints"] + 1  # beside the newest the best
    stream = settings["data"].get("stream")
    away = stream is not None and any(is_remote(s["source"]) for s in stream["sources"])
    return {
        "checkpoint": state,
        # a new one is whole before an old one is removed
        "checkpoints": (kept + 1) * state,
        "adapter": 4 * saved,
        "cache": int(stream["cache_gb"] * 10**9) if away else 0,
        "features": images * an_image if images is not None else None if an_image else 0,
    }
