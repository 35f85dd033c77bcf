"""How long a search by words compares features of photos, before it re-ranks any.

    python scripts/bench/photo_search.py [--photos 10000]

Random features of BLIP-2's size (32 queries of 256), fp16, in shards on the disk, as an index has
them; they are in the page cache then.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from machine import describe_machine, time_in_turn
from safetensors.torch import save_file
from torch.nn.functional import normalize

from blip2ft.photos.files import Photo
from blip2ft.photos.nearest import best_first, similar_to_text
from blip2ft.photos.shards import Shard

QUERIES, WIDTH = 32, 256
IN_A_SHARD = 1024


def make_shards(folder: Path, photos: int) -> list[Shard]:
    shards = []
    for start in range(0, photos, IN_A_SHARD):
        count = min(IN_A_SHARD, photos - start)
        features = normalize(torch.randn(count, QUERIES, WIDTH), dim=-1).half()
        file = folder / f"{start:09d}.safetensors"
        save_file({"features": features}, file)
        names = range(start, start + count)
        shards.append(Shard(file, [Photo(f"{n}.jpg", 0, 0, str(n)) for n in names]))
    return shards


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--photos", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.manual_seed(0)
    text = normalize(torch.randn(WIDTH), dim=0)
    with tempfile.TemporaryDirectory() as folder:
        shards = make_shards(Path(folder), options.photos)

        def search() -> list[int]:
            return best_first(similar_to_text(shards, text))

        search()
        (seconds,) = time_in_turn([search], options.repeats, "cpu")
    print(describe_machine("cpu"))
    print(json.dumps({"photos": options.photos, "seconds": round(seconds, 3)}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
