"""Of the libraries' chatter only what matters."""

import sys

from blip2ft.hub import quiet_retries


def quiet_libraries() -> None:
    """Our own log lines on standard error; of the libraries' chatter only what matters."""
    import logging
    import os

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if not sys.stderr.isatty():
        # read by tqdm when it is imported: a file gets a line now and then, not one a step
        os.environ.setdefault("TQDM_MININTERVAL", "60")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("blip2ft").setLevel(logging.INFO)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    quiet_retries()
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
