"""`blip2ft doctor`."""

import argparse
from functools import partial
from typing import Any

from blip2ft.commands.options import command
from blip2ft.commands.overrides import add_settings
from blip2ft.commands.planning import PLANNING, add_planning, planning
from blip2ft.counted import counted
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
    add_planning(parser, gpu="; default: the one that is here")


def _doctor(arguments: argparse.Namespace) -> int:
    quiet_libraries()
    # What the options say is looked at before anything is told or read.
    run = _read_run(arguments)
    from blip2ft.doctor.machine import machine_lines

    say = partial(print, flush=True)
    for name, told in machine_lines():
        say(f"{name:<19}{told}")
    if run is None:
        return 0
    task, settings, asked = run
    import psutil

    from blip2ft.doctor.launch import launch_line
    from blip2ft.doctor.trial import try_run
    from blip2ft.plan.gpu import gpu_here
    from blip2ft.plan.plan import make_plan
    from blip2ft.plan.report import as_host_text, as_text

    processes = asked["processes"]
    say(f"\n{arguments.config} ({task}), {counted(processes, 'process')}")
    libraries, memory = psutil.Process().memory_info().rss, psutil.virtual_memory().available
    precision = try_run(task, settings, say)
    gpu = asked["gpu"] or gpu_here()
    if gpu is None:
        settings["model"]["precision"] = precision  # auto is another on a GPU
    plan = make_plan(task, settings, **asked | {"gpu": gpu})
    said = as_host_text(plan, memory, libraries) if gpu is None else as_text(plan)
    line = launch_line(task, arguments.config, arguments.overrides, processes, gpu)
    say(f"\n{said}\n\nit would start: {line}")
    return 0


def _read_run(arguments: argparse.Namespace) -> tuple[str, Any, dict[str, Any]] | None:
    """Task, settings and what `make_plan` is asked for; None without a run.

    Raises ValueError for what can be told without data and model.
    """
    if arguments.config is None:
        default = arguments.parser.get_default
        given = [name for name in ("task", *PLANNING) if getattr(arguments, name) != default(name)]
        given = [f"--{name.replace('_', '-')}" for name in given] + arguments.overrides[:1]
        if given:
            raise ValueError(f"{given[0]} belongs to a run: give its --config F.yaml")
        return None
    asked = planning(arguments)
    from blip2ft.data.order import check_shared
    from blip2ft.doctor.launch import check_gpus
    from blip2ft.hub import check_model_name
    from blip2ft.settings import read_settings
    from blip2ft.training.run import check_output

    task, settings = read_settings(arguments.config, arguments.overrides, arguments.task)
    if settings.get("evaluate_only"):
        raise ValueError("evaluate_only is true, so no step would be taken; set it to false")
    check_output(settings["output"], resume=settings["train"]["resume"])
    check_shared(settings["train"]["batch_size"], arguments.processes)
    if asked["gpu"] is None:
        check_gpus(arguments.processes)
    check_model_name(settings["model"]["name"])
    return task, settings, asked
