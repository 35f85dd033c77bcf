"""The languages of what a model learned from: as a person says, or as the texts tell."""

from blip2ft.audit.languages import UNSURE
from blip2ft.card.facts import Facts
from blip2ft.card.markdown import plain

LEAST = 0.1  # share of the texts from which a language is told


def languages_of(facts: Facts) -> list[str]:
    """Codes of ISO 639-1; none where a person has to say it, which is then missing."""
    said = facts.said.get("language")
    if said is not None:
        return said if isinstance(said, list) else [said]
    counts = facts.learned.get("languages") or {}
    total = sum(counts.values())
    found = [name for name, count in counts.items() if name != UNSURE and count >= LEAST * total]
    if not found:
        facts.asked.add("language")
    return found


def language_line(facts: Facts) -> str:
    """The languages in words, and how they are known."""
    found = languages_of(facts)
    if not found or "language" in facts.said:
        return facts.inline("language")
    counts = facts.learned["languages"]
    told = ", ".join(f"{plain(name)} {count:,}" for name, count in counts.items() if name in found)
    rest = sum(count for name, count in counts.items() if name not in found)
    told += f", others or not sure {rest:,}" if rest else ""
    what = "questions" if facts.task == "vqa" else "captions"
    return f"{', '.join(map(plain, found))} (as py3langid tells of the {what} learned from: {told})"
