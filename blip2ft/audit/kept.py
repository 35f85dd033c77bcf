"""What was seen of images is kept as it comes, so that a run that was stopped goes on.

OUT/audit.json       which data this folder is about
OUT/.looks-1.jsonl   {"key", "look"}: what was seen of each image, by file, size and time of change
OUT/findings.jsonl   each finding, with file and line
OUT/report.html      the page
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from blip2ft.audit.contents import Picture, held_in
from blip2ft.audit.looks import Look, look_of
from blip2ft.data.arrow import Row
from blip2ft.data.counts import fingerprint
from blip2ft.data.remote import Remote
from blip2ft.data.tar import Part
from blip2ft.whole import LOCK, PARTIAL, check_writable, remove_partial, whole, write_text

ABOUT = "audit.json"
LOOKS = ".looks-1.jsonl"  # a number for what a look says: others aren't read
FINDINGS = "findings.jsonl"
PAGE = "report.html"


def check_folder(out: Path, data: Mapping[str, Any]) -> None:
    """Raise ValueError where the folder holds something else, or a report about other data."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; choose a folder for the report")
    check_writable(out)
    held = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    others = [name for name in held if name != LOCK and not name.startswith(PARTIAL)]
    if not others:
        return
    about = out / ABOUT
    if ABOUT not in others:
        raise ValueError(
            f"{out} is in use and holds no report of blip2ft check ({others[0]}); nothing in it is "
            "overwritten: choose another folder"
        )
    try:
        found = json.loads(about.read_bytes())["data"]
        told = _told(found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{about} is damaged, or not of blip2ft check: it doesn't say which data {out} is "
            f"about. Nothing is overwritten: choose another folder, or remove {out} if nothing in "
            "it is needed"
        ) from error
    if found != data:
        raise ValueError(
            f"{out} holds the report about other data ({told}), and isn't overwritten; choose "
            "another folder"
        )


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A file or folder of the report is written: an error of the disk names it."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"{path} can't be written: {error.strerror or error}. Make room for it, or choose "
            "another folder with --out; what is kept of images isn't lost"
        ) from error


def _told(data: Mapping[str, Any]) -> str:
    return ", ".join(source for sources in data.values() for source, *_ in sources)


class Kept:
    """What was seen before, of images that haven't changed since, and what is seen now.

    damaged: how many lines of what was kept can't be read. Their images are looked at anew, as is
    that of a last line without an end, which a kill cut off.
    """

    def __init__(self, out: Path | None, data: Mapping[str, Any]) -> None:
        self.path = None if out is None else out / LOOKS
        self.looks: dict[str, Look] = {}
        self.damaged = 0
        if out is None or self.path is None:
            return
        with writing(out / ABOUT):
            remove_partial(out)
            write_text(out / ABOUT, json.dumps({"data": data}, indent=2) + "\n")
        if not self.path.is_file():
            return
        *lines, unfinished = self.path.read_bytes().split(b"\n")
        for line in lines:
            try:
                kept = json.loads(line)
                self.looks[kept["key"]] = look_of(kept["look"])
            except (ValueError, KeyError, TypeError):
                self.damaged += 1
        if self.damaged or unfinished:
            self._write(self.looks)

    def add(self, seen: Iterable[tuple[str, Look]]) -> None:
        """Keep what was seen of some images; those without a key aren't kept."""
        named = {key: look for key, look in seen if key}
        self.looks |= named
        if self.path is not None and named:
            with writing(self.path), self.path.open("a", encoding="utf-8") as file:
                file.writelines(_line(key, look) for key, look in named.items())

    def forget_others(self, keys: Iterable[str]) -> None:
        """Leave out what was seen of images that aren't named any more, or have changed."""
        wanted = set(keys)
        if self.path is not None and len(self.looks) > len(wanted & self.looks.keys()):
            self._write({key: look for key, look in self.looks.items() if key in wanted})

    def _write(self, looks: Mapping[str, Look]) -> None:
        assert self.path is not None
        with (
            writing(self.path),
            whole(self.path) as partial,
            partial.open("w", encoding="utf-8") as file,
        ):
            file.writelines(_line(key, look) for key, look in looks.items())


def _line(key: str, look: Look) -> str:
    return json.dumps({"key": key, "look": asdict(look)}) + "\n"


def keys_of(pictures: Iterable[Picture]) -> list[str]:
    """What each image is kept by: its file with size and time of change; "" where there is none."""
    seen: dict[str, str] = {}  # a tar has many images

    def printed(path: str | Path) -> str:
        name = os.path.abspath(path)
        if name not in seen:
            try:
                seen[name] = fingerprint(name)
            except (OSError, ValueError):
                seen[name] = ""
        return seen[name]

    keys = []
    for picture in pictures:
        image = picture.image
        if isinstance(image, Path):
            keys.append(printed(image))
        elif isinstance(image, Remote):
            keys.append(image.url)  # taken to stay the same
        elif isinstance(image, Part):
            keys.append(f"{found} at {image.offset}" if (found := printed(image.tar)) else "")
        else:
            held = held_in(image) if isinstance(image, Row) else ""
            keys.append(f"{printed(held)} row {image.index}" if held else "")
    return keys
