"""CapFilt's filter: of images whose web caption is wrong for a third, which are dropped?

    python scripts/bench/capfilt_precision.py

Each image of a source of true captions gets one of them as its web caption; a third, drawn by a
seed, get another image's instead, which isn't true of theirs. "Dropped" is a web caption that isn't
among the kept: precision is the share of wrong ones among the dropped, recall that of the dropped
among the wrong. All is counted for 1, 2 and 3 kept captions of the same run, and for the filter
alone, which drops what the matching head gives less than 0.5. A right caption is dropped too, where
enough synthetic ones fit better: "true" is the share of kept synthetic captions that are, word by
word, among the image's own. "auc" is how often a right web caption scores higher than a wrong one.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe_machine

from blip2ft.capfilt import capfilt
from blip2ft.data.records import Record, read_records
from blip2ft.data.shard_writer import write_shard
from blip2ft.quiet import quiet_libraries
from blip2ft.tasks.candidates import SCORES, WEB
from blip2ft.webimages.filtering import Rules

DATA = Path(__file__).parents[2] / "data"
KEPT = (1, 2, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--captioner", default=str(DATA / "tiny-blip2"))
    parser.add_argument("--scorer", default=str(DATA / "tiny-retriever"))
    source = DATA / "scenes/openmoji/test-distinct.parquet"
    parser.add_argument("--source", default=str(source), help="what read_records takes")
    parser.add_argument("--limit", type=int, default=300)
    parser.add_argument("--candidates", type=int, default=10)
    parser.add_argument("--score", choices=SCORES, default="itm")
    parser.add_argument("--top-p", type=float, default=0.9)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    quiet_libraries()
    records = read_records(options.source, limit=options.limit)
    web, wrong = shuffle_a_third(records, options.seed)
    rules = Rules(options.candidates, score=options.score, top_p=options.top_p, seed=options.seed)
    with tempfile.TemporaryDirectory() as folder:
        shown = [replace(r, captions=(text,)) for r, text in zip(records, web, strict=True)]
        write_shard(Path(folder), "web.tar", 0, shown, 0, None)
        begun = time.perf_counter()
        capfilt(
            f"{folder}/web.tar",
            f"{folder}/out",
            captioner=options.captioner,
            scorer=options.scorer,
            rules=rules,
            cache=f"{folder}/cache",
            progress=True,
        )
        seconds = time.perf_counter() - begun
        ranked = [r.fields["candidates"] for r in read_records(f"{folder}/out")]

    web_scores = np.array([c["score"] for own in ranked for c in own if c["origin"] == WEB])
    points = {f"keep {keep}": measure(ranked, records, wrong, keep) for keep in KEPT}
    if options.score == "itm":
        points["below 0.5"] = precision_and_recall(web_scores < 0.5, wrong)
    print(f"{'':12}{'dropped':>9}{'wrong':>7}{'precision':>11}{'recall':>8}{'true':>8}")
    for name, point in points.items():
        true = f"{point['true']:.3f}" if "true" in point else "-"
        print(
            f"{name:12}{point['dropped']:>9}{wrong.sum():>7}{point['precision']:>11.3f}"
            f"{point['recall']:>8.3f}{true:>8}"
        )
    auc = float((web_scores[~wrong][:, None] > web_scores[wrong]).mean())
    print(f"auc of the web captions' scores: {auc:.4f}")
    speed = len(records) / seconds
    print(f"{speed:.2f} images a second with loading; {describe_machine(device())}")
    print(
        json.dumps({"images": len(records), "score": options.score, "auc": round(auc, 4), **points})
    )


def shuffle_a_third(records: Sequence[Record], seed: int) -> tuple[list[str], np.ndarray]:
    """A web caption for each image, and for which of them (N,) bool it is another's."""
    rng = np.random.default_rng(seed)
    web = [str(rng.choice(record.captions)) for record in records]
    wrong = np.zeros(len(records), bool)
    wrong[rng.permutation(len(records))[: len(records) // 3]] = True
    shown = list(web)
    for i in np.flatnonzero(wrong).tolist():
        others = [text for text in web if text not in records[i].captions]
        if not others:
            raise ValueError(f"every caption is true of {records[i].origin}; take more images")
        shown[i] = str(rng.choice(others))
    return shown, wrong


def measure(
    ranked: Sequence[Sequence[Mapping[str, Any]]],
    records: Sequence[Record],
    wrong: np.ndarray,
    keep: int,
) -> dict[str, float]:
    """What keeping the `keep` best of each image's candidates does."""
    kept = [candidates[:keep] for candidates in ranked]
    dropped = np.array([all(c["origin"] != WEB for c in own) for own in kept])
    true = [
        candidate["text"] in record.captions
        for own, record in zip(kept, records, strict=True)
        for candidate in own
        if candidate["origin"] != WEB
    ]
    found = precision_and_recall(dropped, wrong)
    return {**found, "true": round(sum(true) / max(1, len(true)), 4)}


def precision_and_recall(dropped: np.ndarray, wrong: np.ndarray) -> dict[str, float]:
    both, count = int((dropped & wrong).sum()), int(dropped.sum())
    return {
        "dropped": count,
        "precision": round(both / max(1, count), 4),
        "recall": round(both / max(1, int(wrong.sum())), 4),
    }


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    main()
