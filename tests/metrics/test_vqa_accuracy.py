"""VQA accuracy against the official tool's numbers and an oracle; GQA and A-OKVQA by hand."""

import random
from itertools import combinations

import evaluate
import pytest
from vqa_golden import OFFICIAL, ROWS

from blip2ft.metrics import module_path
from blip2ft.metrics.vqa_accuracy import (
    answer_accuracy,
    direct_answer_accuracy,
    exact_match,
    multiple_choice,
    vqa_accuracy,
)


def test_sets_equal_the_official_tool():
    predictions, answers, answer_types, question_types, _ = zip(*ROWS, strict=True)
    assert vqa_accuracy(predictions, answers, answer_types, question_types) == OFFICIAL


@pytest.mark.parametrize(("prediction", "answers", "a", "q", "official"), ROWS)
def test_answers_equal_the_official_tool(prediction, answers, a, q, official):
    assert 100 * answer_accuracy(prediction, answers) == pytest.approx(official, abs=1e-9)


@pytest.mark.parametrize("annotators", [2, 5, 10])
def test_equals_the_mean_over_all_sets_without_one_annotator(annotators):
    rng = random.Random(annotators)
    for _ in range(200):
        answers = rng.choices("pqrs", k=annotators)
        sets = list(combinations(answers, annotators - 1))
        oracle = sum(min(1, chosen.count("p") / 3) for chosen in sets) / len(sets)
        assert answer_accuracy("p", answers) == pytest.approx(oracle)


@pytest.mark.parametrize(("agreeing", "accuracy"), [(0, 0), (1, 30), (2, 60), (3, 90), (4, 100)])
def test_the_well_known_steps(agreeing, accuracy):
    answers = ["dog"] * agreeing + ["cat"] * (10 - agreeing)
    assert vqa_accuracy(["dog"], [answers])["overall"] == accuracy


def test_where_annotators_agree_to_the_letter_nothing_is_normalized():
    assert answer_accuracy("Stop", ["STOP"] * 10) == 0
    assert answer_accuracy("STOP ", ["STOP"] * 10) == 1
    assert answer_accuracy("Stop", ["STOP"] * 9 + ["stop"]) == 1


def test_without_types_there_are_no_groups():
    assert vqa_accuracy(["a dog"], [["dog", "Dog"]]) == {
        "overall": 33.33,
        "perAnswerType": {},
        "perQuestionType": {},
    }


def test_is_an_evaluate_module():
    metric = evaluate.load(module_path("vqa_accuracy"))
    predictions, answers, answer_types, question_types, _ = zip(*ROWS, strict=True)
    found = metric.compute(
        predictions=list(predictions),
        references=list(answers),
        answer_types=answer_types,
        question_types=question_types,
    )
    assert found == OFFICIAL
    assert metric.compute(predictions=["dog"], references=[["dog"] * 10])["overall"] == 100


def test_exact_match_ignores_case_and_white_space_around():
    answers = ["yes", "traffic light", "left", "2"]
    assert exact_match(["Yes ", "traffic  light", "left.", "two"], answers) == 25
    assert exact_match(["\nyes", "Traffic Light", "LEFT", "2"], answers) == 100


def test_direct_answers_leave_nobody_out_and_normalize_nothing():
    answers = ["bus"] * 3 + ["car"] * 2 + ["Van"] + ["van"] * 4
    assert direct_answer_accuracy(["bus"], [answers]) == 100
    assert direct_answer_accuracy(["car"], [answers]) == pytest.approx(200 / 3)
    assert direct_answer_accuracy(["Van"], [answers]) == pytest.approx(100 / 3)
    assert direct_answer_accuracy(["bus.", "bus"], [answers] * 2) == 50


def test_multiple_choice_is_the_share_of_right_choices():
    choices = [["a", "b", "c", "d"], ["x", "y"]]
    assert multiple_choice(["b", "x"], choices, [1, 1]) == 50
    assert multiple_choice(["b", "y"], choices, [1, 1]) == 100


@pytest.mark.parametrize(
    ("score", "arguments", "message"),
    [
        (vqa_accuracy, ([], []), "0 predictions and 0 answers"),
        (vqa_accuracy, (["a"], []), "1 predictions and 0 answers"),
        (vqa_accuracy, (["a"], [["a"]]), "question 0 has 1 answers .* exact_match"),
        (vqa_accuracy, (["a"], [["a"] * 3], []), "1 predictions and 0 answer_types"),
        (vqa_accuracy, (["a"], [["a"] * 3], ["x"], ["y", "z"]), "and 2 question_types"),
        (exact_match, (["a"], []), "1 predictions and 0 answers"),
        (direct_answer_accuracy, ([], []), "0 predictions"),
        (multiple_choice, (["a"], [], [0]), "1 predictions and 0 choices"),
        (multiple_choice, (["a"], [["a"]], []), "1 predictions and 0 right"),
        (
            multiple_choice,
            (["A"], [["a", "b"]], [0]),
            r"prediction 0, 'A', is none of .*\['a', 'b'",
        ),
        (multiple_choice, (["a"], [["a", "b"]], [2]), "question 0 is 2, and there are 2"),
        (multiple_choice, (["a"], [["a", "b"]], [-1]), "question 0 is -1"),
    ],
)
def test_bad_input_is_refused(score, arguments, message):
    with pytest.raises(ValueError, match=message):
        score(*arguments)
