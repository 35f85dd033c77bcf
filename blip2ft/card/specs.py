"""The technical specifications, citation, glossary, and what is left to say."""

from blip2ft.card.about import base_link
from blip2ft.card.facts import Facts
from blip2ft.card.impact import hardware
from blip2ft.card.known import (
    BLIP2_APA,
    BLIP2_BIBTEX,
    FLAN_BIBTEX,
    FLAN_T5,
    OPT,
    OPT_BIBTEX,
)
from blip2ft.card.markdown import block, bullets, code, plain
from blip2ft.card.said import NOT_SAID
from blip2ft.card.words import class_of
from blip2ft.counted import counted

GLOSSARY = {
    "Q-Former": "the part between image encoder and language model: a transformer whose learned "
    "queries read the image",
    "projection": "the layer that turns what the queries found into what the language model reads",
    "LoRA": "training a small update, of few numbers, beside weights that stay as they are",
    "95 % interval": "made so that, for 95 of 100 draws of test images, it holds the score that "
    "all images of the kind would give",
}


def architecture(facts: Facts) -> str:
    """The network and the loss."""
    if facts.task == "retrieval":
        network = (
            "An image encoder, whose features the queries of a Q-Former read; the same Q-Former "
            "reads texts, alone or together with the image."
        )
    else:
        network = (
            "An image encoder, whose features the queries of a Q-Former read; what these found is "
            "projected into a language model, which writes the text."
        )
        if class_of(facts.trained).startswith("Instruct"):
            network += " The Q-Former reads the question too."
    return (
        f"{network} Its class in transformers is `{class_of(facts.trained)}`. {_objective(facts)}"
    )


def infrastructure(facts: Facts) -> str:
    found = facts.resources
    processes, machines = found.get("processes"), found.get("machines")
    if not processes:
        return "How many processes trained it wasn't recorded by the version that did."
    return (
        f"It was trained by {counted(processes, 'process')} on {counted(machines or 1, 'machine')}."
    )


def hardware_lines(facts: Facts) -> str:
    cpu, cores = facts.resources.get("cpu"), facts.environment.get("cpus")
    lines = [f"**Devices:** {hardware(facts)}"]
    if cpu and cores:
        lines.append(f"**Processor:** {plain(cpu)}, {counted(cores, 'core')}")
    return bullets(lines)


def software(facts: Facts) -> str:
    """Versions, and the command that trained it."""
    found = facts.environment
    versions = {"Python": found.get("python"), **(found.get("packages") or {})}
    told = ", ".join(f"{plain(name)} {plain(one)}" for name, one in versions.items() if one)
    lines = [f"**Versions:** {told or 'not recorded'}"]
    if found.get("platform"):
        lines.append(f"**System:** {plain(found['platform'])}")
    if found.get("git_commit"):
        lines.append(f"**Commit:** {code(found['git_commit'])}")
    if found.get("command"):
        lines.append(f"**Command:** {code(' '.join(found['command']))}")
    return bullets(lines)


def bibtex(facts: Facts) -> str:
    """How the model is cited, if its authors say so, and what it is built on."""
    said = facts.said.get("citation")
    language = facts.known.language if facts.known else None
    works = [said] if isinstance(said, str) else []
    works += [BLIP2_BIBTEX]
    works += [OPT_BIBTEX] if language is OPT else [FLAN_BIBTEX] if language is FLAN_T5 else []
    return block("bibtex", "\n\n".join(works))


def apa(facts: Facts) -> str:
    own = f"{facts.inline('citation_apa')}\n\n" if "citation_apa" in facts.said else ""
    return f"{own}{BLIP2_APA}"


def glossary(facts: Facts) -> str:
    lora = facts.trained.get("lora") is not None
    terms = {
        term: told
        for term, told in GLOSSARY.items()
        if not (term == "LoRA" and not lora)
        and not (term == "projection" and facts.task == "retrieval")
    }
    return bullets([f"**{term}**: {told}" for term, told in terms.items()])


def examination(facts: Facts) -> str:
    if "examination" in facts.said:
        return facts.text("examination")
    return (
        f"{NOT_SAID} Where it looks in an image can be seen: "
        f"{code(f'blip2ft attend photo.jpg --model {facts.repo} --out looked')}"
    )


def more_information(facts: Facts) -> str:
    made = (
        f"This card was made by blip2ft from what the run recorded, beginning with "
        f"{base_link(facts)}, and from what its authors said."
    )
    if "more_information" in facts.said:
        return f"{facts.text('more_information')}\n\n{made}"
    return made


def _objective(facts: Facts) -> str:
    if facts.task == "retrieval":
        weights = facts.trained.get("objectives") or {}
        names = {"itc": "contrastive", "itm": "matching", "itg": "generation"}
        used = [f"image-text {names[k]} ({w:g})" for k, w in weights.items() if k in names and w]
        return f"The losses, with their weights: {', '.join(used)}."
    if facts.task == "vqa":
        return "The loss is that of the language model on the answer, given image and question."
    cut = ", cut at random into a part that is read and one that is written"
    return "The loss is that of the language model on the caption, given the image" + (
        f"{cut}." if facts.settings.get("prefix_lm") else "."
    )
