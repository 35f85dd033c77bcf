"""Each question is answered here anew, from the boxes of the scene, and compared."""

import re
from collections import Counter, defaultdict
from typing import Any

import make_scenes
import numpy as np
import pytest
import scene_layout
import scene_pictures
import scene_things
from scene_questions import ENDS, MISTAKEN_FOR, SIDES, SYNONYMS, ask

THINGS = scene_things.load_things()
NAME = "|".join(sorted(THINGS, key=len, reverse=True))
SIDE = "|".join(side for sides in SIDES.values() for side in sides)


def scenes(split: str, count: int) -> list[dict[str, Any]]:
    rows = make_scenes.compose_split("noto", split, count, seed=3)
    return [{name: row[name] for name in row if name != "image"} for row in rows]


def asked(split: str, count: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Scene and question."""
    return [
        (scene, question)
        for number, scene in enumerate(scenes(split, count))
        for question in ask(scene, THINGS, number % 2 == 0, np.random.default_rng([7, number]))
    ]


@pytest.fixture(scope="module")
def train() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return asked("train", 600)


def answer_of(question: dict[str, Any]) -> str:
    return Counter(question["answers"]).most_common(1)[0][0]


def beside(scene: dict[str, Any], name: str, side: str, other: str) -> bool:
    axis = 0 if "left" in side or "right" in side else 1
    one, two = (scene["boxes"][scene["things"].index(n)][axis] for n in (name, other))
    return one < two if side in ("to the left of", "above") else one > two


def is_larger(scene: dict[str, Any], name: str) -> bool:
    sides = [max(x1 - x0, y1 - y0) for x0, y0, x1, y1 in scene["boxes"]]
    return scene["things"][sides.index(max(sides))] == name


def is_at(scene: dict[str, Any], name: str, place: str) -> bool:
    x0, y0, x1, y1 = scene["boxes"][scene["things"].index(name)]
    ends = {"left": (x0 + x1) / 2, "top": (y0 + y1) / 2}
    ends |= {"right": 128 - ends["left"], "bottom": 128 - ends["top"]}
    named = [end for end in ends if end in place.split()]
    if place == "in the middle":
        return all(0.4 * 128 < position < 0.6 * 128 for position in ends.values())
    return bool(named) and all(ends[end] < 64 for end in named)


def is_right(scene: dict[str, Any], question: str, answer: str) -> bool:
    """Whether the answer is what the boxes and fields say."""
    things = scene["things"]
    if "How many" in question:
        return answer == str(len(things))
    if "color" in question:
        return answer == scene["background"]
    if found := re.search(rf"(?:there|see|show) an? ({NAME})( in the picture)?\?$", question):
        return (found[1] in things) == (answer == "yes")
    if found := re.search(rf"^(?:Is|Can you see) the ({NAME}) ({SIDE}) the ({NAME})\?$", question):
        return beside(scene, *found.groups()) == (answer == "yes")
    if found := re.search(rf"^Is the ({NAME}) (\w+) than the ({NAME})\?$", question):
        larger = found[1] if found[2] in ("larger", "bigger") else found[3]
        return is_larger(scene, larger) == (answer == "yes")
    if found := re.search(rf"^Which is (\w+), the ({NAME}) or the ({NAME})\?$", question):
        other = found[3] if answer == found[2] else found[2]
        return is_larger(scene, answer if found[1] in ("larger", "bigger") else other)
    if found := re.search(rf" between the ({NAME}) and the ({NAME})\?$", question):
        return {*found.groups(), answer} == set(things) and answer == things[1]
    if found := re.search(rf"^(?:What|Which).* ({SIDE}) the ({NAME})\?$", question):
        return beside(scene, answer, found[1], found[2])
    if found := re.search(rf"^Where.* is the ({NAME})\?$", question):
        return is_at(scene, found[1], answer)
    if found := re.search(r"^What is ((?:on|at) the \w+)\?$", question):
        return is_at(scene, answer, found[1])
    return len(things) == 1 and answer == things[0] and question.startswith("What is")


def test_the_commonest_answer_is_the_right_one(train) -> None:
    for scene, question in train:
        assert is_right(scene, question["question"], answer_of(question)), (scene, question)


def test_wrong_answers_would_be_noticed(train) -> None:
    wrong = {"yes": "no", "no": "yes"}
    for scene, question in train:
        answer = wrong.get(answer_of(question), "unicorn")
        if "Where" not in question["question"] and answer != "unicorn":
            assert not is_right(scene, question["question"], answer), (scene, question)


def test_ten_people_mostly_agree(train) -> None:
    for _, question in train:
        counts = Counter(question["answers"])
        assert counts.total() == 10
        assert counts.most_common(1)[0][1] >= 5
        assert all(answer == answer.strip() != "" for answer in counts)
    common = [Counter(q["answers"]).most_common(1)[0][1] for _, q in train]
    assert 8 < sum(common) / len(common) < 9.5
    assert {answer for _, q in train for answer in q["answers"]} & {"two", "grey", "dog", "a fish"}


def test_half_of_the_things_asked_for_are_there(train) -> None:
    said: dict[str, Counter] = defaultdict(Counter)
    for _, question in train:
        if question["answer_type"] == "yes/no":
            said[question["question_type"]][answer_of(question)] += 1
            said["all"][answer_of(question)] += 1
    assert said["all"]["yes"] == said["all"]["no"] == 300
    assert all(0.3 < counts["yes"] / counts.total() < 0.7 for counts in said.values())


def test_what_is_absent_is_of_the_group_of_a_thing_there(train) -> None:
    for scene, question in train:
        found = re.search(rf"(?:there|see|show) an? ({NAME})( in the picture)?\?$",
                          question["question"])  # fmt: skip
        if found and found[1] not in scene["things"]:
            groups = {THINGS[name]["group"] for name in scene["things"]}
            assert THINGS[found[1]]["group"] in groups


def test_numbers_are_asked_as_often_of_each(train) -> None:
    numbers = Counter(answer_of(q) for _, q in train if q["answer_type"] == "number")
    assert set(numbers) == {"1", "2", "3"}
    assert max(numbers.values()) < 2.5 * min(numbers.values())


def test_kinds_and_first_words_are_told(train) -> None:
    for _, question in train:
        assert question["question"].lower().startswith(question["question_type"] + " ")
        kind = {"yes": "yes/no", "no": "yes/no", "1": "number", "2": "number", "3": "number"}
        assert question["answer_type"] == kind.get(answer_of(question), "other")
    assert {question["answer_type"] for _, question in train} == {"yes/no", "number", "other"}
    assert len({question["question_type"] for _, question in train}) > 8


@pytest.mark.slow
@pytest.mark.parametrize("split", ["validation", "test"])
def test_no_training_question_has_the_answer_where_pairs_are_held_out(split, train) -> None:
    def pairs(rows):
        """Question and answer where these name more than one thing."""
        for scene, question in rows:
            text = f"{question['question']} {answer_of(question)}"
            named = [name for name in scene["things"] if name in text]
            if len(named) > 1:
                yield question["question"], answer_of(question), *named

    seen = {row[:2] for row in pairs(asked("train", 3000))}
    held_out = list(pairs(asked(split, 300)))
    assert len(held_out) > 200
    assert not [row for row in held_out if row[:2] in seen]
    assert all(split in scene_things.splits_of(list(row[2:])) for row in held_out)


def test_synonyms_are_of_things_colours_and_places() -> None:
    places = {place for row in scene_layout.PLACES for place in row}
    assert set(SYNONYMS) <= {*THINGS, *scene_pictures.COLOURS, *places}
    assert set(MISTAKEN_FOR) == set(scene_pictures.COLOURS)
    assert {end for ends in ENDS.values() for end in ends} <= places
    assert not set(SYNONYMS.values()) & set(THINGS)
