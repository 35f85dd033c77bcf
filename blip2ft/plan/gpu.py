"""How much memory a GPU has, and what of it no tensor gets."""

import re
from difflib import get_close_matches
from typing import NamedTuple

GB, GIB = 10**9, 2**30
# CUDA's context, the kernels it loads, and the workspaces of cuBLAS and cuDNN. Not measured here:
# a context alone takes 0.3 to 0.5 GB on the GPUs of the table, cuBLAS 8 to 32 MiB a stream.
CONTEXT = 700_000_000
# Share of what is taken and given back that the caching allocator holds in pieces too small to be
# used again. Not measured here; a guess to be on the safe side.
FRAGMENTS = 0.05


class Gpu(NamedTuple):
    """size: bytes; bf16: whether it computes in bf16."""

    size: int
    bf16: bool = True


# What torch.cuda reports for them, rounded down.
GPUS = {
    "t4": Gpu(int(14.5 * GIB), bf16=False),
    "v100-16": Gpu(int(15.7 * GIB), bf16=False),
    "v100-32": Gpu(int(31.7 * GIB), bf16=False),
    "a10g": Gpu(22 * GIB),
    "l4": Gpu(22 * GIB),
    "rtx3090": Gpu(int(23.5 * GIB)),
    "rtx4090": Gpu(int(23.5 * GIB)),
    "a100-40": Gpu(int(39.3 * GIB)),
    "l40s": Gpu(int(44.3 * GIB)),
    "a100-80": Gpu(79 * GIB),
    "h100": Gpu(79 * GIB),
    "h200": Gpu(139 * GIB),
}


def gpu_here() -> Gpu | None:
    """The first GPU of this machine; None where there is none."""
    import torch

    if not torch.cuda.is_available():
        return None
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return Gpu(torch.cuda.mem_get_info(0)[1], bf16)


def read_gpu(text: str) -> Gpu:
    """A size such as 24GB or 22.5GiB, or a name of `GPUS`; ValueError for anything else."""
    known = text.lower().replace("_", "-")
    if known in GPUS:
        return GPUS[known]
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(gb|gib)", known)
    if found and float(found[1]) > 0:
        return Gpu(int(float(found[1]) * (GB if found[2] == "gb" else GIB)))
    near = [name for name in GPUS if name.startswith(known)] or get_close_matches(known, GPUS, 1)
    if re.fullmatch(r"\d+(\.\d+)?g?", known):  # a size that lacks its unit
        near = [f"{known.removesuffix('g')}GB"]
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise ValueError(
        f"--gpu is {text!r}: allowed is a size such as 24GB or 22.5GiB, or one of "
        f"{', '.join(GPUS)}{hint}"
    )
