"""`blip2ft capfilt`."""

import argparse
from pathlib import Path
from typing import Any

from blip2ft.commands.options import add_quantize_option, command, positive, quantized
from blip2ft.counted import counted
from blip2ft.hub import check_model_name
from blip2ft.quiet import quiet_libraries

ABOUT = "Write synthetic captions for images of the web, and keep the best of both kinds."
HOW = """\
CapFilt, as BLIP-2 used it (section 3.4). The captioner writes --candidates
captions for an image by nucleus sampling; the scorer ranks them together with
the image's own; the --keep best become its captions, and training draws one.

The shards of SOURCE are written to OUT under their names, with index.json.
Images and other files of a sample stay as they are. Its .json gets "captions",
those that are kept, best first; "web_captions", those that it came with; and
"candidates", all of them with text, score and origin (web or synthetic).
Captions that differ in case and white space alone are one. Of a long one, the
scorer reads as many tokens as it was tuned on (35 where that isn't known).

--score itm      the matching head's probability of "matches", the softmax of
                 its two logits, from 0 to 1; --min-score 0.5 removes what it
                 calls unmatched, as BLIP's filter does
--score itc      cosine similarity of the text and the image's best query, from
                 -1 to 1; the paper ranked by the similarity of a CLIP
--score itc+itm  similarity plus logit of "matches", without bounds, by which
                 retrieval re-ranks (section 4.4)

A run that was stopped goes on when it is given again; whole shards are kept.
Under torchrun or accelerate launch, the processes share the shards. What can't
be read is left out, and named in OUT/skipped.jsonl.
"""


def add_capfilt(commands: Any) -> None:
    parser = command(commands, "capfilt", ABOUT, _capfilt)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = f"{ABOUT}\n\n{HOW}"
    add = parser.add_argument
    add(
        "source",
        metavar="SOURCE",
        help="tar shards or Parquet files: a file, a folder, a pattern such as {000..123}.tar, an "
        "address of these, an index.json, or a hub id; blip2ft shard makes shards of the rest",
    )
    add("--out", type=Path, required=True, help="folder of the shards: new, or to be gone on with")
    add("--captioner", metavar="MODEL", required=True, help="hub id, folder or run that captions")
    add("--scorer", metavar="MODEL", required=True, help="hub id, folder or run of a retriever")
    add("--candidates", type=positive, default=10, metavar="K", help="captions to write (10)")
    add("--keep", type=positive, default=2, metavar="N", help="captions to keep, at most (2)")
    add("--score", choices=["itm", "itc", "itc+itm"], default="itm", help="see above (itm)")
    add(
        "--min-score",
        type=float,
        metavar="S",
        help="keep no caption below, and drop a sample without one above; default: keep any",
    )
    add("--top-p", type=float, default=0.9, metavar="P", help="share of the nucleus (0.9)")
    add("--max-new-tokens", type=positive, default=30, metavar="T", help="longest caption (30)")
    add("--prompt", help='text to continue; default: what it was tuned on, or "a photo of"')
    add("--seed", type=int, default=0, help="of what is drawn (0)")
    add("--batch-size", type=positive, default=16, help="images at once (16)")
    add("--workers", type=int, help="processes that open images (8 with a GPU)")
    add("--dtype", choices=["auto", "fp32", "bf16"], default="auto")
    add_quantize_option(parser, "; the captioner's language model, the vision of either")
    add("--split", help="of a source that holds several")
    add("--image-column", default="image", metavar="NAME", help="of a Parquet file; a tar's .NAME")
    add("--caption-column", metavar="NAME", help="default: caption, captions, text or .txt")
    add("--cache", type=Path, help="folder for shards that aren't local")


def _capfilt(arguments: argparse.Namespace) -> int:
    for name in (arguments.captioner, arguments.scorer):
        check_model_name(name)
    quiet_libraries()
    from blip2ft.capfilt import Rules, capfilt

    names = ("candidates", "keep", "score", "min_score", "top_p", "max_new_tokens", "seed")
    counts = capfilt(
        arguments.source,
        arguments.out,
        captioner=arguments.captioner,
        scorer=arguments.scorer,
        rules=Rules(**{name: getattr(arguments, name) for name in names}),
        prompt=arguments.prompt,
        batch_size=arguments.batch_size,
        dtype=arguments.dtype,
        quantize=quantized(arguments.quantize),
        workers=arguments.workers,
        split=arguments.split,
        image_column=arguments.image_column,
        caption_column=arguments.caption_column,
        cache=arguments.cache,
        progress=True,
    )
    if counts is None:
        return 0
    written = counts.samples - counts.dropped
    rows: list[tuple[str, Any, Any]] = [
        ("", "number", f"mean {arguments.score}"),
        ("samples", counts.samples, ""),
        ("  dropped", counts.dropped, ""),
        ("  replaced: no caption of the web kept", counts.replaced, ""),
        ("captions of the web", counts.web, _mean(counts.web_score, counts.web)),
        ("  kept", counts.web_kept, ""),
        ("captions kept", counts.kept, _mean(counts.kept_score, counts.kept)),
    ]
    for name, number, mean in rows:
        print(f"{name:40}{number:>12}{mean:>14}")
    print(f"{arguments.out}: {counted(written, 'sample')}; {counts.skipped} couldn't be read")
    return 0


def _mean(total: float, count: int) -> str:
    return f"{total / count:.4f}" if count else "-"
