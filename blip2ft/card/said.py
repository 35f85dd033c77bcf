"""What only a person can say of a model: the questions, and the answers from a YAML or flags."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from textwrap import wrap
from typing import Any

import yaml

NOT_SAID = "Not said by its authors."
WIDTH = 90  # of the questions in a file to fill in


@dataclass(frozen=True)
class Question:
    """What is asked.

    needed: without an answer it is listed as missing, where it applies; several: the answer may be
    a list; pattern: what an answer has to match, and form: that in words.
    """

    ask: str
    needed: bool = True
    several: bool = False
    pattern: str = ""
    form: str = ""


NUMBER = r"\d+(\.\d+)?"
QUESTIONS: dict[str, Question] = {
    "name": Question("What is the model called?", needed=False),
    "summary": Question("What does it do, in a sentence or two?", needed=False),
    "developers": Question("Who made it?"),
    "contact": Question("Where do questions and complaints go to: an address, a page?"),
    "license": Question(
        "Under which licence do you give the weights away? As the hub writes it: mit, apache-2.0, "
        "cc-by-4.0, cc-by-sa-4.0 ..., or other, with license_name and license_link. The licences "
        "of the base and of the data bind you.",
        pattern=r"[a-z0-9][a-z0-9.+-]*",
        form="the hub's short name of a licence, such as apache-2.0",
    ),
    "license_name": Question("What is a licence called that is 'other'?"),
    "license_link": Question("Where can a licence be read that is 'other'?"),
    "data_source": Question(
        "Where do the training images and texts come from, and who wrote the texts?"
    ),
    "data_license": Question("Under which licence or permission were they used?"),
    "data_people": Question(
        "Do the images or texts show or name people, and did these agree? 'none' if there are none."
    ),
    "intended_use": Question("What is the model for, and for whom?"),
    "out_of_scope_use": Question("What should nobody do with it?"),
    "language": Question(
        "Which language does it write or read, as ISO 639-1 says it, such as en? A list for "
        "several. It is told from the texts where py3langid is installed and is sure.",
        several=True,
        pattern=r"[a-z]{2,3}",
        form="a code of two or three letters, such as en",
    ),
    "base_model": Question(
        "Where on the hub is the model that training began with? It was a folder.",
        needed=False,
        pattern=r"[\w.-]+/[\w.-]+",
        form="a hub id, OWNER/NAME",
    ),
    "base_license": Question("Under which licence is the model that training began with?"),
    "base_training_data": Question("What had the model learned from that training began with?"),
    "country": Question(
        "In which country was it trained, as ISO 3166 says it in three letters, such as FRA? With "
        "it energy becomes carbon.",
        pattern=r"[A-Z]{3}",
        form="a code of three capitals, such as FRA",
    ),
    "carbon_intensity": Question(
        "How many grams of CO2 equivalent does a kWh cost there, if you know better than the "
        "country's average?",
        needed=False,
        pattern=NUMBER,
        form="a number of grams for each kWh, such as 56",
    ),
    "device_watts": Question(
        "How many watts does one of the devices take that it was trained on? Energy is estimated "
        "from it, as none was measured.",
        pattern=NUMBER,
        form="a number of watts, such as 300",
    ),
    "provider": Question("On whose machines was it trained: a cloud, a cluster, your own?"),
    "funded_by": Question("Who paid for it? 'none' if nobody did."),
    "shared_by": Question("Who publishes it, if not who made it?", needed=False),
    "repository": Question("Where is its code or its project?", needed=False),
    "paper": Question("Which paper describes it?", needed=False),
    "demo": Question("Where can it be tried?", needed=False),
    "downstream_use": Question("What else could be built on it?", needed=False),
    "known_limits": Question("Which limits and risks do you know that aren't here?", needed=False),
    "recommendations": Question("What do you advise people who use it?", needed=False),
    "evaluation_data": Question(
        "What is it evaluated on: a name, and where it comes from?", needed=False
    ),
    "examination": Question("Was it looked into how it comes to its answers?", needed=False),
    "datasets": Question(
        "Which data sets on the hub did it learn from? Hub ids, OWNER/NAME.",
        needed=False,
        several=True,
        pattern=r"[\w.-]+(/[\w.-]+)?",
        form="a hub id, OWNER/NAME",
    ),
    "tags": Question("Which further tags shall it have on the hub?", needed=False, several=True),
    "citation": Question("How is it cited, in BibTeX?", needed=False),
    "citation_apa": Question("How is it cited, in a line?", needed=False),
    "more_information": Question("What else should one know?", needed=False),
    "card_authors": Question("Who wrote this card?"),
}


def check_said(said: Mapping[str, Any], source: str = "") -> dict[str, str | list[str]]:
    """The answers that were given, as texts or lists of texts.

    source: where they are from, for messages. An empty answer or null is none.

    Raises ValueError for what isn't asked, with the nearest question, and for an answer in another
    form than asked for.
    """
    at = f"{source}: " if source else ""
    answers: dict[str, str | list[str]] = {}
    for key, value in said.items():
        if key not in QUESTIONS:
            near = get_close_matches(str(key), QUESTIONS, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(QUESTIONS)}"
            raise ValueError(f"{at}nothing is asked by the name {str(key)!r}; {hint}")
        question = QUESTIONS[key]
        values = value if isinstance(value, list) else [value]
        if isinstance(value, list) and not question.several:
            raise ValueError(f"{at}{key} is a list: allowed is one text, such as {key}: TEXT")
        texts = [_text(one, f"{at}{key}") for one in values if one is not None]
        texts = [text for text in texts if text]
        for text in texts:
            if question.pattern and not re.fullmatch(question.pattern, text):
                raise ValueError(f"{at}{key} is {text!r}: allowed is {question.form}")
        if texts:
            answers[key] = texts if question.several else texts[0]
    return answers


def read_said(path: Path) -> dict[str, str | list[str]]:
    """The answers in a YAML file; see `check_said`. ValueError for a file that isn't one."""
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file; blip2ft card RUN --ask writes one")
    try:
        # a string each, so that no is Norwegian, and a date stays as it is written
        said = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} isn't a YAML file: {' '.join(str(error).split())}") from error
    if said in (None, ""):
        return {}
    if not isinstance(said, dict):
        raise ValueError(f"{path} holds no answers: expected lines such as license: apache-2.0")
    return check_said(said, str(path))


