"""`blip2ft check` on a folder of images with planted faults: are all found, and none invented?

    python scripts/bench/check_folder.py --images 20000

The folder holds small JPEGs of random soft patches, with captions of random words, in three splits;
among them faults of each kind that one image, text or row can have. What `check` lists is compared
with what was planted, by kind, file and line. Told are the time and the peak memory of all its
processes: the sum of what each has alone and its share of what they have together (PSS).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from planted_faults import Planted, make_folder

IMAGE_SIZE = 112  # such small photos aren't tiny for a model that reads so many pixels
PAUSE = 0.1  # seconds between looks at the memory


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="to keep; default: a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary) / "photos"
        start = time.perf_counter()
        planted = make_folder(folder, arguments.images, seed=0)
        print(f"{arguments.images} images, {len(planted)} faults planted", file=sys.stderr)
        print(f"made in {time.perf_counter() - start:.0f} s", file=sys.stderr)
        first = run_check(folder, folder.parent / "report", arguments.workers)
        again = run_check(folder, folder.parent / "report", arguments.workers)
        lost, invented = compare(planted, read_findings(folder.parent / "report"))
    for what, places in (("not found", lost), ("invented", invented)):
        for place in places:
            print(f"{what}: {place}", file=sys.stderr)
    result = {"images": arguments.images, "planted": len(planted), "lost": len(lost)}
    result |= {"invented": len(invented), **first, "again_seconds": again["seconds"]}
    print(json.dumps(result))


def run_check(folder: Path, out: Path, workers: int) -> dict[str, float]:
    """Seconds and peak memory of a `blip2ft check` of the folder's splits."""
    words = ["check", "--out", str(out), "--image-size", str(IMAGE_SIZE), "--workers", str(workers)]
    for split in ("train", "validation", "test"):
        words += [f"--{split}", str(folder / f"{split}.csv")]
    program = "from blip2ft.cli import main; main()"
    start = time.perf_counter()
    run = subprocess.Popen(
        [sys.executable, "-c", program, *words],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    peak = [0.0]
    watcher = threading.Thread(target=_watch, args=(run, peak))
    watcher.start()
    status = run.wait()
    watcher.join()
    if status != 1:
        raise SystemExit(f"check ended with status {status}, where there are errors")
    return {"seconds": round(time.perf_counter() - start, 1), "peak_mib": round(peak[0])}


def _watch(run: subprocess.Popen, peak: list[float]) -> None:
    while run.poll() is None:
        peak[0] = max(peak[0], sum(map(_memory, [run.pid, *_children(run.pid)])))
        time.sleep(PAUSE)


def _children(pid: int) -> list[int]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        direct = [int(word) for task in tasks for word in (task / "children").read_text().split()]
    except OSError:
        return []
    return [child for one in direct for child in (one, *_children(one))]


def _memory(pid: int) -> float:
    """MiB of a process, with its share of what it shares."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:"))


def read_findings(out: Path) -> list[dict[str, Any]]:
    """The lines of findings.jsonl."""
    text = (out / "findings.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def compare(planted: list[Planted], found: list[dict[str, Any]]) -> tuple[list, list]:
    """What was planted and isn't listed, and what is listed and wasn't planted."""
    wanted = Counter((p.kind, p.split, p.line) for p in planted)
    listed = Counter((f["kind"], f["split"], f.get("line", 0)) for f in found)
    return sorted((wanted - listed).elements()), sorted((listed - wanted).elements())


if __name__ == "__main__":
    np.seterr(all="raise")
    main()
