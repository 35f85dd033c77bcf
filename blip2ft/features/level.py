"""Whether a run's features can be kept, up to which point, and where. Nothing heavy is imported."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

VISION, QUERIES = "vision", "queries"


def cache_level(settings: Mapping[str, Any]) -> str | None:
    """The last point of a run up to which nothing trains and an image alone decides.

    "vision" is before the norm behind the image encoder's blocks, "queries" behind the projection
    into the language model; None where the run keeps nothing (cache.folder is null), or trains
    nothing (evaluate_only).

    settings: groups by name, as `asdict` makes them of a recipe's config.

    Raises ValueError where features would differ from step to step or from epoch to epoch, or
    cache.folder can be no folder.
    """
    if settings["cache"]["folder"] is None or settings.get("evaluate_only"):
        return None
    cache_folder(settings["cache"]["folder"])
    if wrong := obstacles(settings):
        raise ValueError(
            "cache.folder is set, but features can't be kept (or set cache.folder to null):\n- "
            + "\n- ".join(wrong)
        )
    parts = settings["parts"]
    frozen = parts["qformer"] == parts["projection"] == "frozen"
    reads_text = settings.get("question_in_qformer", False) or "objectives" in settings
    return QUERIES if frozen and not reads_text else VISION


def obstacles(settings: Mapping[str, Any]) -> list[str]:
    """Why features of a run with `settings` can't be kept, and what to set; empty where they can.

    settings: as for `cache_level`.
    """
    parts, data = settings["parts"], settings["data"]
    wrong = []
    if parts["vision"] != "frozen":
        wrong.append(
            f"parts.vision is {parts['vision']}, and what a part that trains computes changes with "
            "every step: set it to frozen"
        )
    if data["crop_scale"] is not None:
        wrong.append("data.crop_scale crops each epoch differently: set it to null")
    for split in ("train", "validation", "test"):
        given = data.get(split) or ()
        sources = [given] if isinstance(given, Mapping) else given
        if any("remote" in source.get("allow", ()) for source in sources):
            wrong.append(
                f"data.{split}.allow has remote, and to know an image at an address is to fetch it "
                "anew each time: fetch the images first and write their paths"
            )
    if data["flip"]:
        wrong.append("data.flip draws anew each epoch: set it to false")
    if data.get("stream") is not None:
        wrong.append("data.stream may have more images than a disk: give data.train instead")
    if data["on_bad_image"] == "skip":
        wrong.append(
            "data.on_bad_image is skip, and every image is read before the first step: set it to "
            "stop (blip2ft check names bad images)"
        )
    return wrong


def cache_folder(given: str) -> Path:
    """The folder that cache.folder names; "~" is the home folder.

    Raises ValueError for an empty name, which would be the working directory, and for a "~" of
    nobody.
    """
    if not given.strip():
        raise ValueError(f"cache.folder is {given!r}: allowed is a folder's name, such as features")
    try:
        return Path(given).expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"cache.folder is {given!r}, and that home folder isn't known; write it in full"
        ) from error
