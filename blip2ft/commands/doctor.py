"""`blip2ft doctor`."""

import argparse
from functools import partial
from typing import Any

from blip2ft.commands.options import command, positive
from blip2ft.commands.overrides import add_settings
from blip2ft.quiet import quiet_libraries

EPILOG = """\
Without --config it tells what the machine has. With it, also whether the run would start: settings,
data, model and preflight, as the recipe does them, and what it would hold in memory. Nothing is
written. Settings are overridden as the recipes take them: --train.micro_batch_size 8.
"""


def add_doctor(commands: Any) -> None:
    parser = command(
        commands, "doctor", "Tell what the machine has, and whether a run would start.", _doctor
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    add_settings(parser, required=False)
    parser.add_argument("--gpu", help="plan for one such as 24GB; default: the one that is here")
    parser.add_argument("--processes", type=positive, default=1, help="GPUs that share a step (1)")


def _doctor(arguments: argparse.Namespace) -> int:
    quiet_libraries()
    if arguments.config is None and (arguments.overrides or arguments.task or arguments.gpu):
        raise ValueError("settings, --task and --gpu belong to a run: give its --config F.yaml")
    from blip2ft.doctor.machine import machine_lines
    from blip2ft.plan.gpu import gpu_here, read_gpu

    say = partial(print, flush=True)
    gpu = None if arguments.gpu is None else read_gpu(arguments.gpu)
    for name, said in machine_lines():
        say(f"{name:<19}{said}")
    if arguments.config is None:
        return 0
    from blip2ft.hub import check_model_name
    from blip2ft.settings import read_settings

    task, settings = read_settings(arguments.config, arguments.overrides, arguments.task)
    check_model_name(settings["model"]["name"])
    say(f"\n{arguments.config} ({task})")
    from blip2ft.doctor.trial import try_run
    from blip2ft.plan.plan import make_plan
    from blip2ft.plan.report import as_text

    if settings.get("evaluate_only"):
        raise ValueError("evaluate_only is true, so no step would be taken; set it to false")
    try_run(task, settings, say)
    plan = make_plan(task, settings, gpu=gpu or gpu_here(), processes=arguments.processes)
    say(f"\n{as_text(plan)}")
    words = " ".join(arguments.overrides)
    say(f"\nit would start: python recipes/{task}.py --config {arguments.config} {words}".rstrip())
    return 0