def parse_said(words: Sequence[str]) -> dict[str, str | list[str]]:
    """The answers of words such as "license=mit"; what comes twice is a list."""
    found: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise ValueError(f"--say {word!r}: expected QUESTION=ANSWER, such as license=mit")
        found[key] = [*found[key], text] if key in found else [text]
    return check_said(
        {key: values[0] if len(values) == 1 else values for key, values in found.items()}, "--say"
    )


def write_questions(asked: Sequence[str], said: Mapping[str, Any]) -> str:
    """A YAML to fill in: those of `asked` that `said` doesn't answer, then the optional ones."""
    lines = ["# Fill in what you know and delete the rest; blip2ft card RUN --about THIS_FILE"]
    lines += [
        "# Text over several lines: write | behind the colon and indent the lines below it.",
        "",
    ]
    for key in asked:
        lines += _asked(key)
    optional = [key for key, q in QUESTIONS.items() if not q.needed and key not in said]
    lines += ["# ---- If there is something to say ----", ""]
    for key in optional:
        lines += _asked(key)
    return "\n".join(lines).rstrip() + "\n"


def _asked(key: str) -> list[str]:
    question = QUESTIONS[key]
    asked = [f"# {line}" for line in wrap(question.ask, WIDTH)]
    return [*asked, f"{key}: {'[]' if question.several else ''}".rstrip(), ""]


def _text(value: Any, where: str) -> str:
    if isinstance(value, Mapping | list):
        raise ValueError(f"{where} has parts of its own: allowed is a text")
    return str(value).strip()
