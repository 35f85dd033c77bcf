"""Re-ranking: one image against many texts, ours beside stock transformers.

    python scripts/bench/rerank.py

The peer is the stock model, called once for each pair, or ("batch") once for all texts with the
image's features repeated, as LAVIS does (models/blip2_models/blip2_qformer.py, compute_itm); texts
are padded to 35 tokens. Ours projects the image's keys and values once and pads little. "ratio" is
the time of one call a pair over ours at the most image tokens, the least of the counts of texts;
"ratio_batch" that of one call for all.
"""

import argparse
import json
from types import SimpleNamespace

import torch
from machine import (
    describe_machine,
    full_size_retriever,
    random_images,
    random_texts,
    time_in_turn,
)
from plain import match

from blip2ft.data.pairs import PairLayout
from blip2ft.models.qformer import project_images
from blip2ft.tasks.ranking import match_texts


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--at-once", type=int, default=32, help="texts in one call of ours")
    parser.add_argument("--texts", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--tokens", type=int, nargs="+", default=[257, 677])
    options = parser.parse_args()
    model = full_size_retriever(options.device)
    layout = PairLayout(SimpleNamespace(pad_token_id=0))
    cases = []
    print(
        f"{'tokens':>8}{'texts':>7}{'ours s':>9}{'pairs s':>9}{'batch s':>9}{'ratio':>7}"
        f"{'to batch':>10}{'difference':>12}"
    )
    for tokens in options.tokens:
        for count in options.texts:
            embeds = random_images(1, tokens, options.device)
            ids, mask = random_texts(count, options.device)
            rows = [row[: int(seen.sum())].tolist() for row, seen in zip(ids, mask, strict=True)]

            @torch.inference_mode()
            def ours(embeds=embeds, rows=rows):
                keys = project_images(model.qformer, embeds)
                return match_texts(model, layout, keys, rows, options.at_once)

            @torch.inference_mode()
            def batch(embeds=embeds, ids=ids, mask=mask):
                return match(model, embeds.repeat(len(ids), 1, 1), ids, mask)[:, 1]

            @torch.inference_mode()
            def pairs(embeds=embeds, ids=ids, mask=mask):
                each = [
                    match(model, embeds, *(t[i : i + 1] for t in (ids, mask)))
                    for i in range(len(ids))
                ]
                return torch.cat(each)[:, 1]

            difference = float(torch.stack([ours() - pairs(), ours() - batch()]).abs().max())
            fast, slow, together = time_in_turn(
                (ours, pairs, batch), options.repeats, options.device
            )
            case = {"ratio": round(slow / fast, 2), "ratio_batch": round(together / fast, 2)}
            cases.append({"tokens": tokens, "texts": count, **case, "max_difference": difference})
            print(
                f"{tokens:>8}{count:>7}{fast:>9.3f}{slow:>9.3f}{together:>9.3f}{slow / fast:>7.2f}"
                f"{together / fast:>10.2f}{difference:>12.1e}",
                flush=True,
            )
    print(describe_machine(options.device))
    largest = [case for case in cases if case["tokens"] == max(options.tokens)]
    result = {name: min(case[name] for case in largest) for name in ("ratio", "ratio_batch")}
    difference = max(case["max_difference"] for case in cases)
    print(json.dumps({**result, "max_difference": difference, "cases": cases}))


if __name__ == "__main__":
    main()
