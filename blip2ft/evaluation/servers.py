"""The files that evaluation servers take.

COCO captions: [{"image_id", "caption"}], captions_{data set}_{name}_results.json, in a zip with
that of the other split (Chen et al. 2015, arXiv 1504.00325, section 4). NoCaps on EvalAI takes the
same list, by any name. VQA: [{"question_id", "answer"}], by the official tool's name,
vqa_OpenEnded_mscoco_{data set}_{name}_results.json (https://visualqa.org/evaluation.html).
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from blip2ft.whole import write_text

LONGEST_NAME = 80  # a file's may have 255 bytes
COCO_NAME = re.compile(r"COCO_((?:train|val|test)\d{4})_")


def write_for_servers(
    out: Path, task: str, split: str, name: str, rows: Sequence[Mapping[str, Any]]
) -> Path | None:
    """Write the server's file of captions or answers to the folder `out`; gives its path.

    None, and no file, for retrieval, and where an id isn't a whole number: then the data are none
    of a server's. The data set's name is that in COCO's file names, else `split`. name: of the
    model, of which the last 80 letters and digits stay.
    """
    if task == "retrieval":
        return None
    identity, said = ("image_id", "caption") if task == "caption" else ("question_id", "answer")
    results = [{identity: row[identity], said: row[said]} for row in rows]
    if not all(type(row[identity]) is int for row in results):
        return None
    found = [COCO_NAME.match(Path(row.get("image") or "").name) for row in rows]
    subsets = {match[1] for match in found if match}
    data_set = subsets.pop() if len(subsets) == 1 else split
    name = re.sub(r"[^A-Za-z0-9]+", "-", name)[-LONGEST_NAME:].strip("-") or "model"
    kind = "captions" if task == "caption" else "vqa_OpenEnded_mscoco"
    path = out / f"{kind}_{data_set}_{name}_results.json"
    write_text(path, json.dumps(results, ensure_ascii=False) + "\n")
    return path
