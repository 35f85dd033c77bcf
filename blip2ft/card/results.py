"""The evaluation: on what, by what, and with which results."""

import shlex
from collections.abc import Mapping, Sequence

from blip2ft.card.facts import Facts
from blip2ft.card.markdown import block, bullets, plain, shown_source, table
from blip2ft.card.scores import Group, Score, Scores
from blip2ft.card.words import TASKS, metric_name, told_metrics
from blip2ft.counted import counted
from blip2ft.evaluation.evaluate import METHOD
from blip2ft.evaluation.intervals import Interval
from blip2ft.evaluation.told import SHOWN, between, number

NOTHING = "Nothing was scored: the data have no references, or the evaluation's answers are gone."


def testing_data(facts: Facts, scores: Scores) -> str:
    """What it was evaluated on, and whether that split chose the weights."""
    named = facts.inline("evaluation_data") if "evaluation_data" in facts.said else ""
    source = f"The {facts.run.split} split is {plain(shown_source(facts.run.data['source']))}"
    noun = counted(scores.records, TASKS[facts.task].inputs)
    size = f"{noun} about {counted(scores.images, 'image')}" if facts.task == "vqa" else noun
    what = "answer" if facts.task == "vqa" else "caption"
    references = f", with {counted(scores.references, what)} to compare with"
    told = f"{source}: {size}{references if scores.references else ''}."
    if facts.run.split == "validation":
        told += (
            " **It also chose the weights** among those that were saved, as the run has no test "
            "split: the scores flatter."
        )
    return f"{named}\n\n{told}" if named else told


def factors(facts: Facts, scores: Scores) -> str:
    if not scores.by_field:
        return (
            "No field of the data sets a few groups of them apart, so there is one result for all."
        )
    names = ", ".join(map(facts.shown, scores.by_field))
    return (
        f"Results are told apart by {counted(len(scores.by_field), 'field')} of the data: {names}."
    )


def metrics(facts: Facts, scores: Scores) -> str:
    lines = told_metrics(facts.task, facts.run.after, facts.run.answers_after)
    # what it says of CIDEr-D comes last
    method = METHOD if facts.task == "caption" else METHOD.partition(";")[0]
    interval = (
        f"In brackets behind a score is its interval, where there is one ({method}): other images "
        "of the same kind would have given scores like these. Of another seed of training it tells "
        "nothing."
    )
    if scores.images < 30:
        interval += f" It is too narrow, as there are only {counted(scores.images, 'image')}."
    return f"{bullets(lines)}\n\n{interval}" if facts.run.after else NOTHING


def results(facts: Facts, scores: Scores) -> str:
    """Tables of all scores, before and after, and by group; and how to get them again."""
    if not scores.scores:
        return NOTHING
    header, rows = ["score", "this model"], [[*_own(one)] for one in scores.scores]
    parts = []
    if any(one.before is not None for one in scores.scores):
        header = ["score", "before training", "this model", "difference"]
        rows = [_both(one) for one in scores.scores]
        parts.append(
            "A difference in bold is one that chance makes less than once in twenty times (paired "
            "randomization over images)."
        )
    if facts.release.merged:
        parts.append("They were measured in the run, before what was trained was merged.")
    parts = [table(header, rows), *parts]
    parts += [
        f"<details><summary>By {facts.shown(name)}</summary>\n\n{_groups(facts, name, groups)}"
        "\n\n</details>"
        for name, groups in scores.by_field.items()
    ]
    parts.append(
        f"To score it again, on your copy of the data:\n\n{block('bash', again(facts, scores))}"
    )
    return "\n\n".join(parts)


def results_summary(facts: Facts, scores: Scores) -> str:
    """The main score in a sentence, and what of the answers changed."""
    main = scores.main
    if main is None:
        return NOTHING
    name = metric_name(main.name)
    told = f"{name[0].upper()}{name[1:]} is {_value(main.after, main.interval)}"
    if main.before is not None:
        told += f", and was {_value(main.before, main.interval_before)} before training"
    if not scores.changes:
        return f"{told}."
    count, of = counted(scores.records, TASKS[facts.task].inputs), scores.changes
    return (
        f"{told}. Of {count}, {of['better']:,} score better than before, {of['the same']:,} the "
        f"same and {of['worse']:,} worse."
    )


def again(facts: Facts, scores: Scores) -> str:
    """The commands that score the model as it is on the hub."""
    run, repo = facts.run, facts.repo
    words = ["--config", "run/config.yaml", "--model", repo, "--split", run.split]
    source = facts.settings["data"][run.split]
    data = []
    for name in ("source", "annotations", "images", "image_root"):
        if source.get(name) and source["format"] != "huggingface":
            data += [f"--data.{run.split}.{name}", f"YOUR_{name.upper()}"]
    if facts.settings.get("candidates"):
        data += ["--candidates", "YOUR_CANDIDATES"]
    data += ["--by", *scores.by_field] if scores.by_field else []
    return (
        f"hf download {repo} run/config.yaml --local-dir .\n"
        f"blip2ft evaluate {facts.task} {shlex.join(words)} \\\n"
        f"    {shlex.join([*data, '--out', 'scores'])}"
    )


def _own(one: Score) -> list[str]:
    return [plain(metric_name(one.name)), _value(one.after, one.interval)]


def _both(one: Score) -> list[str]:
    """A score's row: its name, before, after, and how far these are apart."""
    before = "" if one.before is None else _value(one.before, one.interval_before)
    name, after = _own(one)
    told, of = "", one.difference
    if of is not None:
        told = f"{of.difference:+.4g} ({between(of.low, of.high)})"
    return [name, before, after, f"**{told}**" if of and of.significant else told]


def _groups(facts: Facts, name: str, groups: Sequence[Group]) -> str:
    shown = [key for key in SHOWN[facts.task] if any(key in one.scores for one in groups)]
    header = [facts.shown(name), f"{TASKS[facts.task].inputs}s", *map(metric_name, shown)]
    rows = [
        [facts.shown(one.value), f"{one.count:,}", *_cells(one.scores, shown)] for one in groups
    ]
    return table(header, rows)


def _cells(scores: Mapping[str, Interval], shown: Sequence[str]) -> list[str]:
    found = [scores.get(name) for name in shown]
    return ["" if one is None else _value(one.value, one) for one in found]


def _value(value: float, one: Interval | None) -> str:
    """A score with its interval, where that is known."""
    return number(value) if one is None else f"{number(value)} ({between(one.low, one.high)})"
