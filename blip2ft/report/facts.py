"""What a page tells of a run beside its scores: what it was, how it went, and on what."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from blip2ft.counted import counted
from blip2ft.errors import plain_message
from blip2ft.inspection import inspect
from blip2ft.models.parts import PARTS, PartRow, part_rows
from blip2ft.report.curves import NOTHING, number, points_of
from blip2ft.report.gallery import Sample
from blip2ft.report.reading import Contents, flat
from blip2ft.training.broken import FILE as BROKEN
from blip2ft.training.filtered import FILE as FILTERED
from blip2ft.training.nonfinite import FILE as NONFINITE
from blip2ft.training.same_run import OF_THE_COMMAND
from blip2ft.training.summary import told_no_gain

TASKS = {"caption": "Captioning", "vqa": "Questions and answers", "retrieval": "Retrieval"}
# By their files: how grave, what, and what became of it.
ASIDES = {
    NONFINITE: ("warning", "step", "left out, as the loss or the gradient wasn't finite"),
    BROKEN: ("warning", "training sample", "left out, as it couldn't be read"),
    FILTERED: ("note", "training text", "dropped or masked by the filters"),
}
# Of resources.json.
TIMES = {"training": "Training", "evaluating": "Evaluating", "total": "From start to end"}
TAKEN = {
    "samples": "Samples trained on",
    "samples_per_second": "Samples a second",
    "starts": "Starts, with resumes",
    "processes": "Processes",
    "precision": "Precision",
    "cpu": "Processor",
}
EVEN = 1e-9  # of two scores, from sums in another order
Fact = tuple[str, str]


def said_of(run: Contents) -> str:
    """One sentence on what was done and how far it came."""
    name = run.settings["model"]["name"]
    if not run.trains:
        done = f"{name} as it is, on the {run.split} split; nothing was trained."
        return done if run.ended else f"{done} It hasn't been evaluated yet."
    logged = points_of(run.log, "step")
    steps = counted(logged[-1].step if logged else 0, "step")
    if not run.ended:
        so_far = f"{name}, trained for {steps} so far."
        if run.best is None:
            return f"{so_far} There is no evaluation after training yet."
        return f"{so_far} Step {run.best:,} is the best on validation by now, by {run.metric}."
    told = f"{name}, trained for {steps}."
    if run.best is None:
        return f"{told} Its evaluations aren't there any more."
    told = f"{told} Step {run.best:,} was the best on validation, by {run.metric}."
    if run.split == "test":
        return told
    return (
        f"{told} The scores below are of that split too, so they flatter: for fair ones give a "
        "data.test too."
    )


def notices(run: Contents) -> list[tuple[str, str, str]]:
    """What a reader should know first: warning or note, words, and the file that says more."""
    found = []
    if run.stopped is not None:
        found.append(("warning", f"stopped by {run.stopped}; --resume goes on with it", ""))
    if run.ended and (told := told_no_gain(run.before, run.after, run.metric)):
        found.append(("warning", told, ""))
    for name, (kind, noun, what) in ASIDES.items():
        if rows := run.asides[name]:
            found.append((kind, f"{counted(len(rows), noun)} {what}", name))
    for name, lines in run.damaged.items():
        found.append(("warning", f"{counted(lines, 'line')} can't be read and left out", name))
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
    modes = run.settings["parts"] if run.trains else dict.fromkeys(PARTS, "frozen")
    unknown = [PartRow(part, mode, "", 0, 0) for part, mode in modes.items()]
    if not run.ended:
        return unknown, "How large they are is known when the run has ended."
    model = run.settings["model"]
    try:
        if run.trains:
            found = inspect(str(run.folder))
        else:
            found = inspect(model["name"], revision=model["revision"])
    except (ValueError, OSError, KeyError) as error:  # KeyError: another version's
        return unknown, f"How large they are isn't known: {plain_message(error).splitlines()[0]}"
    return part_rows(found.model, found.parts), ""


def time_and_memory(run: Contents) -> list[Fact]:
    """What the run took, as far as it was measured."""
    found = run.resources
    seconds = found.get("seconds") or {}
    facts = [(title, span(seconds[key])) for key, title in TIMES.items() if key in seconds]
    for key, title in TAKEN.items():
        if (value := found.get(key)) is not None:
            facts.append((title, value if isinstance(value, str) else number(value)))
    if devices := found.get("devices"):
        facts.append(("Devices", ", ".join(devices)))
    for kind, peaks in (found.get("peak_memory") or {}).items():
        if measured := [peak for peak in peaks or () if peak is not None]:
            facts.append((f"Memory of a process, {kind}", f"up to {max(measured) / 1e9:.2f} GB"))
    energy = found.get("energy") or {}
    for key, title, unit in (("kwh", "Energy", "kWh"), ("co2e_kg", "CO2 equivalent", "kg")):
        if energy.get(key) is not None:
            facts.append((title, f"{number(energy[key])} {unit} ({energy.get('measured_by', '')})"))
    if not found and (speeds := points_of(run.log, "images_per_second")):
        facts.append(("Images a second, median", number(median(one.mean for one in speeds))))
    return facts


def environment(run: Contents) -> Iterator[Fact]:
    """Versions, machine and command."""
    found = run.environment
    if not found:
        return
    yield "Command", shlex.join(found.get("command") or [])
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
    if minutes:
        return f"{minutes} min {rest} s"
    return f"{seconds:.1f} s" if seconds < 10 else f"{rest} s"


def differing_settings(starts: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """The settings that not all starts, of one run or of several, have alike.

    Where a run lies and that it goes on is left out.
    """
    rows = differing([flat(settings) for settings in starts])
    return [(name, values) for name, values in rows if name not in OF_THE_COMMAND]


def differing(runs: Sequence[Mapping[str, str]]) -> list[tuple[str, list[str]]]:
    """What not all runs have alike."""
    return [(name, values) for name, values in side_by_side(runs) if len(set(values)) > 1]


def side_by_side(runs: Sequence[Mapping[str, str]]) -> list[tuple[str, list[str]]]:
    """All that any run has, with the values of each; a dash where a run hasn't it."""
    names = dict.fromkeys(name for facts in runs for name in facts)
    return [(name, [facts.get(name, NOTHING) for facts in runs]) for name in names]
