"""Where the image files that a source names are, and whether they are there."""

import os
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Any

from blip2ft.data.arrow import Row
from blip2ft.data.entries import ALLOWABLE, SHOWN, Entry, Problems
from blip2ft.data.remote import Remote
from blip2ft.data.tar import Part

SCHEMES = ("http", "https", "s3", "gs", "gcs", "az", "abfs", "hf")  # none that reads local files
LISTED_FROM = 64  # images in one folder from which listing it beats asking for each


def plain(path: str) -> str:
    """A path without the steps that change nothing: ./a//b.png is a/b.png."""
    return PurePosixPath(path).as_posix() if "./" in path or "//" in path else path


def check_allowed(allow: Collection[str]) -> None:
    """Raise ValueError for what can't be allowed."""
    for what in allow:
        if what not in ALLOWABLE:
            raise ValueError(
                f"allow has {what!r}: allowed are {' and '.join(ALLOWABLE)}, or [] for none"
            )


def locate(
    entry: Entry, image_root: str | None, problems: Problems, allow: Collection[str] = ()
) -> Any:
    """The image of an entry with its path completed; complains of paths that aren't allowed.

    allow: "outside", paths that leave the folder they start from; "remote", addresses. A link
    inside the folder is followed wherever it leads, as only who may write there can have made it;
    steps .. behind one have to lead where they seem to.
    """
    image = entry.image
    if isinstance(image, bytes | Row | Part):
        return image
    refused = b""  # a placeholder, so that the checks to come leave it alone
    if not isinstance(image, str) or not image.strip():
        remedy = "Write the path of an image file there, or remove the row."
        problems.add("no image named", entry.origin, remedy)
        return refused
    if "\0" in image:
        remedy = "Write the path without it."
        problems.add("a NUL character in an image path", f"{image!r} ({entry.origin})", remedy)
        return refused
    if "://" in image:
        return _locate_remote(image, entry.origin, problems, allow) or refused
    root = os.fspath(entry.root) if image_root is None else image_root
    path = os.path.join(root, image)  # an absolute second part replaces the first
    if ("outside" not in allow) and (".." in image or os.path.isabs(image)):
        inside, seeming = os.path.abspath(root), os.path.abspath(path)
        elsewhere = ".." in image and os.path.realpath(path) != os.path.realpath(seeming)
        if elsewhere or os.path.commonpath([inside, seeming]) != inside:
            problems.add(
                f"image path outside of {root}, which would break or read other files elsewhere",
                f"{image} ({entry.origin})",
                "Set image_root to a folder that holds all images, or if you trust the file that "
                "names them, allow to [outside].",
            )
            return refused
    return Path(path)


def _locate_remote(
    url: str, origin: str, problems: Problems, allow: Collection[str]
) -> Remote | None:
    if "remote" not in allow:
        remedy = "Fetch the images first and write their paths, or set allow to [remote]."
        problems.add("an address in place of an image file", f"{url} ({origin})", remedy)
        return None
    if url.partition("://")[0].lower() not in SCHEMES:
        remedy = f"Addresses may begin with {', '.join(f'{name}://' for name in SCHEMES)}."
        problems.add("an address of another kind", f"{url} ({origin})", remedy)
        return None
    return Remote(url)


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
            if os.path.exists(path_text):
                what = "a folder" if os.path.isdir(path_text) else "neither a file nor a folder"
                place, remedy = f"{path_text} ({origin})", "Name an image file."
                problems.add(f"{what} where an image is named", place, remedy)
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
    folder, name = os.path.split(path)
    stem, ending = os.path.splitext(name.casefold())
    by_name = {found.casefold(): found for found in sorted(list_files(folder or "."))}
    for suffix in dict.fromkeys((ending, ".jpg", ".jpeg", ".png", ".webp")):
        if stem + suffix in by_name:
            return f", but {by_name[stem + suffix]} is there"
    return ""
