"""Names of models: a folder that isn't there is told at once, before the hub is asked for it."""

import logging
import re
from pathlib import Path

from blip2ft.data.entries import nearest

MODEL_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def check_model_name(name: str) -> None:
    """Raise ValueError where `name` is no folder and can't be meant as a hub id.

    A hub id is one name, or two with a slash between them of which the first is no folder here.
    """
    path = Path(name)
    if path.is_dir():
        return
    if path.is_file():
        raise ValueError(f"{name} is a file; give the folder that holds the model's config.json")
    owner_is_here = len(path.parts) > 1 and path.parent.is_dir()
    if MODEL_ID.fullmatch(name) and not owner_is_here:
        return
    beside = [other.name for other in path.parent.iterdir()] if owner_is_here else []
    raise ValueError(
        f"there is no folder {name}.{nearest(path.name, beside)} Give a folder (from "
        f"{Path.cwd()}, without ~), or a hub id such as Salesforce/blip2-opt-2.7b"
    )


def check_revision(name: str, revision: str | None) -> None:
    """Raise ValueError where a revision is asked of a folder, which has none."""
    if revision is not None and Path(name).is_dir():
        raise ValueError(
            f"{name} is a folder, and has no revision {revision!r}: only models on the hub have "
            "revisions; leave it out"
        )


def quiet_retries() -> None:
    """One line for all retries of huggingface_hub, which no setting makes fewer."""
    told: list[str] = []

    def once(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.ERROR:
            return True
        if told or "Retrying" not in record.getMessage():
            return False
        record.msg, record.args = "the hub doesn't answer; trying again for half a minute", ()
        told.append(record.msg)
        return True

    logging.getLogger("huggingface_hub.utils._http").addFilter(once)
    # it has a handler of its own, beside that of the root
    logging.getLogger("huggingface_hub").propagate = False
