"""Questions: prompts, training samples, scores."""

from collections import Counter

import pytest
import torch

from blip2ft.data.batches import text_layout
from blip2ft.data.broken import Broken
from blip2ft.data.images import transforms_for
from blip2ft.data.order import Key
from blip2ft.data.questions import Question
from blip2ft.models.load import load_captioner
from blip2ft.tasks.caption import caption_loss, count_labels
from blip2ft.tasks.vqa import answer, answer_samples, ask, commonest_answers, score


def question(photo, answers, number=0, **fields) -> Question:
    return Question(photo, "photo", number, "photo of a cat", tuple(answers), "here:1", **fields)


@pytest.fixture
def setting(opt_folder, photo_folder):
    model, processor = load_captioner(opt_folder)
    augment, resize = transforms_for(processor.image_processor)
    return model, text_layout(model, processor, 8), augment, resize, photo_folder / "photo1.jpg"


def test_a_question_becomes_a_prompt():
    assert ask("Question: {} Answer:", " what is\n it? ") == "Question: what is it? Answer:"
    assert ask("{}", "{0} and {name}?") == "{0} and {name}?"
    with pytest.raises(ValueError, match="an empty question can't be asked"):
        ask("Question: {} Answer:", "  ")
    for template in ("Answer:", "{} {}"):
        with pytest.raises(ValueError, match=r"must have exactly one \{\}"):
            ask(template, "what?")


def test_answers_are_drawn_as_often_as_people_gave_them(setting):
    *_, augment, _, photo = setting
    asked = question(photo, ["cat"] * 6 + ["dog"] * 3 + [""])
    samples = answer_samples([asked], augment, "the {}", seed=1)
    assert len(samples) == 1
    drawn = Counter(samples[Key(epoch, 0)].target for epoch in range(200))
    assert drawn.keys() == {"cat", "dog"}
    assert drawn["cat"] == pytest.approx(200 * 6 / 9, abs=30)
    again = [samples[Key(epoch, 0)].target for epoch in range(9)]
    assert again == [samples[Key(epoch, 0)].target for epoch in range(9)]


def test_a_question_on_a_broken_image_is_left_out_where_that_is_asked(setting, tmp_path):
    *_, augment, _, _ = setting
    asked = question(tmp_path / "gone.jpg", ["cat"])
    with pytest.raises(ValueError, match=r"gone\.jpg.*: no such image file"):
        answer_samples([asked], augment, "the {}", seed=1)[Key(0, 0)]
    samples = answer_samples([asked], augment, "the {}", seed=1, skip=True)
    broken = samples[Key(0, 0)]
    assert isinstance(broken, Broken)
    assert broken.origin == asked.origin
    assert "no such image file" in broken.reason
    assert samples.origin(Key(0, 0)) == f"{asked.question_id} ({asked.origin})"


def test_all_answers_are_weighed_by_their_share(setting):
    model, layout, augment, _, photo = setting
    asked = question(photo, ["cat", "cat", "cat", "a dog"])
    samples = answer_samples([asked], augment, "the {}", seed=1, answers="all")
    two = [samples[Key(0, i)] for i in range(2)]
    assert [(s.target, s.weight) for s in two] == [("cat", 0.75), ("a dog", 0.25)]
    batch = layout.collate(two)
    with torch.no_grad():
        parts = [layout.collate([sample]) for sample in two]
        each = [float(caption_loss(model, {**part, "weights": torch.ones(1)})) for part in parts]
        assert float(caption_loss(model, batch)) == pytest.approx(
            0.75 * each[0] + 0.25 * each[1], rel=1e-4
        )
    lengths = [(part["labels"] != -100).sum().item() for part in parts]
    assert count_labels(batch) == pytest.approx(0.75 * lengths[0] + 0.25 * lengths[1])
    with pytest.raises(ValueError, match="answers is 'some': allowed are sample, all"):
        answer_samples([asked], augment, "the {}", seed=1, answers="some")


def test_choices_are_answered_by_one_of_them(setting):
    model, layout, _, resize, photo = setting
    choices = ("a cat", "the bird", "blue")
    asked = [
        question(photo, ["a cat"], choices=choices, correct_choice=0),
        question(photo, ["blue"]),
    ]
    options = {"template": "the {} of", "num_beams": 1, "max_new_tokens": 3}
    answers = answer(model, layout, resize, asked, **options)
    assert answers[0] in choices
    given = answer(model, layout, resize, asked, candidates=["red", "car"], **options)
    assert given[0] == answers[0]
    assert given[1] in ("red", "car")


def test_scores_follow_what_is_known(setting):
    photo = setting[-1]
    ten = question(photo, ["yes"] * 8 + ["no"] * 2, answer_type="yes/no")
    other = question(photo, ["red"] * 10, answer_type="other")
    found = score([ten, other], ["no", "red"])
    # of ten, two said no: 8 subsets have both of them, two have one
    assert found["accuracy_yes/no"] == pytest.approx(100 * (8 * 2 / 3 + 2 * 1 / 3) / 10, abs=0.01)
    assert found["accuracy_other"] == 100
    assert score([question(photo, ["Cat"])], ["cat "]) == {"accuracy": 100}
    chosen = question(photo, ["a"], choices=("a", "b"), correct_choice=0)
    assert score([chosen, chosen], ["a", "b"]) == {"accuracy": 50}
    assert score([question(photo, [])], ["cat"]) == {}


def test_the_commonest_answer_of_each_type(setting):
    photo = setting[-1]
    train = [
        question(photo, ["yes", "yes", "no"], answer_type="yes/no"),
        question(photo, ["red", "blue", "blue"], answer_type="other"),
    ]
    asked = [question(photo, ["?"], answer_type=kind) for kind in ("other", "yes/no", "number")]
    assert commonest_answers(train, asked)[:2] == ["blue", "yes"]
    assert commonest_answers(train, asked)[2] in ("yes", "blue")
