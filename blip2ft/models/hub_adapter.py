"""Trained weights that lie on the hub, as `blip2ft push` puts them there."""

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import RemoteEntryNotFoundError
from transformers.utils.hub import cached_file, extract_commit_hash

from blip2ft.hub import check_model_name
from blip2ft.models.adapters import DESCRIPTION_FILE, FULL_FILE, LORA_FILE, read_description
from blip2ft.models.source import explained

# OWNER/NAME, or OWNER/NAME@REVISION: no id on the hub has an @.
ON_HUB = re.compile(r"(?P<id>[\w-][\w.-]*/[\w-][\w.-]*)(?:@(?P<revision>.+))?")


def is_on_hub(name: str | Path) -> bool:
    """Whether `name` is no path here and may be OWNER/NAME or OWNER/NAME@REVISION on the hub.

    Raises ValueError where its first part is a folder here, so that the second is missing in it.
    """
    found = ON_HUB.fullmatch(str(name))
    if found is None or Path(name).exists():
        return False
    check_model_name(found["id"])
    return True


def holds_adapter(name: str, revision: str | None = None) -> bool:
    """Whether a repository on the hub has trained weights without their base; False for a path.

    Raises ValueError for a repository or revision that isn't there.
    """
    if not is_on_hub(name):
        return False
    with explained(name):
        if _find(name, "config.json", revision) is not None:
            return False
        return _find(name, DESCRIPTION_FILE, revision) is not None


def read_notes(name: str | Path, revision: str | None = None) -> dict[str, Any]:
    """What blip2ft.json says of a whole model, a folder or hub id; empty where it has none."""
    with explained(str(name)):
        path = _find(str(name), DESCRIPTION_FILE, revision)
    return {} if path is None else read_description(path.parent)


def _find(name: str, file: str, revision: str | None) -> Path | None:
    path = cached_file(name, file, revision=revision, _raise_exceptions_for_missing_entries=False)
    return None if path is None else Path(path)


def download_adapter(name: str | Path) -> Path:
    """The local copy of the trained weights that `name` is on the hub (see `is_on_hub`).

    Raises ValueError where there are none.
    """
    found = ON_HUB.fullmatch(str(name))
    assert found is not None
    with explained(found["id"]):
        description = _find(found["id"], DESCRIPTION_FILE, found["revision"])
        if description is None:  # missing there, or the hub doesn't answer, which this raises
            with suppress(RemoteEntryNotFoundError):
                hf_hub_download(found["id"], DESCRIPTION_FILE, revision=found["revision"])
    if description is None:
        raise ValueError(
            f"{name} on the hub has no {DESCRIPTION_FILE}, so it holds no weights that blip2ft "
            "trained; if it is a whole model, pass it as --model"
        )
    # all files of one commit, though the branch may move meanwhile
    commit = extract_commit_hash(str(description), None)
    wanted = [DESCRIPTION_FILE, FULL_FILE, LORA_FILE, "adapter_config.json"]
    with explained(found["id"]):
        return Path(snapshot_download(found["id"], revision=commit, allow_patterns=wanted))
