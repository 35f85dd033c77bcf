"""`blip2ft convert`."""

import argparse
from pathlib import Path
from typing import Any

from blip2ft.commands.options import command
from blip2ft.counted import counted
from blip2ft.quiet import quiet_libraries


def add_convert(commands: Any) -> None:
    parser = command(
        commands,
        "convert",
        "Turn a checkpoint of the original (LAVIS) into a transformers folder, or back.",
        _convert,
    )
    parser.add_argument(
        "source", type=Path, metavar="SOURCE", help="lavis.pth, or a model's folder"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder or file, not yet in use")
    parser.add_argument("--to", choices=["transformers", "lavis"], default="transformers")
    parser.add_argument(
        "--config",
        metavar="DIR_OR_ID",
        help="to transformers: where config.json is; for stage 1 with BERT's tokenizer",
    )
    parser.add_argument(
        "--language-model",
        metavar="DIR_OR_ID",
        help="to transformers: the OPT or FlanT5 of a captioning checkpoint",
    )
    parser.add_argument(
        "--with-language-model",
        action="store_true",
        help="to lavis: write the language model too, such as one that was trained",
    )
    parser.add_argument(
        "--allow-partial",
        action="store_true",
        help="go on where tensors are missing (they start from random numbers, or are left out), "
        "unexpected or misshapen",
    )


def _convert(arguments: argparse.Namespace) -> int:
    back = arguments.to == "lavis"
    if back and (arguments.config or arguments.language_model):
        raise ValueError(
            "--to lavis reads the folder's own config and language model; leave --config and "
            "--language-model out"
        )
    if arguments.with_language_model and not back:
        raise ValueError(
            "--with-language-model goes with --to lavis; did you mean --language-model?"
        )
    if not back and not arguments.config:
        raise ValueError(
            "pass --config DIR_OR_ID with the model's config.json, as numbers of attention heads "
            "can't be read off the tensors: Salesforce/blip2-itm-vit-g has that of stage 1, "
            "Salesforce/blip2-opt-2.7b and blip2-flan-t5-xl those of captioning, with ViT-g or "
            "ViT-L"
        )
    quiet_libraries()
    from blip2ft.convert import to_checkpoint, to_folder
    from blip2ft.models.clip_vision import who_loads
    from blip2ft.models.source import read_config

    if back:
        done = to_checkpoint(
            arguments.source,
            arguments.out,
            with_language_model=arguments.with_language_model,
            allow_partial=arguments.allow_partial,
        )
    else:
        done = to_folder(
            arguments.source,
            arguments.out,
            config=arguments.config,
            language_model=arguments.language_model,
            allow_partial=arguments.allow_partial,
        )
    reader = "the original loads it" if back else who_loads(read_config(str(arguments.out)))
    counts = [counted(done.written, "tensor")]
    counts += [f"{len(done.new)} of them random, listed above"] if done.new else []
    counts += [f"{len(done.missing)} missing"] if done.missing else []
    counts += [f"{len(done.unused)} of the source unused"] if done.unused else []
    print(f"{arguments.out}: {reader}; {', '.join(counts)}")
    return 0
