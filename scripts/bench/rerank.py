"""Re-ranking: one image against many texts, ours beside stock transformers.

    python scripts/bench/rerank.py

The peer is the stock model called as LAVIS calls its own (models/blip2_models/blip2_qformer.py,
compute_itm): the image's features repeated for every text, texts padded to 35 tokens. Ours projects
the image's keys and values once and pads the texts to the longest.
"""

import argparse
import json

import torch
from machine import (
    describe_machine,
    full_size_retriever,
    random_images,
    random_texts,
    time_pair,
)
from plain import match

from blip2ft.models.qformer import project_images


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--texts", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--tokens", type=int, nargs="+", default=[257, 677])
    options = parser.parse_args()
    model = full_size_retriever(options.device)
    cases = []
    print(f"{'tokens':>8}{'texts':>8}{'ours s':>10}{'stock s':>10}{'ratio':>8}{'difference':>13}")
    for tokens in options.tokens:
        for count in options.texts:
            embeds = random_images(1, tokens, options.device)
            ids, mask = random_texts(count, options.device)
            width = int(mask.sum(1).max())

            @torch.inference_mode()
            def ours(embeds=embeds, ids=ids, mask=mask, width=width):
                keys = project_images(model.qformer, embeds)
                return model.match([(keys, len(ids))], ids[:, :width], mask[:, :width])

            @torch.inference_mode()
            def peer(embeds=embeds, ids=ids, mask=mask):
                return match(model, embeds.repeat(len(ids), 1, 1), ids, mask)

            difference = float((ours() - peer()).abs().max())
            fast, slow = time_pair(ours, peer, options.repeats, options.device)
            case = {"tokens": tokens, "texts": count, "ratio": round(slow / fast, 2)}
            cases.append({**case, "max_difference": difference})
            print(
                f"{tokens:>8}{count:>8}{fast:>10.3f}{slow:>10.3f}{slow / fast:>8.2f}"
                f"{difference:>13.1e}",
                flush=True,
            )
    print(describe_machine(options.device))
    largest = [case for case in cases if case["tokens"] == max(options.tokens)]
    ratio = min(case["ratio"] for case in largest)
    difference = max(case["max_difference"] for case in cases)
    print(json.dumps({"ratio": ratio, "max_difference": difference, "cases": cases}))


if __name__ == "__main__":
    main()
