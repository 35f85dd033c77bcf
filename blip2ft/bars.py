"""Progress bars, where someone looks on."""

from typing import Any

from tqdm import tqdm


def progress_bar(*arguments: Any, hidden: bool = False, **options: Any) -> tqdm:
    """tqdm's bar; none where it is `hidden`, or where standard error is no terminal.

    A bar is drawn over itself: in a file it would be one line without end.
    """
    return tqdm(*arguments, disable=hidden or None, **options)
