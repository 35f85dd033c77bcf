"""The images of a run's answers, as small pictures inside a page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip2ft.data.questions import read_questions
from blip2ft.data.records import read_records
from blip2ft.data.remote import Remote
from blip2ft.errors import plain_message
from blip2ft.pages import thumbnail
from blip2ft.report.gallery import Sample
from blip2ft.report.reading import Contents

SIDE = 320  # pixels of the longer side: sharp at 160 on dense screens


@dataclass(frozen=True)
class Picture:
    """An image as the page has it, a data URI, and what `open_image` opens it by."""

    uri: str
    source: Any


def pictures_of(run: Contents, samples: Sequence[Sample]) -> tuple[dict[Any, Picture], str]:
    """The pictures by the samples' keys, and why some are missing, "" where none is.

    An image is read from the path that its answer names, else out of the data that the run's
    settings name. Images at addresses aren't fetched.
    """
    pictures: dict[Any, Picture] = {}
    lost = [sample for sample in samples if not _add(pictures, sample, sample.image)]
    if not lost:
        return pictures, ""
    try:
        images = _images(run)
    # TypeError: settings of another version
    except (ValueError, OSError, TypeError) as error:
        told = plain_message(error).splitlines()[0]
        return pictures, (
            f"The images of {_some(lost, samples)} aren't shown, as the data can't be read: {told} "
            "Paths start from the folder in which the run was started: make the page there."
        )
    lost = [sample for sample in lost if not _add(pictures, sample, images.get(sample.image_id))]
    if not lost:
        return pictures, ""
    return pictures, (
        f"The images of {_some(lost, samples)} aren't shown: they can't be read, lie at an "
        f"address, or aren't in {run.data['source']} any more."
    )


def _images(run: Contents) -> Mapping[Any, Any]:
    """The images of the split that the answers are of, by their ids."""
    data = dict(run.data)
    read = read_questions if run.task == "vqa" else read_records
    if run.task == "vqa":
        data["require_answers"] = False
    return {record.image_id: record.image for record in read(**data, check_images=False)}


def _add(pictures: dict[Any, Picture], sample: Sample, image: Any) -> bool:
    if image is None or isinstance(image, Remote) or "://" in str(image)[:10]:
        return False
    source = Path(image) if isinstance(image, str) else image
    try:
        pictures[sample.key] = Picture(thumbnail(source, SIDE), source)
    except (ValueError, OSError):
        return False
    return True


def _some(lost: Sequence[Sample], samples: Sequence[Sample]) -> str:
    return f"{len(lost)} of the {len(samples)} answers below"
