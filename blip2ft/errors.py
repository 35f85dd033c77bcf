"""What stops a run, and how it is told."""

from pathlib import Path


class Interrupted(Exception):
    """The run was stopped by a signal, after its state was saved in `checkpoint`."""

    def __init__(self, checkpoint: Path, signal_number: int) -> None:
        super().__init__(
            f"stopped; the state is saved in {checkpoint}. The same command with "
            "--train.resume true goes on from there"
        )
        self.checkpoint = checkpoint
        self.signal_number = signal_number


def plain_message(error: Exception) -> str:
    """The error in one line, without the traceback that a loader's worker wraps around it."""
    return " ".join(str(error).rpartition("\nValueError: ")[2].split())
