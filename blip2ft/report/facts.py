"""What a page tells of a run beside its scores: what it was, how it went, and on what."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from blip2ft.counted import counted
from blip2ft.models.parts import PartRow
from blip2ft.report.curves import NOTHING, number
from blip2ft.report.gallery import Sample
from blip2ft.report.reading import Contents
from blip2ft.training.broken import FILE as BROKEN
from blip2ft.training.filtered import FILE as FILTERED
from blip2ft.training.nonfinite import FILE as NONFINITE

TASKS = {"caption": "Captioning", "vqa": "Questions and answers", "retrieval": "Retrieval"}
# By their files: how grave, what, and what became of it.
ASIDES = {
    NONFINITE: ("warning", "step", "left out, as the loss or the gradient wasn't finite"),
    BROKEN: ("warning", "training sample", "left out, as it couldn't be read"),
    FILTERED: ("note", "training text", "dropped or masked by the filters"),
}
EVEN = 1e-9  # of two scores, from sums in another order
Fact = tuple[str, str]


def said_of(run: Contents) -> str:
    """One sentence on what was done and how far it came."""
    name = run.settings["model"]["name"]
    if run.settings.get("evaluate_only"):
        return f"{name} as it is, on the {run.split} split; nothing was trained."
    trained = run.log[-1]["step"] if run.log else 0
    told = f"{name}, trained for {counted(trained, 'step')}."
    if run.best is None:
        return f"{told} There is no evaluation after training yet."
    if run.after and run.split == "test":
        return f"{told} Step {run.best:,} was the best on validation, by {run.metric}."
    if run.after:
        return (
            f"{told} Step {run.best:,} was the best on validation, by {run.metric}. The scores "
            "below are of that split too, so they flatter: give the run a data.test for a fair one."
        )
    return f"{told} It hasn't ended: the {run.split} split is scored at its end."


def notices(run: Contents) -> list[tuple[str, str, str]]:
    """What a reader should know first: warning or note, words, and the file that says more."""
    found = []
    if run.stopped is not None:
        found.append(("warning", f"stopped by {run.stopped}; --resume goes on with it", ""))
    for name, (kind, noun, what) in ASIDES.items():
        if rows := run.asides[name]:
            found.append((kind, f"{counted(len(rows), noun)} {what}", name))
    return found


def gains(samples: Sequence[Sample]) -> dict[str, int]:
    """How many answers got better, stayed as good, and got worse; {} where they aren't scored."""
    both = [s for s in samples if all(a is not None and a.score is not None for a in s.answers)]
    if not both or len(both[0].answers) < 2:
        return {}
    better = sum(sample.gain > EVEN for sample in both)
    worse = sum(sample.gain < -EVEN for sample in both)
    return {"better": better, "the same": len(both) - better - worse, "worse": worse}


def parts_of(run: Contents) -> tuple[list[PartRow], str]:
    """The table of parts, and why it has no numbers, "" where it has."""
    from blip2ft.inspection import inspect
    from blip2ft.models.parts import part_rows

    try:
        found = inspect(str(run.folder))
    except (ValueError, OSError) as error:
        modes = run.settings["parts"].items()
        told = str(error).splitlines()[0]
        return [PartRow(part, mode, "", 0, 0) for part, mode in modes], (
            f"Their sizes aren't known: {told}"
        )
    return part_rows(found.model, found.parts), ""


def time_and_memory(run: Contents) -> list[Fact]:
    """What the run took, as far as it was measured."""
    found = run.resources
    seconds = found.get("seconds") or {}
    facts = [(f"Time, {name}", span(value)) for name, value in seconds.items() if value is not None]
    for key, title, unit in (
        ("samples", "Samples seen", ""),
        ("samples_per_second", "Samples a second", ""),
        ("processes", "Processes", ""),
        ("starts", "Starts, resumes among them", ""),
        ("precision", "Precision", ""),
        ("cpu", "Processor", ""),
    ):
        if (value := found.get(key)) is not None:
            facts.append((title, f"{value if isinstance(value, str) else number(value)}{unit}"))
    if devices := found.get("devices"):
        facts.append(("Devices", ", ".join(devices)))
    for kind, peaks in (found.get("peak_memory") or {}).items():
        if measured := [peak for peak in peaks or () if peak is not None]:
            facts.append((f"Most memory of a process, {kind}", f"{max(measured) / 1e9:.2f} GB"))
    energy = found.get("energy") or {}
    for key, title, unit in (("kwh", "Energy", "kWh"), ("co2e_kg", "CO2 equivalent", "kg")):
        if energy.get(key) is not None:
            facts.append((title, f"{number(energy[key])} {unit} ({energy.get('measured_by', '')})"))
    if not found and run.log:
        facts.append(("Images a second, median", number(_median(run.log, "images_per_second"))))
    return facts


def environment(run: Contents) -> Iterator[Fact]:
    """Versions, machine and command."""
    found = run.environment
    if not found:
        return
    yield "Command", " ".join(found.get("command") or [])
    yield "Commit", found.get("git_commit") or NOTHING
    yield "Platform", f"{found.get('platform')}, {counted(found.get('cpus') or 0, 'core')}"
    yield "GPUs", ", ".join(found.get("gpus") or []) or "none"
    yield "Python", found.get("python") or NOTHING
    for package, version in (found.get("packages") or {}).items():
        yield package, version or NOTHING


def span(seconds: float) -> str:
    """Some seconds as a person says them: "5 min 28 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return (
        f"{minutes} min {rest} s"
        if minutes
        else f"{seconds:.1f} s"
        if seconds < 10
        else f"{rest} s"
    )


def differing(runs: Sequence[Mapping[str, str]]) -> list[tuple[str, list[str]]]:
    """The settings that not all runs have alike; a dash where a run hasn't one."""
    names = dict.fromkeys(name for settings in runs for name in settings)
    rows = [(name, [settings.get(name, NOTHING) for settings in runs]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def _median(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = sorted(row[name] for row in rows if row.get(name) is not None)
    return values[math.floor(len(values) / 2)] if values else None
