"""Where in which file something is, from what the readers call it."""

import os
import re
from functools import cached_property
from pathlib import Path

from blip2ft.data.patterns import find_files, is_pattern

# What follows a file's name in the readers' messages: a line, a row, a place in JSON, a key.
INSIDE = r":\d+|: row \d+|: \w*\[\d+\](?:\.qas\[\d+\])?|: [^\s,:()]+"
TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".tar")


class Places:
    """The files of one source, by their names, which are all that messages have of them."""

    def __init__(self, source: str) -> None:
        self.source = source

    @cached_property
    def files(self) -> dict[str, str]:
        """The paths of the source's files, by name."""
        path = Path(self.source)
        if path.is_file():
            return {path.name: self.source}
        if path.is_dir():
            found = [file for file in path.rglob("*") if file.suffix.lower() in TABLES]
        elif is_pattern(self.source) and path.suffix in (".tar", ".parquet"):
            found, _ = find_files(self.source, path.suffix, None)
        else:
            return {}
        return {file.name: os.fspath(file) for file in sorted(found, reverse=True)}

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """What finds an origin in a message."""
        names = [self.source, *self.files]
        named = "|".join(re.escape(name) for name in sorted(set(names), key=len, reverse=True))
        return re.compile(rf"(?:{named})(?:\[\w+\])?(?:{INSIDE})")

    @cached_property
    def line(self) -> re.Pattern[str]:
        """What finds the line that a message begins with, and the space behind it."""
        named = "|".join(re.escape(name) for name in {self.source, *self.files})
        return re.compile(rf"((?:{named}):\d+): ")

    def full(self, origin: str, root: Path | None = None) -> str:
        """An origin with the path of its file, from where the command runs."""
        if origin.startswith(self.source):
            return origin
        name = origin.partition(":")[0]
        if root is not None and name in self.files:
            return os.path.join(root, origin)
        return self.files[name] + origin[len(name) :] if name in self.files else origin

    def split(self, message: str) -> tuple[str, str]:
        """The origin in a message, and what else it says; the source and all of it without one."""
        found = self.pattern.search(message)
        if found is None:
            return self.source, message
        before, after = message[: found.start()], message[found.end() :]
        detail = before.rstrip(" (") + after.removeprefix(")") if before else after
        detail = detail.strip().lstrip(",:").strip()
        if detail.startswith("(") and detail.endswith(")"):
            detail = detail[1:-1]
        return self.full(found[0]), detail
