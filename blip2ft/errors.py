"""What stops a run, and how it is told."""

import errno
import re
from pathlib import Path

_PERMISSION = "not allowed to read or write it; change its permissions"
NOT_ALLOWED = {
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.EROFS: "its disk is read-only; have it mounted for writing",
}

# DeepSpeed, by whatever way it was asked for: why not, docs/launching.md says.
IN_PLACE_OF_DEEPSPEED = (
    "it isn't used here, for FSDP2 does the same: in place of ZeRO-3 take "
    "recipes/accelerate/fsdp2.yaml, of ZeRO-2 or ZeRO-1 fsdp2_zero2.yaml, of neither ddp.yaml; for "
    "offloading and other settings see docs/launching.md, From DeepSpeed"
)


class Stopped(Exception):
    """A signal stopped the command; the message says what is kept, and how to go on."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number


class Interrupted(Stopped):
    """Training was stopped by a signal, after its state was saved in `checkpoint`."""

    def __init__(self, checkpoint: Path, signal_number: int) -> None:
        super().__init__(
            f"stopped; the state is saved in {checkpoint}. The same command with "
            "--resume goes on from there",
            signal_number,
        )
        self.checkpoint = checkpoint


def plain_message(error: Exception) -> str:
    """The error's own words, without the traceback that a loader's worker wraps around them."""
    kind, text = type(error).__name__, str(error)
    wrapped = re.match(r"Caught (\w+) in DataLoader worker", text)
    if wrapped:
        kind = wrapped[1]
        text = re.split(rf"\n(?:\w+\.)*{kind}: ", text)[-1]
    # one place for what any command may open; the text, as a worker's error has no number
    refused = re.match(r"\[Errno (\d+)\] .*?: (['\"])(.+?)\2", text)
    if refused and int(refused[1]) in NOT_ALLOWED:
        return f"{refused[3]}: {NOT_ALLOWED[int(refused[1])]}, or give another path"
    # of other kinds the words alone say little: KeyError's are the key
    named = not isinstance(error, ValueError | OSError | RuntimeError)
    return f"{kind}: {text.strip()}" if named else text.strip()
