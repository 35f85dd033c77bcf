"""The card's metadata, by which the hub finds, lists and scores a model.

As https://github.com/huggingface/hub-docs/blob/main/modelcard.md describes them.
"""

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from blip2ft.card.about import name_of
from blip2ft.card.facts import Facts
from blip2ft.card.impact import grams_of
from blip2ft.card.languages import languages_of
from blip2ft.card.markdown import shown_source
from blip2ft.card.scores import Scores
from blip2ft.card.words import TASKS, hub_metric, metric_name
from blip2ft.data.records import HUB_ID
from blip2ft.evaluation.told import between

OURS = "blip2ft"


def metadata(facts: Facts, scores: Scores) -> str:
    """The YAML at the head of a card, without the lines around it.

    Raises ValueError where the hub's own check refuses it.
    """
    licence, languages = facts.said.get("license"), languages_of(facts)
    found: dict[str, Any] = {
        "language": languages if len(languages) != 1 else languages[0],
        "license": licence,
        "library_name": library_of(facts),
        "pipeline_tag": TASKS[facts.task].pipeline,
        "base_model": facts.base,
        "base_model_relation": relation_of(facts) if facts.base else None,
        "datasets": _datasets(facts),
        "tags": tags_of(facts),
        "metrics": sorted({hub_metric(name) for name in facts.run.after}),
    }
    if licence == "other":
        found |= {name: facts.answer(name) for name in ("license_name", "license_link")}
    found["co2_eq_emissions"] = _emissions(facts)
    found = {name: value for name, value in found.items() if value not in (None, [], {})}
    evaluated = _evaluated(facts, scores)
    if evaluated:
        found |= {"model_name": _line(name_of(facts)), "eval_results": evaluated}
    return ModelCardData(**found).to_yaml(line_break="\n").strip()


def library_of(facts: Facts) -> str:
    """What loads all of it. peft would leave out what isn't LoRA, without a word."""
    if facts.release.merged:
        return OURS if facts.is_clip else "transformers"
    return "peft" if facts.is_lora_alone else OURS


def relation_of(facts: Facts) -> str:
    return "finetune" if facts.release.merged else "adapter"


def tags_of(facts: Facts) -> list[str]:
    tags = [OURS, "blip-2", TASKS[facts.task].title.replace(" ", "-")]
    tags += ["lora"] if facts.trained.get("lora") and not facts.release.merged else []
    said = facts.said.get("tags", [])
    return list(dict.fromkeys([*tags, *(said if isinstance(said, list) else [said])]))


def _datasets(facts: Facts) -> list[str]:
    """Data sets on the hub: those that a person says, else those that the settings name."""
    said = facts.said.get("datasets")
    if said is not None:
        return said if isinstance(said, list) else [said]
    data = facts.settings["data"]
    train = data.get("train") or (data.get("stream") or {}).get("sources") or []
    sources = train if isinstance(train, list) else [train]
    names = [one["source"] for one in sources if one["format"] == "huggingface"]
    # a name may be followed by that of a configuration
    return [
        name.partition(":")[0]
        for name in names
        if HUB_ID.fullmatch(name) and not Path(name).exists()
    ]


def _emissions(facts: Facts) -> dict[str, Any] | None:
    grams = grams_of(facts)
    if grams is None:
        return None
    energy = facts.resources.get("energy") or {}
    measured = energy.get("kwh") is not None
    source = energy["measured_by"] if measured else "estimated from the devices' watts and the time"
    resources = facts.resources
    hours = (resources.get("seconds") or {}).get("total", 0) / 3600
    found: dict[str, Any] = {
        "emissions": float(f"{grams:.4g}"),
        "source": _line(source),
        "training_type": "pre-training" if facts.is_streamed else "fine-tuning",
        "geographical_location": facts.said.get("country") or energy.get("country"),
        "hardware_used": _line(facts.hardware) or None,
        "hours_used": float(f"{hours:.4g}"),
    }
    return {name: value for name, value in found.items() if value is not None}


def _evaluated(facts: Facts, scores: Scores) -> list[EvalResult]:
    """Each score of the model as it is, with its interval in the metric's name."""
    source = _line(shown_source(facts.settings["data"][facts.run.split]["source"]))
    said = facts.said.get("evaluation_data")
    found = []
    for one in scores.scores:
        of = one.interval
        sure = f" (95 % interval {between(of.low, of.high)})" if of else ""
        found.append(
            EvalResult(
                task_type=TASKS[facts.task].pipeline,
                task_name=TASKS[facts.task].title,
                dataset_type=source,
                dataset_name=_line(said) if isinstance(said, str) else source,
                dataset_split=facts.run.split,
                metric_type=hub_metric(one.name),
                metric_name=_line(f"{metric_name(one.name)}{sure}"),
                metric_value=one.after,
            )
        )
    return found


def _line(text: str) -> str:
    """Text on one line, of what can be printed."""
    return "".join(c for c in " ".join(text.split()) if c.isprintable())
