"""Of the libraries' chatter only what matters."""

import logging
import sys

from blip2ft.hub import quiet_retries


def quiet_libraries() -> None:
    """Our own log lines on standard error; of the libraries' chatter only what matters."""
    import os

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("blip2ft").setLevel(logging.INFO)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    quiet_retries()
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def quiet_kernel_search() -> None:
    """Nothing of the CPU kernel that bitsandbytes looks for as it is imported, and we don't use.

    See `blip2ft.models.source.leave_unpacked`.
    """
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_no_kernel_search)


def _no_kernel_search(record: logging.LogRecord) -> bool:
    return "gemm_4bit_forward" not in record.getMessage()
