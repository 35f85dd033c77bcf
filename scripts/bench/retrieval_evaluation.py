"""Cost of an evaluation against its size: seconds of each stage, and peak memory.

    python scripts/bench/retrieval_evaluation.py

A small random model, noise for images, one text an image, the 128 best of each re-ranked both ways.
The re-ranking stage has at most 256 pairs an image, so it should grow in proportion to the images;
the first stage compares all with all. The peer re-ranks as LAVIS does, each way by itself, with an
image's features repeated for its candidates; it is timed on 20 images and scaled to all.
"""

import argparse
import io
import json
import resource
import time
from typing import Any

import numpy as np
import torch
from machine import describe_machine
from PIL import Image
from plain import image_features, match, text_features
from transformers import BertTokenizer, Blip2Config, BlipImageProcessorPil, OPTConfig

from blip2ft.data.images import transforms_for
from blip2ft.data.loading import load_pixels
from blip2ft.data.pairs import PairLayout
from blip2ft.data.records import Record
from blip2ft.models.retriever import Retriever
from blip2ft.tasks.ranking import Ranking, rank

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(500)), "[DEC]"]
CANDIDATES, TIMED = 128, 20


def small_model() -> Retriever:
    """32 wide, 2 layers of Q-Former, 8 queries, 65 image tokens of 32."""
    size = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    vision = {**size, "num_hidden_layers": 1, "image_size": 64, "patch_size": 8}
    qformer = {**size, "num_hidden_layers": 2, "encoder_hidden_size": 32, "vocab_size": len(WORDS)}
    qformer |= {"use_qformer_text_input": True, "bos_token_id": len(WORDS) - 1}
    text = OPTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=1, ffn_dim=16)
    config = Blip2Config(
        vision_config=vision, qformer_config=qformer, text_config=text, num_query_tokens=8
    )
    config.initializer_range = 0.2
    torch.manual_seed(0)
    return Retriever(config).eval()


def random_records(count: int) -> list[Record]:
    """Noise as PNG, with a caption of 6 to 14 words."""
    rng = np.random.default_rng(0)
    records = []
    for i in range(count):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(file, "PNG")
        words = " ".join(rng.choice(WORDS[5:-1], rng.integers(6, 15)))
        records.append(Record(file.getvalue(), i, (words,), "noise", {}))
    return records


@torch.inference_mode()
def peer_seconds(model: Retriever, layout: PairLayout, records: list[Record], resize: Any) -> float:
    """What re-ranking every image and every text takes one query at a time, from 20 of each."""
    texts = layout.ids([record.captions[0] for record in records[:CANDIDATES]])
    rows = [row + [0] * (35 - len(row)) for row in texts]
    ids = torch.tensor(rows)
    mask = (ids != 0).long()
    pixels = torch.stack([load_pixels(record, resize) for record in records[:CANDIDATES]])
    embeds = model.vision_model(pixels).last_hidden_state
    start = time.perf_counter()
    for i in range(TIMED):
        match(model, embeds[i : i + 1].repeat(len(ids), 1, 1), ids, mask)
        match(
            model,
            embeds,
            ids[i : i + 1].repeat(len(embeds), 1),
            mask[i : i + 1].repeat(len(embeds), 1),
        )
    return (time.perf_counter() - start) / TIMED * len(records)


@torch.inference_mode()
def largest_difference(
    model: Retriever,
    layout: PairLayout,
    records: list[Record],
    resize: Any,
    texts: list[str],
    found: Ranking,
) -> float:
    """Of the scores of the first 20 images' candidates from stock's one pair at a time."""
    differences = []
    for i in range(TIMED):
        embeds = model.vision_model(load_pixels(records[i], resize)[None]).last_hidden_state
        for text, score in zip(found.indices[i][:5], found.scores[i][:5], strict=True):
            ids, mask = layout.pad(layout.ids([texts[text]]))
            similarity = (image_features(model, embeds) @ text_features(model, ids, mask).T).max()
            differences.append(
                abs(float(similarity + match(model, embeds, ids, mask)[0, 1]) - score)
            )
    return float(max(differences))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[500, 1000, 2000, 5000])
    sizes = sorted(parser.parse_args().images)
    model = small_model()
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}, bos_token="[DEC]")
    layout = PairLayout(tokenizer)
    _, resize = transforms_for(BlipImageProcessorPil(size={"height": 64, "width": 64}))
    records = random_records(sizes[-1])
    cases = []
    print(f"{'images':>8}{'encode, compare s':>20}{'re-rank s':>12}{'peer s':>10}{'peak MiB':>10}")
    for count in sizes:
        chosen = records[:count]
        texts = [record.captions[0] for record in chosen]
        times = []
        for rerank in (False, True):
            start = time.perf_counter()
            found = rank(
                model,
                layout,
                resize,
                chosen,
                texts,
                candidates=CANDIDATES,
                rerank=rerank,
                batch_size=64,
            )
            times.append(time.perf_counter() - start)
        first, second = times[0], times[1] - times[0]
        peer = peer_seconds(model, layout, chosen, resize)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        case = {"images": count, "first_stage": first, "rerank": second, "peer": peer}
        cases.append({name: round(value, 2) for name, value in {**case, "peak_mib": peak}.items()})
        print(f"{count:>8}{first:>20.1f}{second:>12.1f}{peer:>10.1f}{peak:>10.0f}", flush=True)
    print(describe_machine("cpu"))
    difference = largest_difference(model, layout, records, resize, texts, found.texts_of_images)
    growth = (cases[-1]["rerank"] / cases[0]["rerank"]) / (sizes[-1] / sizes[0])
    print(f"re-ranking grew {growth:.2f} times as fast as the number of images")
    result = {"ratio": round(peer / second, 2), "max_difference": difference}
    print(json.dumps({**result, "growth": round(growth, 2), "cases": cases}))


if __name__ == "__main__":
    main()
