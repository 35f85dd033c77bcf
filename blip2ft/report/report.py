"""Write the page of a run, or one that compares runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from blip2ft.counted import counted
from blip2ft.errors import plain_message
from blip2ft.report.charts import MOST
from blip2ft.report.reading import read_run
from blip2ft.report.render import comparison_page, run_page
from blip2ft.whole import check_writable, write_text

if TYPE_CHECKING:
    import torch

FILE = "report.html"  # in a run's folder
COMPARISON = "comparison.html"
OURS = '<meta name="generator" content="blip2ft report">'
HEAD = 4096  # bytes of a page within which that is


def write_report(
    run: Path,
    out: Path | None = None,
    *,
    attention: int = 0,
    dtype: "torch.dtype | None" = None,
) -> Path:
    """Write a run's page, in place of an earlier one; return its file.

    run: The run's folder. out: Where to write; None is report.html in the folder. attention: Of how
    many answers to show where the model looks; then it is loaded, with what the run didn't train in
    `dtype`.

    Raises ValueError where the folder holds no run or a damaged one, where there is a file in the
    way that isn't such a page, and where the model is wanted and can't be loaded.
    """
    run = Path(run)
    out = run / FILE if out is None else out
    contents = read_run(run)
    check_own(out)
    write_text(out, run_page(contents, attention, dtype))
    return out


def write_comparison(runs: Sequence[Path], out: Path = Path(COMPARISON)) -> Path:
    """Write a page that shows runs side by side, each against the first; return its file.

    Raises ValueError as `write_report` does, for runs of several tasks, for one that comes twice
    and for more than can be told apart.
    """
    folders = [run.resolve() for run in runs]
    if twice := [
        run for run, folder in zip(runs, folders, strict=True) if folders.count(folder) > 1
    ]:
        raise ValueError(f"{twice[0]} comes twice: name each run once")
    if len(runs) > MOST:
        raise ValueError(f"{counted(len(runs), 'run')} can't be told apart: name up to {MOST}")
    found = [read_run(run) for run in runs]
    if len(tasks := {run.task for run in found}) > 1:
        told = ", ".join(f"{run.folder} ({run.task})" for run in found)
        raise ValueError(
            f"runs of {' and '.join(sorted(tasks))} can't be compared: {told}; name one task's"
        )
    names = [run.name for run in found]
    if len(set(names)) < len(names):
        names = [str(run) for run in runs]
    check_own(out)
    write_text(out, comparison_page(found, names))
    return out


def told_report(run: Path) -> str:
    """Write a run's page as the run ends; the line that tells where it is, or why there is none.

    Whatever goes wrong, the run has ended well: it isn't failed by its page.
    """
    try:
        return f"its scores, curves and answers on a page: {write_report(run)}"
    except Exception as error:
        told = plain_message(error).splitlines()[0] if str(error) else type(error).__name__
        return f"warning: no {FILE} was written ({told}); to try again: blip2ft report {run}"


def check_own(out: Path) -> None:
    """Raise ValueError where `out` can't be written, or is a file that isn't one of these pages."""
    if out.is_dir():
        raise ValueError(f"{out} is a folder; name a file, such as --out {out / FILE}")
    check_writable(out.parent)
    if out.exists():
        with out.open("rb") as file:
            if OURS.encode() not in file.read(HEAD):
                raise ValueError(
                    f"{out} is no page of blip2ft report and isn't overwritten; choose another "
                    "with --out FILE"
                )
