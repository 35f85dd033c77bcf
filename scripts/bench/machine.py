"""What every benchmark needs: a full-size Q-Former, times side by side, and the machine's name."""

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import transformers
from transformers import Blip2Config, OPTConfig

from blip2ft.models.retriever import Retriever

LONGEST, SHORTEST, PADDED = 16, 8, 35  # tokens of a text; LAVIS pads all to 35


def full_size_retriever(device: str, attention: str = "sdpa") -> Retriever:
    """BLIP-2's Q-Former and heads in full size with random weights, beside a ViT of one layer."""
    vision = {"hidden_size": 1408, "num_hidden_layers": 1, "intermediate_size": 1408}
    qformer = {"vocab_size": 30523, "use_qformer_text_input": True, "bos_token_id": 30522}
    text = OPTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=1, ffn_dim=16)
    config = Blip2Config(vision_config=vision, qformer_config=qformer, text_config=text)
    torch.manual_seed(0)
    model = Retriever(config).to(device).eval()
    model.set_attn_implementation(attention)
    return model


def random_texts(count: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of texts of 8 to 16 tokens, padded to 35 as the original pads them."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(SHORTEST, LONGEST + 1, (count,), generator=generator)
    ids = torch.randint(1000, 30000, (count, PADDED), generator=generator)
    mask = (torch.arange(PADDED) < lengths[:, None]).long()
    return (ids * mask).to(device), mask.to(device)


def random_images(count: int, tokens: int, device: str) -> torch.Tensor:
    """Image features (count, tokens, 1408)."""
    generator = torch.Generator().manual_seed(2)
    return torch.randn(count, tokens, 1408, generator=generator).to(device)


def time_in_turn(calls: Sequence[Callable[[], object]], repeats: int, device: str) -> list[float]:
    """Median seconds of each call, all taken in turn; each has been called before, to warm up."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, taken in zip(calls, times, strict=True):
            _wait(device)
            start = time.perf_counter()
            call()
            _wait(device)
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in times]


def describe_machine(device: str) -> str:
    """Hardware and versions, for the line below a table."""
    name = torch.cuda.get_device_name() if device == "cuda" else _cpu_name()
    return (
        f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"transformers {transformers.__version__}"
    )


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
