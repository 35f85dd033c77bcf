"""The filters of a run: what they leave to learn from, and the report of what they took away."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from blip2ft.data.stream import Stream
from blip2ft.features.together import together
from blip2ft.filters.rules import rules_of
from blip2ft.filters.samples import Filtered, apply_verdicts, texts_of
from blip2ft.filters.texts import Verdict, judge_all
from blip2ft.training.run import read_lines, write_lines

FILE = "filtered.jsonl"  # in a run's folder


def filter_training(
    samples: Sequence[Any] | Stream,
    filters: Mapping[str, Any],
    accelerator: Accelerator,
    *,
    run: str | Path,
    workers: int = 0,
) -> Filtered | None:
    """What the group `data.filters` leaves of the training records or questions.

    None where it keeps all.

    The first process looks at the texts, and all do the same with what it finds.

    Raises ValueError for settings that can't be, and where a run that goes on has lost other texts
    than when it was begun: its samples would come in another order.
    """
    rules = rules_of(filters)
    if rules is None:
        return None
    assert not isinstance(samples, Stream)  # `check_settings` says so before

    def look() -> dict[str, Verdict]:
        if not accelerator.is_main_process:
            return {}
        return judge_all(texts_of(samples), rules, workers=workers, progress=True)

    (verdicts,) = broadcast_object_list([together(accelerator, look)])
    filtered = apply_verdicts(samples, verdicts)
    path = Path(run) / FILE
    if path.is_file() and read_lines(path) != filtered.rows:
        raise ValueError(
            f"{path} has other texts than the filters take away now, so this is another run: the "
            "data or the filters' libraries have changed since it was begun. Put them back, or "
            "begin another run with --output FOLDER"
        )
    return filtered


def keep_filtered(run: Path, filtered: Filtered | None, accelerator: Accelerator) -> None:
    """Write the report into the folder of a run that filters."""
    if filtered is not None and accelerator.is_main_process:
        write_lines(run / FILE, filtered.rows)
