"""`blip2ft assemble`."""

import argparse
from pathlib import Path
from typing import Any

from blip2ft.commands.options import command, positive
from blip2ft.counted import counted
from blip2ft.hub import check_model_name
from blip2ft.quiet import quiet_libraries

NEXT = {"retrieval": "recipes/retrieval.py", "caption": "recipes/caption.py"}


def add_assemble(commands: Any) -> None:
    parser = command(
        commands,
        "assemble",
        "Put image encoder, BERT and language model together: the start of pre-training.",
        _assemble,
    )
    parser.epilog = (
        "Stage 1 starts from --vision and --bert, stage 2 from --stage1 and --language; to leave "
        "stage 1 out, from --vision, --bert and --language. Each is a hub id or a folder."
    )
    parser.add_argument(
        "--vision",
        metavar="DIR_OR_ID",
        help="image encoder: a BLIP-2, a CLIP (its last layer is left out), or eva_vit_g.pth",
    )
    parser.add_argument(
        "--bert", metavar="DIR_OR_ID", help="what the Q-Former starts from: bert-base-uncased"
    )
    parser.add_argument(
        "--stage1", metavar="DIR_OR_ID", help="a trained retriever, instead of --vision and --bert"
    )
    parser.add_argument(
        "--language", metavar="DIR_OR_ID", help="an OPT, a FlanT5 or another language model"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write, not yet in use")
    parser.add_argument("--queries", type=positive, default=32, help="of a new Q-Former (32)")
    parser.add_argument(
        "--cross-attention-every",
        type=positive,
        default=2,
        metavar="N",
        help="every N-th layer of a new Q-Former looks at the image (2)",
    )
    parser.add_argument(
        "--feature-size", type=positive, default=256, help="of what stage 1 compares (256)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the weights that are new (0)")


def _assemble(arguments: argparse.Namespace) -> int:
    for name in (arguments.vision, arguments.bert, arguments.stage1, arguments.language):
        if name is not None and not Path(name).is_file():
            check_model_name(name)
    quiet_libraries()
    from blip2ft.models.assemble import assemble

    done = assemble(
        arguments.out,
        vision=arguments.vision,
        bert=arguments.bert,
        stage1=arguments.stage1,
        language=arguments.language,
        num_query_tokens=arguments.queries,
        cross_attention_frequency=arguments.cross_attention_every,
        feature_size=arguments.feature_size,
        seed=arguments.seed,
    )
    sizes = ", ".join(f"{part} {size:,}" for part, size in done.parameters.items())
    print(f"{arguments.out}: {sizes} parameters; {counted(len(done.new), 'new tensor')}")
    print(f"train it with {NEXT[done.task]} --model.name {arguments.out}")
    return 0
