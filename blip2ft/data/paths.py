"""Where the image files that a source names are, and whether they are there."""

import os
from pathlib import Path, PurePosixPath
from typing import Any

from blip2ft.data.arrow import Row
from blip2ft.data.entries import SHOWN, Entry, Problems
from blip2ft.data.tar import Part

LISTED_FROM = 64  # images in one folder from which listing it beats asking for each


def plain(path: str) -> str:
    """A path without the steps that change nothing: ./a//b.png is a/b.png."""
    return PurePosixPath(path).as_posix() if "./" in path or "//" in path else path


def locate(entry: Entry, image_root: str | None, problems: Problems) -> Any:
    """The image of an entry with its path completed; complains of paths that aren't allowed."""
    image = entry.image
    if isinstance(image, bytes | Row | Part):
        return image
    refused = b""  # a placeholder, so that the checks to come leave it alone
    if not isinstance(image, str) or not image.strip():
        remedy = "Write the path of an image file there, or remove the row."
        problems.add("no image named", entry.origin, remedy)
        return refused
    if "://" in image:
        remedy = "Fetch the images first, and write their paths."
        problems.add("an address in place of an image file", f"{image} ({entry.origin})", remedy)
        return refused
    root = os.fspath(entry.root) if image_root is None else image_root
    path = os.path.join(root, image)  # an absolute second part replaces the first
    absolute = os.path.isabs(image)
    if (".." in image and not absolute) or (absolute and image_root is not None):
        inside = os.path.abspath(root)
        if os.path.commonpath([inside, os.path.abspath(path)]) != inside:
            problems.add(
                f"image path outside of {root}, which would break or read other files elsewhere",
                f"{image} ({entry.origin})",
                "Set image_root to a folder that holds all images, and write paths from there.",
            )
            return refused
    return Path(path)


def check_files(named: list[tuple[Path, str]], problems: Problems) -> None:
    """Complain of paths where no file is; each comes with where it was named.

    Folders with many images are listed once, which on a network disk takes seconds, not minutes.
    """
    by_folder: dict[str, list[tuple[str, str]]] = {}
    for path, origin in named:
        folder, name = os.path.split(path)
        by_folder.setdefault(folder, []).append((name, origin))
    hints = SHOWN
    for folder, inside in by_folder.items():
        there = list_files(folder) if len(inside) >= LISTED_FROM else set()
        for name, origin in inside:
            path_text = os.path.join(folder, name)
            if name in there or os.path.isfile(path_text):
                continue
            hint = alike(path_text) if hints > 0 else ""
            hints -= 1
            problems.add(
                "no such image file",
                f"{path_text} ({origin}){hint}",
                "Set image_root to the folder that the paths start from, or correct the paths.",
            )


def list_files(folder: str) -> set[str]:
    """Names of the files in a folder; none if there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except OSError:
        return set()


def alike(path: str) -> str:
    """A hint: the same name with another ending or in other letters, if one is there."""
    stem, _ = os.path.splitext(path)
    for suffix in (".jpg", ".jpeg", ".png", ".webp"):
        for other in (stem + suffix, stem + suffix.upper()):
            if os.path.isfile(other):
                return f", but {os.path.basename(other)} is there"
    return ""
