"""Readers of the caption files of COCO and of Karpathy's splits of COCO and Flickr30k."""

from pathlib import Path
from typing import Any

from blip2ft.data.decode import decode_json, decode_text
from blip2ft.data.entries import (
    Entry,
    Problems,
    Request,
    check_captions,
    unknown_split,
)


def read_coco(source: str, request: Request, problems: Problems) -> list[Entry]:
    """COCO captions: `images` with id and file_name, `annotations` with image_id and caption.

    NoCaps has the same form. Other keys of an image (domain, coco_url ...) become fields.
    """
    path = Path(source)
    if request.split is not None:
        raise ValueError(
            f"{path.name}: COCO has a file for each split, so there is no {request.split!r} to "
            "choose. Give the split's own file, and leave split out."
        )
    content = json_object(path, "images")
    annotations = content.get("annotations", [])
    if not isinstance(annotations, list):
        raise ValueError(f"{path.name}: 'annotations' isn't a list. Give a COCO captions file.")

    entries: dict[str | int, Entry] = {}
    for number, image in enumerate(content["images"]):
        origin = f"{path.name}: images[{number}]"
        identity = named(image, ("id",), origin, problems)
        file_name = named(image, ("file_name",), origin, problems)
        if identity is None or file_name is None:
            continue
        if identity in entries:
            problems.add(
                "the image id is there twice",
                f"{origin} (id {identity}, also {entries[identity].origin})",
                "Give each image its own id.",
            )
            continue
        fields = {name: value for name, value in image.items() if name not in ("id", "file_name")}
        entries[identity] = Entry(file_name, identity, (), origin, fields, path.parent, number)

    captions: dict[str | int, list[str]] = {}
    for number, annotation in enumerate(annotations):
        origin = f"{path.name}: annotations[{number}]"
        identity = named(annotation, ("image_id",), origin, problems)
        if identity is None:
            continue
        if identity not in entries:
            problems.add(
                "a caption of an image that isn't listed",
                f"{origin} (image_id {identity})",
                "Add the image to 'images', or remove the annotation.",
            )
            continue
        texts = check_captions(
            annotation.get("caption"), origin, request.require_captions, problems
        )
        captions.setdefault(identity, []).extend(texts)

    for identity, entry in entries.items():
        if identity in captions:
            entry.captions = tuple(captions[identity])
        elif request.require_captions:
            problems.add(
                "an image without a caption",
                f"{entry.origin} (id {identity})",
                "Remove it from 'images', or add an annotation.",
            )
    return list(entries.values())


def read_karpathy(source: str, request: Request, problems: Problems) -> list[Entry]:
    """Karpathy's dataset_coco.json, dataset_flickr30k.json or dataset_flickr8k.json.

    The split has to be named. That of "train" includes "restval", the images of COCO's validation
    set that neither "val" nor "test" took, as in the paper. Paths are filepath/filename.
    """
    path = Path(source)
    content = json_object(path, "images")
    splits = sorted({str(im.get("split")) for im in content["images"] if isinstance(im, dict)})
    if request.split not in splits:
        raise unknown_split(path.name, request.split, splits)
    wanted = {"train", "restval"} if request.split == "train" else {request.split}

    entries: dict[str | int, Entry] = {}
    for number, image in enumerate(content["images"]):
        origin = f"{path.name}: images[{number}]"
        file_name = named(image, ("filename",), origin, problems)
        identity = named(image, ("cocoid", "imgid"), origin, problems)
        if file_name is None or identity is None or image.get("split") not in wanted:
            continue
        if identity in entries:
            problems.add(
                "the image id is there twice",
                f"{origin} (id {identity}, also {entries[identity].origin})",
                "Give each image its own id.",
            )
            continue
        sentences = image.get("sentences")
        texts = [
            sentence.get("raw") if isinstance(sentence, dict) else sentence
            for sentence in (sentences if isinstance(sentences, list) else [])
        ]
        captions = check_captions(texts, origin, request.require_captions, problems)
        folder = image.get("filepath")
        used = ("filename", "filepath", "cocoid", "sentences", "sentids")
        entries[identity] = Entry(
            f"{folder}/{file_name}" if folder else file_name,
            identity,
            captions,
            origin,
            {name: value for name, value in image.items() if name not in used},
            path.parent,
            number,
        )
    return list(entries.values())


def json_object(path: Path, key: str) -> dict[str, Any]:
    """The object of a JSON file that has a list under `key`."""
    content = decode_json(decode_text(path), path)
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
        found = f"keys {', '.join(content)}" if isinstance(content, dict) else "no object"
        raise ValueError(
            f"{path.name}: no list {key!r} in it ({found}). Give a captions file of COCO or "
            "Karpathy's form, or set format to what the file is."
        )
    return content


def named(item: Any, keys: tuple[str, ...], origin: str, problems: Problems) -> Any:
    """The value of the first of these keys that an item has; complains where it has none."""
    found = item if isinstance(item, dict) else {}
    for key in keys:
        if isinstance(found.get(key), str | int):
            return found[key]
    problems.add(f"no {' or '.join(keys)}", origin, "Add it, as text or a whole number.")
    return None
