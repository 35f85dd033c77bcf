"""Accuracy of answers: VQAv2 and OK-VQA, GQA, A-OKVQA. Scores of a set are percentages.

VQA accuracy: Antol et al. 2015 (arXiv 1505.00468), averaged over the sets of all annotators but one
as on https://visualqa.org/evaluation; details follow the official GT-Vision-Lab/VQA at a013f00,
PythonEvaluationTools/vqaEvaluation/vqaEval.py. LAVIS (common/vqa_tools/vqa_eval.py) holds an older
version and gives other scores: it normalizes every prediction, but only the punctuation of
annotators' answers, so that their "two" is never matched, and ten times "yes" matches "yes.".
"""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from blip2ft.metrics.vqa_normalize import normalize, trim

ENOUGH_ANNOTATORS = 3

DESCRIPTION = "VQA accuracy, overall and by type of answer and question, as the official tool."
INPUTS = """
Args:
    predictions: an answer to each question.
    references: for each question the annotators' answers.
    answer_types: of each question, such as "yes/no".
    question_types: of each question, such as "how many".
Returns:
    {"overall", "perAnswerType", "perQuestionType"}, percentages with two digits.
"""


def answer_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """How right an answer is, 0 to 1: a third for each annotator that agrees, but at most 1.

    This is averaged over all sets that leave one annotator out. Where annotators agree to the
    letter nothing is normalized, so that "Yes" or "yes." isn't "yes": the official tool means to
    keep text that is read off an image (GT-Vision-Lab/VQA, issue 14).

    With answers that carry no id the official tool leaves out all that are equal; here it is
    always one annotator.
    """
    prediction, answers = trim(prediction), [trim(answer) for answer in answers]
    if len(set(answers)) > 1:
        prediction, answers = normalize(prediction), [normalize(answer) for answer in answers]
    agrees = [answer == prediction for answer in answers]
    # the order of the sum is the official one: rounding gives the same digits
    return sum(min(1.0, (sum(agrees) - own) / ENOUGH_ANNOTATORS) for own in agrees) / len(answers)


def vqa_accuracy(
    predictions: Sequence[str],
    answers: Sequence[Sequence[str]],
    answer_types: Sequence[str] | None = None,
    question_types: Sequence[str] | None = None,
) -> dict[str, Any]:
    """VQA accuracy overall and by type, with the official tool's names, rounded to two digits.

    Args:
        predictions: The answer to each question; "" is legal.
        answers: The answers of each question's annotators, ten in VQAv2 and OK-VQA.
        answer_types: The type of each question's answer; without it `perAnswerType` is empty.
        question_types: The type of each question; likewise.

    Raises:
        ValueError: Lists of different length, no questions, or one with fewer than two annotators:
            with one of them left out nobody is there to agree.
    """
    named = {"answers": answers, "answer_types": answer_types, "question_types": question_types}
    for name, values in named.items():
        if values is not None:
            _check_lengths(predictions, values, name)
    for number, of_question in enumerate(answers):
        if len(of_question) < 2:
            raise ValueError(
                f"question {number} has {len(of_question)} answers and VQA accuracy needs at least "
                "2 (one is left out in turn). Score single answers with exact_match."
            )
    scores = [answer_accuracy(p, a) for p, a in zip(predictions, answers, strict=True)]
    return {
        "overall": _rounded(scores),
        "perAnswerType": _by_type(scores, answer_types),
        "perQuestionType": _by_type(scores, question_types),
    }


def _rounded(scores: Sequence[float]) -> float:
    return round(100 * sum(scores) / len(scores), 2)


def _by_type(scores: Sequence[float], types: Sequence[str] | None) -> dict[str, float]:
    groups: dict[str, list[float]] = {}
    for score, kind in zip(scores, types or (), strict=types is not None):
        groups.setdefault(kind, []).append(score)
    return {kind: _rounded(of_kind) for kind, of_kind in groups.items()}


def exact_match(predictions: Sequence[str], answers: Sequence[str]) -> float:
    """Predictions that are the answer but for case and white space around; GQA's accuracy.

    GQA's eval.py compares strings as they are; its answers are lower case and trimmed, and a
    model's needn't be. LAVIS (tasks/vqa.py) passes predictions through VQA's rules first.
    Raises ValueError where lengths differ and for no questions.
    """
    _check_lengths(predictions, answers, "answers")
    pairs = zip(predictions, answers, strict=True)
    right = [one.strip().lower() == other.strip().lower() for one, other in pairs]
    return 100 * sum(right) / len(right)


def direct_answer_accuracy(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> float:
    """A-OKVQA's direct answers: a third for each of the ten answers that is met, but at most 1.

    Source: allenai/aokvqa, evaluation/eval_predictions.py. It leaves nobody out, compares strings
    as they are, and skips questions marked `difficult_direct_answer`: pass only the others.
    Raises ValueError where lengths differ and for no questions.
    """
    _check_lengths(predictions, answers, "answers")
    pairs = zip(predictions, answers, strict=True)
    scores = [min(1.0, list(met).count(own) / ENOUGH_ANNOTATORS) for own, met in pairs]
    return 100 * sum(scores) / len(scores)


def multiple_choice(
    predictions: Sequence[str], choices: Sequence[Sequence[str]], right: Sequence[int]
) -> float:
    """A-OKVQA's multiple choice: predictions that are `choices[right]`, to the letter.

    Source: allenai/aokvqa, evaluation/eval_predictions.py. Raises ValueError for a prediction that
    is none of its choices, as the source does unless told not to be strict; for an index outside
    them; where lengths differ; for no questions.
    """
    _check_lengths(predictions, choices, "choices")
    _check_lengths(predictions, right, "right")
    hits = 0
    for number, (own, offered, index) in enumerate(zip(predictions, choices, right, strict=True)):
        if own not in offered:
            raise ValueError(
                f"prediction {number}, {own!r}, is none of its choices {list(offered)}. Map it to "
                "the nearest one first, or score it with direct_answer_accuracy."
            )
        if not 0 <= index < len(offered):
            raise ValueError(
                f"the right choice of question {number} is {index}, and there are "
                f"{len(offered)}; it counts from 0"
            )
        hits += own == offered[index]
    return 100 * hits / len(predictions)


def _check_lengths(predictions: Sequence[str], others: Sequence[Any], name: str) -> None:
    if len(predictions) != len(others) or not len(predictions):
        raise ValueError(
            f"each question needs a prediction and its {name}, and there must be one question: "
            f"there are {len(predictions)} predictions and {len(others)} {name}"
        )


class VqaAccuracy(evaluate.Metric):
    """`evaluate.load(module_path("vqa_accuracy"))`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="Antol et al. 2015",
            inputs_description=INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": datasets.Sequence(datasets.Value("string")),
                }
            ),
        )

    def _compute(
        self,
        predictions: list[str],
        references: list[list[str]],
        answer_types: Sequence[str] | None = None,
        question_types: Sequence[str] | None = None,
    ) -> dict[str, Any]:
        return vqa_accuracy(predictions, references, answer_types, question_types)
