"""Tar files as webdataset lays them out: where each sample begins, and its members.

Members whose paths are equal up to the first dot of the name are one sample, and follow each other:
000012.jpg, 000012.json. The package webdataset reads such files from front to back only, and
Python's tarfile takes five times as long to find the samples; so the headers are read here.
"""

import io
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

BLOCK = 512  # headers and data fill whole blocks
AHEAD = 1 << 16  # bytes read at once on the way from header to header


class Member(NamedTuple):
    """A file in a tar: where its header begins and, `size` bytes long, its data."""

    name: str
    header: int
    data: int
    size: int


@dataclass(frozen=True, slots=True)
class Part:
    """A file in a tar, read when asked for."""

    tar: Path
    offset: int
    size: int

    def read(self) -> bytes:
        """The bytes of the file. Raises ValueError where the tar has become too short."""
        with open(self.tar, "rb") as file:
            file.seek(self.offset)
            data = file.read(self.size)
        if len(data) < self.size:
            raise ValueError(f"{self.tar}: {_CUT}")
        return data


@dataclass(frozen=True)
class TarSample:
    """One sample: its key, and the bytes of its members and where they are, by extension."""

    key: str
    data: dict[str, bytes]
    offsets: dict[str, int]


_CUT = "the tar is cut off. Fetch or write it again."


def find_samples(path: Path) -> np.ndarray:
    """Where the samples of a tar begin, and the last one ends: (N + 1,) int64, bytes.

    Raises ValueError for what isn't a tar or is cut off inside a member, and where the members of a
    sample are apart.
    """
    starts: list[int] = []
    seen: set[str] = set()
    end, last = 0, None
    with open(path, "rb", buffering=AHEAD) as file:
        length = file.seek(0, io.SEEK_END)
        for member in members(file, length, path):
            key = split_name(member.name)[0]
            if key is None:
                continue
            if key != last:
                if key in seen:
                    raise ValueError(
                        f"{path}: the members of sample {key!r} are apart, but those of a sample "
                        "have to follow each other. Write it again, sorted by name (tar "
                        "--sort=name), or with blip2ft shard."
                    )
                seen.add(key)
                starts.append(member.header)
                last = key
            end = member.data + -(-member.size // BLOCK) * BLOCK
    return np.array([*starts, end], np.int64)


def read_sample(path: Path, start: int, end: int) -> TarSample:
    """The sample between two bytes of a tar, as `find_samples` gave them.

    The file is opened for each sample, which takes microseconds: so none is left open, and none is
    shared by the processes of a loader.

    Raises ValueError where the tar has changed or become too short.
    """
    with open(path, "rb") as file:
        file.seek(start)
        block = file.read(end - start)
    if len(block) < end - start:
        raise ValueError(_CUT)
    sample = TarSample("", {}, {})
    for member in members(io.BytesIO(block), len(block), path):
        key, extension = split_name(member.name)
        if key is None:
            continue
        sample = sample if sample.key else TarSample(key, {}, {})
        sample.data.setdefault(extension, block[member.data : member.data + member.size])
        sample.offsets.setdefault(extension, start + member.data)
    return sample


def fill_tar(path: Path, files: Iterable[tuple[str, bytes]]) -> int:
    """Write a tar of files by name, as they come; its size.

    Equal files give equal bytes: no time and no owner is written.
    """
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path.stat().st_size


def split_name(name: str) -> tuple[str | None, str]:
    """Key and extension of a member: a/b.seg.PNG is a/b and seg.png.

    A key of None is no part of a sample: it has no extension, or its name begins with a dot.
    """
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, _, extension = base.partition(".")
    return (folder + slash + stem if stem and extension else None), extension.lower()


def members(file: BinaryIO, length: int, path: Path) -> Iterator[Member]:
    """The files in a tar of `length` bytes; folders, links and the like are left out."""
    header, long_name, long_size = 0, None, None
    start: int | None = None  # of a header that belongs to the next
    while header < length:
        file.seek(header)
        block = file.read(BLOCK)
        if not block.strip(b"\0"):
            return
        if len(block) < BLOCK:
            raise ValueError(f"{path}: {_CUT}")
        kind, size = block[156:157], _checked_size(block, header, path)
        start = header if start is None else start
        data = header + BLOCK
        if kind in b"xL":
            extra = file.read(size)
            if len(extra) < size:
                raise ValueError(f"{path}: {_CUT}")
            if kind == b"L":
                long_name = extra.rstrip(b"\0")
            else:
                records = _pax_records(extra)
                long_name = records.get(b"path", long_name)
                long_size = int(records[b"size"]) if b"size" in records else long_size
        elif kind not in b"gK":
            size = size if long_size is None else long_size
            name = _short_name(block) if long_name is None else long_name
            if data + size > length:
                raise ValueError(
                    f"{path}: cut off inside {name.decode('utf-8', 'replace')}: it would end at "
                    f"byte {data + size}, the tar does at {length}. Fetch or write it again."
                )
            if kind in b"0\x007":
                yield Member(name.decode("utf-8", "replace"), start, data, size)
            start = long_name = long_size = None
        header = data + -(-size // BLOCK) * BLOCK
    if header > length or start is not None:
        raise ValueError(f"{path}: {_CUT}")


def _checked_size(block: bytes, header: int, path: Path) -> int:
    try:
        checksum = sum(block) - sum(block[148:156]) + 8 * ord(" ")
        if checksum == int(block[148:156].strip(b"\0 "), 8):
            if block[124] & 0x80:  # too large for octal digits
                return int.from_bytes(block[125:136], "big")
            return int(block[124:136].strip(b"\0 ") or b"0", 8)
    except ValueError:
        pass
    where = "it" if header == 0 else f"byte {header} of it"
    raise ValueError(
        f"{path}: not a tar that can be read ({where} begins with {block[:16]!r}). Fetch or write "
        "it again; one that is compressed (.tar.gz) has to be unpacked first."
    )


def _short_name(block: bytes) -> bytes:
    name = block[:100].split(b"\0", 1)[0]
    folder = block[345:500].split(b"\0", 1)[0]
    return folder + b"/" + name if folder and block[257:263] == b"ustar\0" else name


def _pax_records(data: bytes) -> dict[bytes, bytes]:
    """Of lines such as b"18 path=a/b.jpg\\n", whose number is their length."""
    records, at = {}, 0
    while at < len(data):
        digits, _, _ = data[at:].partition(b" ")
        if not digits.isdigit() or not int(digits):
            break
        name, _, value = data[at + len(digits) + 1 : at + int(digits) - 1].partition(b"=")
        records[name] = value
        at += int(digits)
    return records
