"""Three questions about each scene, with ten answers as ten people would give them.

`make_scenes.py` writes them beside the scenes. Each scene is asked

    yes or no    Is there a rose? Is the rose to the left of the key? Is it smaller? Half are yes.
    what, where  What is above the key? What is between the key and the rose? What is shown here?
    a detail     How many things? What color is the background? Which one is larger?

A question that names a thing and is answered with another, or names two, holds a pair that was in
the scene: where pairs are held out, no training question comes with that answer.

Of ten people most say the same; up to three use other words for it, and at times one is mistaken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Things = Mapping[str, Mapping[str, str]]  # things.json by name

PEOPLE = 10
OTHER_WORDS = 4  # people who may use other words are fewer than this
MISTAKEN = (0.75, 0.2, 0.05)  # how often nobody, one or two of ten are mistaken
COUNTED = {1: 0.4, 2: 0.15, 3: 1.0}  # how often things are counted, so that 1, 2, 3 are as common

SIDES = {"left of": ("to the left of", "to the right of"), "above": ("above", "below")}
ENDS = {"left of": ("on the left", "on the right"), "above": ("at the top", "at the bottom")}
OPPOSITES = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
MISTAKEN_FOR = {
    "white": "gray",
    "gray": "white",
    "pink": "purple",
    "yellow": "orange",
    "orange": "yellow",
    "green": "blue",
    "blue": "purple",
    "purple": "pink",
}
NUMBERS = {"1": "one", "2": "two", "3": "three", "4": "four"}

SYNONYMS = {
    "dog face": "dog",
    "cat face": "cat",
    "frog face": "frog",
    "pig face": "pig",
    "panda face": "panda",
    "turtle": "tortoise",
    "honeybee": "bee",
    "lady beetle": "ladybug",
    "red apple": "apple",
    "slice of pizza": "pizza",
    "hamburger": "burger",
    "doughnut": "donut",
    "birthday cake": "cake",
    "automobile": "car",
    "bicycle": "bike",
    "rocket": "spaceship",
    "sailboat": "boat",
    "steam locomotive": "train",
    "airplane": "plane",
    "wrapped present": "gift",
    "soccer ball": "ball",
    "alarm clock": "clock",
    "open book": "book",
    "top hat": "hat",
    "rose": "flower",
    "tulip": "flower",
    "evergreen tree": "tree",
    "palm tree": "palm",
    "maple leaf": "leaf",
    "gray": "grey",
    "purple": "violet",
    "in the middle": "center",
}


class Asked(NamedTuple):
    """A question, the right answer, and what others say: in other words, or wrongly."""

    question: str
    answer: str
    kind: str  # yes/no, number or other
    others: Sequence[str]
    mistakes: Sequence[str]


def ask(
    scene: Mapping[str, Any], things: Things, yes: bool, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """The questions about a scene, given its fields but for the image; `yes` answers the first.

    Returns question, answers, answer_type, and as question_type the first two words.
    """
    asked = [
        ask_yes_no(scene, things, yes, rng),
        ask_what(scene, things, rng),
        ask_detail(scene, things, rng),
    ]
    return [
        {
            "question": one.question,
            "answers": answers_of_people(one, rng),
            "answer_type": one.kind,
            "question_type": " ".join(one.question.lower().split()[:2]),
        }
        for one in asked
    ]


def pick(options: Sequence[Any], rng: np.random.Generator) -> Any:
    return options[int(rng.integers(len(options)))]


# Yes or no


def ask_yes_no(
    scene: Mapping[str, Any], things: Things, yes: bool, rng: np.random.Generator
) -> Asked:
    """Whether a thing is there, or whether two things stand to each other in a certain way."""
    forms = [is_there]
    if len(scene["things"]) == 2:
        forms = [is_there, is_beside, is_larger if scene["larger"] else is_there]
    question = pick(forms, rng)(scene, things, yes, rng)
    answer, other = ("yes", "no") if yes else ("no", "yes")
    return Asked(question, answer, "yes/no", (), (other,))


def is_there(scene: Mapping[str, Any], things: Things, yes: bool, rng: np.random.Generator) -> str:
    """A thing of the scene, or one of the same group that isn't in it."""
    name = pick(scene["things"], rng)
    if not yes:
        name = pick([other for other in alike(name, things) if other not in scene["things"]], rng)
    thing = f"{things[name]['article']} {name}"
    forms = (
        f"Is there {thing}?",
        f"Is there {thing} in the picture?",
        f"Do you see {thing}?",
        f"Does the picture show {thing}?",
    )
    return pick(forms, rng)


def is_beside(scene: Mapping[str, Any], things: Things, yes: bool, rng: np.random.Generator) -> str:
    first = int(rng.integers(2))
    side = SIDES[scene["relation"]][first if yes else 1 - first]
    one, other = scene["things"][first], scene["things"][1 - first]
    return f"{pick(('Is', 'Can you see'), rng)} the {one} {side} the {other}?"


def is_larger(scene: Mapping[str, Any], things: Things, yes: bool, rng: np.random.Generator) -> str:
    first = int(rng.integers(2))
    one, other = scene["things"][first], scene["things"][1 - first]
    words = ("larger", "bigger") if (one == scene["larger"]) == yes else ("smaller",)
    return f"Is the {one} {pick(words, rng)} than the {other}?"


