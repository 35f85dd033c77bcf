"""The card of a run: the sections of the hub's template, in its order, filled.

The template is huggingface_hub's templates/modelcard_template.md (Mitchell et al. 2019,
arXiv 1810.03993). Nothing in a card is invented: what neither the run nor a person says stands
there as not said.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from blip2ft.card import about, impact, results, risks, specs, training, uses
from blip2ft.card.facts import THE_ADAPTER, Facts, Release, read_facts
from blip2ft.card.markdown import plain
from blip2ft.card.metadata import metadata
from blip2ft.card.said import QUESTIONS, check_said
from blip2ft.card.scores import Scores, read_scores
from blip2ft.publish.private import scrub_text


@dataclass(frozen=True)
class Card:
    """text: metadata and Markdown; missing: the questions that a person still has to answer."""

    text: str
    missing: list[str]


def model_card(
    run: Path, said: Mapping[str, str | list[str]], release: Release = THE_ADAPTER
) -> Card:
    """The card of a run that has ended.

    said: answers of a person, by the names of `QUESTIONS`.

    Raises ValueError where the folder holds no run, one that hasn't ended or that trained nothing,
    for an answer to what isn't asked, for a field that the data haven't, and for a country that
    isn't known.
    """
    facts = read_facts(run, check_said(said), release)
    scores = read_scores(facts)
    head = metadata(facts, scores)
    text = f"---\n{head}\n---\n\n{_body(facts, scores)}\n"
    return Card(scrub_text(text, {}), [name for name in QUESTIONS if name in facts.asked])


def _body(facts: Facts, scores: Scores) -> str:
    sections = {
        f"# Model Card for {plain(about.name_of(facts))}": about.summary(facts),
        "## Model Details": "",
        "### Model Description": about.description(facts),
        "### Model Sources": about.sources(facts),
        "## Uses": "",
        "### Direct Use": uses.direct_use(facts),
        "### Downstream Use": uses.downstream_use(facts),
        "### Out-of-Scope Use": uses.out_of_scope_use(facts),
        "## Bias, Risks, and Limitations": risks.risks(facts, scores),
        "### Recommendations": uses.recommendations(facts),
        "## How to Get Started with the Model": uses.get_started(facts),
        "## Training Details": "",
        "### Training Data": training.training_data(facts),
        "### Training Procedure": "",
        "#### Preprocessing": training.preprocessing(facts),
        "#### Training Hyperparameters": training.hyperparameters(facts),
        "#### Speeds, Sizes, Times": training.speeds(facts),
        "## Evaluation": "",
        "### Testing Data, Factors & Metrics": "",
        "#### Testing Data": results.testing_data(facts, scores),
        "#### Factors": results.factors(facts, scores),
        "#### Metrics": results.metrics(facts, scores),
        "### Results": results.results(facts, scores),
        "#### Summary": results.results_summary(facts, scores),
        "## Model Examination": specs.examination(facts),
        "## Environmental Impact": impact.impact(facts),
        "## Technical Specifications": "",
        "### Model Architecture and Objective": specs.architecture(facts),
        "### Compute Infrastructure": specs.infrastructure(facts),
        "#### Hardware": specs.hardware_lines(facts),
        "#### Software": specs.software(facts),
        "## Citation": f"**BibTeX:**\n\n{specs.bibtex(facts)}\n\n**APA:**\n\n{specs.apa(facts)}",
        "## Glossary": specs.glossary(facts),
        "## More Information": specs.more_information(facts),
        "## Model Card Authors": facts.inline("card_authors"),
        "## Model Card Contact": facts.inline("contact"),
    }
    return "\n\n".join(part for pair in sections.items() for part in pair if part)
