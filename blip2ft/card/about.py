"""What the model is: the sections from its name to where it comes from."""

from blip2ft.card.facts import Facts
from blip2ft.card.languages import language_line
from blip2ft.card.markdown import bullets, code, hub_link, plain
from blip2ft.card.said import NOT_SAID
from blip2ft.card.words import MODES, TASKS, class_of, part_name
from blip2ft.counted import counted

PAPER = "[BLIP-2](https://arxiv.org/abs/2301.12597)"
CLIP = " on CLIP's image encoder, which blip2ft loads and transformers alone doesn't"
INSTRUCT = "[InstructBLIP](https://arxiv.org/abs/2305.06500)"


def name_of(facts: Facts) -> str:
    """What the model is called, as text."""
    told = facts.answer("name")
    if told is None and facts.release.repo is not None:
        return facts.release.repo.rpartition("/")[-1]
    return told or f"{facts.base_name}, {_trained(facts)} for {TASKS[facts.task].title}"


def summary(facts: Facts) -> str:
    if "summary" in facts.said:
        return facts.text("summary")
    task = TASKS[facts.task]
    return f"{task.does} It is {base_link(facts)}, {_trained(facts)} for {task.title}."


def description(facts: Facts) -> str:
    """The longer summary, and the list of who, what and under which licence."""
    is_instruct = class_of(facts.trained).startswith("Instruct")
    kind = f"{INSTRUCT}, which is {PAPER} whose Q-Former reads the question" if is_instruct else ""
    if facts.release.merged:
        form = "The whole model is here, with what was trained merged into it."
    else:
        form = (
            "What is here is an **adapter**: the weights that were trained, "
            f"{counted(facts.parameters, 'parameter')}. They go onto {base_link(facts)}, which "
            "isn't part of it."
        )
    modes = facts.trained["parts"].items()
    trained = ", ".join(
        f"{name} {MODES[mode]}" for part, mode in modes if (name := part_name(facts.task, part))
    )
    if stage1 := facts.trained.get("stage1"):
        trained += f". The Q-Former's text branch began as that of {code(stage1)}"
    lines = {
        "Developed by": facts.inline("developers"),
        "Funded by": facts.inline("funded_by"),
        "Shared by": facts.inline("shared_by" if "shared_by" in facts.said else "developers"),
        "Model type": f"vision-language model, {kind or PAPER}, for {TASKS[facts.task].title} "
        f"(`{class_of(facts.trained)}`{CLIP if facts.is_clip else ''})",
        "Language(s) (NLP)": language_line(facts),
        "License": license_line(facts),
        "Finetuned from model": f"{base_link(facts)}{_where(facts)}; {base_license(facts)}",
    }
    told = bullets([f"**{label}:** {text}" for label, text in lines.items()])
    return f"{form} Its parts: {trained}.\n\n{told}"


def sources(facts: Facts) -> str:
    paper = facts.inline("paper") if "paper" in facts.said else f"none of its own; {PAPER}'s"
    lines = {
        "Repository": facts.inline("repository"),
        "Paper": paper,
        "Demo": facts.inline("demo"),
    }
    return bullets([f"**{label}:** {text}" for label, text in lines.items()])


def base_link(facts: Facts) -> str:
    """The model that training began with, on the hub where it is there."""
    if facts.base is not None:
        return hub_link(facts.base, revision_of(facts))
    return code(facts.folder or "")


def revision_of(facts: Facts) -> str | None:
    """The base's commit on the hub, where that is known."""
    return facts.trained.get("revision") if facts.base == facts.trained["base"] else None


def license_line(facts: Facts) -> str:
    """Under which licence the weights are given away, as Markdown."""
    told = facts.answer("license")
    if told is None:
        return f"{NOT_SAID} Without one, nobody is given the right to use or pass on the weights."
    if told == "other":
        return f"{facts.inline('license_name')} ({facts.inline('license_link')})"
    return plain(told)


def base_license(facts: Facts) -> str:
    """The licence of the base, and that of its language model."""
    said = "base_license" in facts.said or facts.known is None
    told = facts.inline("base_license") if said or facts.known is None else facts.known.license
    of_language = facts.known.language.license if facts.known and facts.known.language else ""
    return f"its licence: {told}; {of_language}" if of_language else f"its licence: {told}"


def _where(facts: Facts) -> str:
    """At which commit the base is on the hub, or that it isn't known to be there."""
    if facts.base is None:
        return ", a folder where it was trained, which isn't known to be on the hub"
    revision = revision_of(facts)
    return f", at commit {code(revision[:12])}" if revision else ""


def _trained(facts: Facts) -> str:
    return "trained" if facts.is_streamed else "fine-tuned"
