"""Bias, risks and limits: those that came with the base, and those that were measured."""

from collections.abc import Sequence

from blip2ft.card.facts import Facts
from blip2ft.card.known import WEB_DATA, WEB_RISKS
from blip2ft.card.markdown import bullets, plain, table
from blip2ft.card.scores import ENOUGH, Group, Scores
from blip2ft.card.words import TASKS, metric_name
from blip2ft.counted import counted
from blip2ft.evaluation.told import between, number


def risks(facts: Facts, scores: Scores) -> str:
    """What a person knows, what the base brings, and what the evaluation showed."""
    parts = [facts.text("known_limits")] if "known_limits" in facts.said else []
    parts.append(f"**From the base.**\n\n{bullets(_inherited(facts))}")
    measured = _measured(facts, scores)
    if measured:
        parts.append(f"**Measured**, on the {facts.run.split} split:\n\n{bullets(measured)}")
    if worse := _worse(facts, scores):
        parts.append(worse)
    return "\n\n".join(parts)


def _inherited(facts: Facts) -> list[str]:
    known, frozen = facts.known, facts.trained["parts"].get("language") == "frozen"
    if known is None:
        return [f"What the base had learned from: {facts.inline('base_training_data')}"]
    lines = [f"{WEB_DATA}. {WEB_RISKS}"]
    if known.language is not None:
        lines.append(known.language.risks + (" It was not changed here." if frozen else ""))
    return lines


def _measured(facts: Facts, scores: Scores) -> list[str]:
    lines = []
    if scores.changes:
        count = counted(scores.records, TASKS[facts.task].inputs)
        lines.append(f"{scores.changes['worse']:,} of {count} score worse than before training.")
    if scores.main is not None:
        metric = scores.main.name
        lines += [
            _lowest(facts, name, groups, metric)
            for name, groups in scores.by_field.items()
            if len({one.scores[metric].value for one in _telling(groups, metric)}) > 1
        ]
    repeated = facts.learned.get("repeated")
    if repeated is not None and facts.task != "retrieval":
        what = "answers" if facts.task == "vqa" else "captions"
        lines.append(
            f"{100 * repeated:.1f} % of its {what} are, to the letter, one of the {what} that it "
            "learned from."
        )
    return lines


def _telling(groups: Sequence[Group], metric: str) -> list[Group]:
    return [one for one in groups if metric in one.scores and one.count >= ENOUGH]


def _lowest(facts: Facts, field: str, groups: Sequence[Group], metric: str) -> str:
    """The group of a field with the lowest score, beside the highest."""
    scored = _telling(groups, metric)
    low = min(scored, key=lambda one: one.scores[metric].value)
    high = max(scored, key=lambda one: one.scores[metric].value)
    told = []
    for one in (low, high):
        score, noun = one.scores[metric], counted(one.count, TASKS[facts.task].inputs)
        span = between(score.low, score.high)
        told.append(f"{facts.shown(one.value)} ({number(score.value)}, {span}; {noun})")
    name = plain(metric_name(metric))
    return f"By {facts.shown(field)}, {name} is lowest for {told[0]} and highest for {told[1]}."


def _worse(facts: Facts, scores: Scores) -> str:
    """Those that lost most, as a table; "" without any."""
    if not scores.worse:
        return ""
    header = ["reference", "before training", "this model"]
    if facts.task == "retrieval":
        header[1:] = ["best text before training", "best text of this model"]
    rows = [list(map(facts.shown, (one.reference, one.before, one.after))) for one in scores.worse]
    if facts.task == "vqa":
        header = ["question", *header]
        asked = [facts.shown(one.question) for one in scores.worse]
        rows = [[question, *row] for question, row in zip(asked, rows, strict=True)]
    return f"What it lost most on:\n\n{table(header, rows)}"
