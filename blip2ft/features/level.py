"""Up to which point a run's features can be kept. Nothing heavy is imported here."""

from collections.abc import Mapping
from typing import Any

VISION, QUERIES = "vision", "queries"


def cache_level(settings: Mapping[str, Any]) -> str | None:
    """The last point of a run up to which nothing trains and an image alone decides.

    "vision" is before the norm behind the image encoder's blocks, "queries" behind the projection
    into the language model; None where the run keeps nothing (cache.folder is null), or trains
    nothing (evaluate_only).

    settings: groups by name, as `asdict` makes them of a recipe's config.

    Raises ValueError where features would differ from step to step or from epoch to epoch.
    """
    if settings["cache"]["folder"] is None or settings.get("evaluate_only"):
        return None
    parts, data = settings["parts"], settings["data"]
    wrong = []
    if parts["vision"] != "frozen":
        wrong.append(
            f"parts.vision is {parts['vision']}, and what a part that trains computes changes with "
            "every step: set it to frozen"
        )
    if data["crop_scale"] is not None:
        wrong.append("data.crop_scale crops each epoch differently: set it to null")
    if data["flip"]:
        wrong.append("data.flip draws anew each epoch: set it to false")
    if data.get("stream") is not None:
        wrong.append("data.stream may have more images than a disk: give data.train instead")
    if wrong:
        raise ValueError(
            "cache.folder is set, but features can't be kept (or set cache.folder to null):\n- "
            + "\n- ".join(wrong)
        )
    frozen = parts["qformer"] == parts["projection"] == "frozen"
    reads_text = settings.get("question_in_qformer", False) or "objectives" in settings
    return QUERIES if frozen and not reads_text else VISION
