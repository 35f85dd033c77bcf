"""`blip2ft export`."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blip2ft.commands.options import command
from blip2ft.hub import check_model_name
from blip2ft.quiet import quiet_libraries


def add_export(commands: Any) -> None:
    parser = command(
        commands, "export", "Merge a run into a model in transformers' format.", _export
    )
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="the --output of a run")
    parser.add_argument("--out", type=Path, required=True, help="folder to write, not yet in use")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32", help="of the weights")
    parser.add_argument("--base", help="where the base model is now, if it moved")
    parser.add_argument(
        "--tolerance",
        type=float,
        help="largest difference of a logit, as a share of the largest (1e-4 in fp32, 0.05 in "
        "bf16); with it, sample captions needn't be the same",
    )


def _export(arguments: argparse.Namespace) -> int:
    if arguments.base:
        check_model_name(arguments.base)
    quiet_libraries()
    from blip2ft.export import export_run
    from blip2ft.models.clip_vision import who_loads
    from blip2ft.models.source import read_config

    report = export_run(
        arguments.run_folder,
        arguments.out,
        dtype=arguments.dtype,
        base=arguments.base,
        tolerance=arguments.tolerance,
    )
    reader = who_loads(read_config(str(arguments.out), types=("blip-2", "instructblip")))
    print(
        f"{arguments.out}: {reader}; its logits differ from the unmerged "
        f"model's by at most {report['max_difference']:.2g} (largest logit "
        f"{report['largest_logit']:.3g}){_captions(report, 'same_captions')}"
    )
    if "quantised_difference" in report:
        print(
            "the quantised model with which the run trained differs from the unmerged one by at "
            f"most {report['quantised_difference']:.2g} in fp32"
            f"{_captions(report, 'quantised_same_captions')}"
        )
    return 0


def _captions(report: Mapping[str, float], which: str) -> str:
    count = report["captions"]
    return f"; {report[which]} of {count} sample captions are the same" if count else ""
