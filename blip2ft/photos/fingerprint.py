"""Whether two models are the same: sha256 over config, image processor and weights."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import snapshot_download

from blip2ft.finetuned import adapter_folder, is_run
from blip2ft.hub import check_revision
from blip2ft.models.adapters import DESCRIPTION_FILE, FULL_FILE, LORA_FILE, read_description
from blip2ft.models.hub_adapter import holds_adapter
from blip2ft.models.identity import WEIGHTS
from blip2ft.models.source import explained, read_config
from blip2ft.photos.shards import Maker, read_maker

TEXT_FILES = ("*.json", "*.txt", "*.model")  # of a model on the hub, the tokenizer's too
SETTINGS = ("config.json", "preprocessor_config.json", "processor_config.json")


def model_folder(name: str, revision: str | None = None) -> Path:
    """Where the files of a folder or hub id are; for a hub id the folder's name is the commit.

    For a run, here or on the hub, the folder of its adapter.

    Raises ValueError for what is no BLIP-2, and for a revision of a folder.
    """
    check_revision(name, revision)
    if is_run(name):
        return adapter_folder(name).resolve()
    if Path(name).is_dir():
        read_config(name)
        return Path(name).resolve()
    if holds_adapter(name, revision):
        return adapter_folder(f"{name}@{revision}" if revision else name)
    read_config(name, revision)
    with explained(name):
        kinds = ("*.safetensors", "*.bin")
        for kind in kinds:
            found = Path(
                snapshot_download(name, revision=revision, allow_patterns=[*TEXT_FILES, kind])
            )
            if any(found.glob(kind)):
                break
    return found


def checked_maker(
    out: Path,
    model: str | Path | None,
    revision: str | None,
    image_size: int | None,
    quantize: Mapping[str, str] | None = None,
) -> tuple[Maker, Path]:
    """The model of an index and its folder; ValueError where it isn't `model`, or has changed."""
    maker = read_maker(out)
    name = str(model or maker.model)
    if model is None and Path(name).is_absolute() and not Path(name).is_dir():
        raise ValueError(
            f"{out} was made with {name}, which isn't there; name where it is now (--model)"
        )
    at = model_folder(name, revision if model else maker.revision)
    found, _ = fingerprint(at, maker.files)
    if found != maker.fingerprint:
        other = f"{name} is another" if model else "the model there has changed since"
        raise ValueError(
            f"{out} was made with {maker.model} (fingerprint {maker.fingerprint[:12]}), and "
            f"{other} (fingerprint {found[:12]}); features of two models can't be compared: "
            "name that model, or make another index"
        )
    if image_size not in (None, maker.image_size):
        raise ValueError(
            f"{out} was made with image_size {maker.image_size}, not {image_size}; leave it out, "
            "or make another index"
        )
    check_bits(out, maker, quantize)
    return maker, at


def check_bits(out: Path, maker: Maker, quantize: Mapping[str, str] | None) -> None:
    """Raise ValueError where photos would be encoded in other bits than those of the index."""
    if quantize in (None, maker.quantize):
        return
    made, given = (
        " and ".join(f"{part} in {kind}" for part, kind in parts.items()) or "nothing in fewer bits"
        for parts in (maker.quantize, quantize)
    )
    raise ValueError(
        f"{out} was made with {made}, not with {given}, and features of the two can't be compared; "
        "leave quantize out, for what the index was made with, or make another index"
    )


def fingerprint(folder: Path, known: Mapping[str, list] | None = None) -> tuple[str, dict]:
    """The fingerprint of the model in `folder`, and the stat and sha256 of each file in it.

    known: such a table of before. A file at the same path with the same size and the same times
    of change, of which ctime can't be set, isn't read again: 4.7 GB take seconds.
    """
    total, files = hashlib.sha256(), {}
    for file in _files(folder):
        status = file.stat()
        seen = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        *before, digest = (known or {}).get(str(file), [None])
        if before != seen:
            digest = _sha256(file)
        files[str(file)] = [*seen, digest]
        total.update(f"{file.name} {digest}\n".encode())
    return total.hexdigest(), files


def _files(folder: Path) -> list[Path]:
    """What decides on the features of a photo and a text, the tokenizer aside."""
    if is_run(folder):
        own = [folder / name for name in (DESCRIPTION_FILE, LORA_FILE, FULL_FILE)]
        description = read_description(folder)
        base = model_folder(description["base"], description["revision"])
        return [*(file for file in own if file.is_file()), *_files(base)]
    found = [folder / name for name in SETTINGS if (folder / name).is_file()]
    first = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if first is None:
        raise ValueError(f"{folder} holds no weights; download or export the model again")
    if first.suffix != ".json":
        return [*found, first]
    parts = json.loads(first.read_text(encoding="utf-8"))["weight_map"].values()
    return [*found, first, *(folder / name for name in sorted(set(parts)))]


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while chunk := opened.read(2**22):
            digest.update(chunk)
    return digest.hexdigest()