# What and where


def ask_what(scene: Mapping[str, Any], things: Things, rng: np.random.Generator) -> Asked:
    """Which thing is at a place, or where a single thing is."""
    names = scene["things"]
    if len(names) == 1:
        return ask_of_one(scene, things, rng)
    if len(names) == 3:
        one, other = names[0::2] if rng.random() < 0.5 else names[2::-2]
        question = f"{pick(('What', 'Which thing'), rng)} is between the {one} and the {other}?"
        return ask_thing(question, names[1], names, things)
    first = int(rng.integers(2))
    side, end = SIDES[scene["relation"]][first], ENDS[scene["relation"]][first]
    other = names[1 - first]
    forms = (
        f"What is {side} the {other}?",
        f"What can you see {side} the {other}?",
        f"Which thing is {side} the {other}?",
        f"What is {end}?",
    )
    return ask_thing(pick(forms, rng), names[first], names, things)


def ask_of_one(scene: Mapping[str, Any], things: Things, rng: np.random.Generator) -> Asked:
    name = scene["things"][0]
    where = find_place(scene, things)
    if where is None or rng.random() < 0.5:
        forms = ("What is this?", "What is in the picture?", "What is shown here?")
        return ask_thing(pick(forms, rng), name, [name], things)
    return ask_place(name, where, rng)


def find_place(scene: Mapping[str, Any], things: Things) -> str | None:
    """Where a single thing is, as the last of its captions says; None when that is in doubt."""
    name = scene["things"][0]
    last = scene["captions"][-1].removeprefix(f"{things[name]['article']} {name} ")
    return last if len(scene["captions"]) == 5 else None


def ask_thing(question: str, name: str, there: Sequence[str], things: Things) -> Asked:
    others = [f"{things[name]['article']} {name}", f"the {name}", SYNONYMS.get(name, name)]
    wrong = [other for other in alike(name, things) if other not in there]
    return Asked(question, name, "other", others, wrong)


def ask_place(name: str, where: str, rng: np.random.Generator) -> Asked:
    question = pick((f"Where is the {name}?", f"Where in the picture is the {name}?"), rng)
    mirrored = " ".join(OPPOSITES.get(word, word) for word in where.split())
    wrong = "at the top" if mirrored == where else mirrored
    short = where.removeprefix("in the ").removeprefix("on the ").removeprefix("at the ")
    return Asked(question, where, "other", (short, SYNONYMS.get(where, short)), (wrong,))


def alike(name: str, things: Things) -> list[str]:
    """The other things of the same group."""
    group = things[name]["group"]
    return [other for other in things if other != name and things[other]["group"] == group]


# Details


def ask_detail(scene: Mapping[str, Any], things: Things, rng: np.random.Generator) -> Asked:
    """The number of things, the colour of the ground, the place of one thing, or the larger one."""
    names = scene["things"]
    if rng.random() < COUNTED[len(names)]:
        return ask_number(len(names), rng)
    forms = [ask_colour]
    if len(names) == 2:
        forms = [ask_colour, ask_end, ask_larger if scene["larger"] else ask_colour]
    return pick(forms, rng)(scene, things, rng)


def ask_number(number: int, rng: np.random.Generator) -> Asked:
    forms = (
        "How many things are there?",
        "How many things are in the picture?",
        "How many things can you see?",
    )
    answer = str(number)
    wrong = [str(other) for other in (number - 1, number + 1) if other > 0]
    return Asked(pick(forms, rng), answer, "number", (NUMBERS[answer],), wrong)


def ask_colour(scene: Mapping[str, Any], things: Things, rng: np.random.Generator) -> Asked:
    forms = (
        "What color is the background?",
        "What is the color of the background?",
        "Which color does the background have?",
    )
    colour = scene["background"]
    others = (SYNONYMS.get(colour, f"light {colour}"),)
    return Asked(pick(forms, rng), colour, "other", others, (MISTAKEN_FOR[colour],))


def ask_end(scene: Mapping[str, Any], things: Things, rng: np.random.Generator) -> Asked:
    first = int(rng.integers(2))
    return ask_place(scene["things"][first], ENDS[scene["relation"]][first], rng)


def ask_larger(scene: Mapping[str, Any], things: Things, rng: np.random.Generator) -> Asked:
    first = int(rng.integers(2))
    one, other = scene["things"][first], scene["things"][1 - first]
    smaller = one if other == scene["larger"] else other
    if rng.random() < 0.5:
        question, answer = pick(("larger", "bigger"), rng), scene["larger"]
    else:
        question, answer = "smaller", smaller
    asked = ask_thing(f"Which is {question}, the {one} or the {other}?", answer, (), things)
    return asked._replace(mistakes=(one if answer == other else other,))


# Ten people


def answers_of_people(asked: Asked, rng: np.random.Generator) -> list[str]:
    """Ten answers in any order, at least five of them the right one in the same words."""
    mistaken = int(rng.choice(len(MISTAKEN), p=MISTAKEN))
    others = int(rng.integers(OTHER_WORDS)) if asked.others else 0
    answers = [pick(asked.mistakes, rng) for _ in range(mistaken)]
    answers += [pick(asked.others, rng) for _ in range(others)]
    answers += [asked.answer] * (PEOPLE - len(answers))
    return [answers[i] for i in rng.permutation(PEOPLE)]
