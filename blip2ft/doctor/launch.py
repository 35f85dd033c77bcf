"""The command that starts a run on some processes; see docs/launching.md."""

import shlex
from collections.abc import Sequence

import torch

from blip2ft.plan.gpu import Gpu


def check_gpus(processes: int) -> None:
    """Raise ValueError where this machine has GPUs, and fewer than `processes`."""
    here = torch.cuda.device_count()
    if 0 < here < processes:
        raise ValueError(
            f"--processes is {processes}, and of GPUs this machine has {here}; take no more, or "
            "tell with --gpu what the machines have that it is for"
        )


def launch_line(
    task: str, config: str, overrides: Sequence[str], processes: int, gpu: Gpu | None
) -> str:
    """What to type to start the recipe of `task`; gpu: of each process, None on a CPU."""
    recipe = [f"recipes/{task}.py", "--config", config, *overrides]
    return shlex.join([*_launcher(processes, gpu), *recipe])


def _launcher(processes: int, gpu: Gpu | None) -> list[str]:
    if processes == 1:
        return ["python"]
    if gpu is None:  # where accelerate starts one process, whatever it is told
        return ["torchrun", "--standalone", "--nproc_per_node", str(processes)]
    words = ["accelerate", "launch", "--config_file", "recipes/accelerate/ddp.yaml"]
    words += ["--num_processes", str(processes)]
    return words if gpu.bf16 else [*words, "--mixed_precision", "no"]  # the file says bf16
