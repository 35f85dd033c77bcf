"""Reading the official VQA files, and `blip2ft score vqa` on them."""

import json
import re

import pytest
from vqa_golden import OFFICIAL, ROWS

from blip2ft.cli import main
from blip2ft.metrics.vqa_files import Annotation, read_vqa


def annotation(i, answers=("red", "blue"), **other):
    said = [{"answer": a, "answer_id": n} for n, a in enumerate(answers, 1)]
    types = {"answer_type": "other", "question_type": "what color"}
    return {"question_id": i, "image_id": 9, "answers": said, **types, **other}


@pytest.fixture
def files(tmp_path):
    """Writes the three files of two questions; what is passed replaces one of them."""

    def files(**replaced):
        documents = {
            "questions": {"questions": [{"question_id": i, "question": "?"} for i in (1, 2)]},
            "annotations": {"annotations": [annotation(1), annotation(2)]},
            "predictions": [{"question_id": i, "answer": "red"} for i in (2, 1)],
        } | replaced
        paths = []
        for name, document in documents.items():
            text = document if isinstance(document, str) else json.dumps(document)
            paths.append(tmp_path / f"{name}.json")
            paths[-1].write_text(text, encoding="utf-8")
        return paths

    return files


@pytest.fixture
def score_vqa(capsys):
    def score_vqa(paths, *more):
        options = ("--questions", "--annotations", "--predictions")
        pairs = [str(word) for pair in zip(options, paths, strict=True) for word in pair]
        with pytest.raises(SystemExit) as exit_:
            main(["score", "vqa", *pairs, *more])
        out, err = capsys.readouterr()
        return exit_.value.code or 0, out, err

    return score_vqa


def test_predictions_come_in_the_order_of_annotations(files):
    predictions, annotations, missing = read_vqa(*files())
    assert list(predictions.items()) == [(1, "red"), (2, "red")]
    assert annotations[2] == Annotation(["red", "blue"], "other", "what color")
    assert missing == 0


def test_a_question_needs_no_annotation(files):
    questions = {"questions": [{"question_id": i, "question": "?"} for i in (1, 2, 3)]}
    assert len(read_vqa(*files(questions=questions))[0]) == 2


def test_missing_predictions_are_left_out_where_allowed(files):
    paths = files(predictions=[{"question_id": 2, "answer": ""}])
    predictions, annotations, missing = read_vqa(*paths, allow_missing=True)
    assert (predictions, list(annotations), missing) == ({2: ""}, [2], 1)
    with pytest.raises(ValueError, match=r"predictions\.json: 1 of 2 \(1\) .*--allow-missing"):
        read_vqa(*paths)


QUESTION = {"question_id": 1, "question": "?"}
ANSWER = {"question_id": 1, "answer": "red"}


@pytest.mark.parametrize(
    ("name", "document", "message"),
    [
        ("questions", "{", r"questions\.json:1: not valid JSON"),
        ("questions", [QUESTION], r'questions\.json: expected \{"questions": \['),
        ("questions", {"annotations": []}, r'expected \{"questions": \['),
        ("questions", {"questions": []}, r"questions\.json: is empty"),
        ("questions", {"questions": [QUESTION]}, r"1 of 2 \(2\) annotations have no question in"),
        (
            "questions",
            {"questions": [{"question_id": 1}]},
            r"entry 1 \(question_id 1\): no key 'que",
        ),
        (
            "annotations",
            {"annotations": [3]},
            r"annotations\.json: entry 1: 3 is not a JSON object",
        ),
        ("annotations", {"annotations": [{}]}, r"entry 1: no key 'question_id'; keys are \[\]"),
        ("annotations", {"annotations": [annotation(True)]}, r"'question_id' is true"),
        ("annotations", {"annotations": [annotation(1), annotation(1)]}, r"entry 2: .* entry 1"),
        ("annotations", {"annotations": [annotation(1, ["a"])]}, r"question_id 1\): 1 answers"),
        (
            "annotations",
            {"annotations": [annotation(1, answers=[1, 2])]},
            r"answer 1: 'answer' is 1",
        ),
        ("annotations", {"annotations": [{"question_id": 1}]}, r"\): 'answers' is null"),
        (
            "annotations",
            {"annotations": [annotation(1) | {"answers": ["red", "blue"]}]},
            r"'answers' is \[\"red\", \"blue\"\]\. It must be a list of objects",
        ),
        ("annotations", {"annotations": [annotation(1, answer_type=2)]}, r"'answer_type' is 2"),
        ("predictions", {"1": "red"}, r"predictions\.json: expected \[\{"),
        ("predictions", [], r"predictions\.json: is empty"),
        ("predictions", [ANSWER, ANSWER], r"entry 2: question_id 1 is already at entry 1"),
        ("predictions", [{"question_id": 1}], r"question_id 1\): no key 'answer'"),
        ("predictions", [ANSWER | {"answer": 2}], r"question_id 1\): 'answer' is 2"),
        ("predictions", [ANSWER | {"answer": None}], r"'answer' is null\. It must be a string"),
        ("predictions", [ANSWER | {"question_id": "1"}], r"1 of 1 \('1'\) .*1 is not '1'"),
        (
            "predictions",
            [{"question_id": i, "answer": ""} for i in range(1, 10)],
            r"7 of 9 \(3, 4, 5, 6, 7, \.\.\.\) predictions answer questions without annotation",
        ),
    ],
)
def test_what_is_wrong_is_named_with_file_and_id(files, score_vqa, name, document, message):
    paths = files(**{name: document})
    with pytest.raises(ValueError, match=message):
        read_vqa(*paths)
    status, out, err = score_vqa(paths)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert re.search(message, err)


def test_text_that_is_no_utf8_is_refused(files):
    paths = files()
    paths[2].write_bytes(b'[{"question_id": 1, "answer": "\xff"}]')
    with pytest.raises(ValueError, match=r"predictions\.json: not UTF-8 text"):
        read_vqa(*paths)


def test_a_missing_file_is_named(files, score_vqa):
    questions, annotations, predictions = files()
    status, _, err = score_vqa((questions, annotations, predictions.with_name("gone.json")))
    assert status == 2
    assert "gone.json" in err


def test_the_command_prints_what_the_official_tool_gives(files, score_vqa):
    paths = files(
        questions={"questions": [QUESTION | {"question_id": i} for i in range(len(ROWS))]},
        annotations={
            "annotations": [
                annotation(i, answers, answer_type=answer_type, question_type=question_type)
                for i, (_, answers, answer_type, question_type, _) in enumerate(ROWS)
            ]
        },
        predictions=[{"question_id": i, "answer": row[0]} for i, row in enumerate(ROWS)],
    )
    status, out, err = score_vqa(paths)
    assert (status, err, out.count("\n")) == (0, "", 1)
    assert json.loads(out) == OFFICIAL


def test_the_command_says_how_many_it_left_out(files, score_vqa):
    paths = files(predictions=[{"question_id": 2, "answer": "Red"}])
    status, out, err = score_vqa(paths, "--allow-missing")
    assert status == 0
    assert json.loads(out)["overall"] == 16.67
    assert err == "1 annotated question without a prediction, not scored\n"


def test_options_of_the_task_are_known_to_its_errors(files, score_vqa):
    status, _, err = score_vqa(files(), "--alow-missing")
    assert status == 2
    assert "did you mean --allow-missing?" in err
    assert "score vqa --help" in err


@pytest.mark.parametrize("line", [("score", "--debug", "vqa"), ("score", "vqa", "--debug")])
def test_debug_shows_the_traceback_before_and_after_the_task(files, capsys, line):
    paths = [str(path) for path in files(predictions=[])]
    options = ("--questions", paths[0], "--annotations", paths[1], "--predictions", paths[2])
    with pytest.raises(SystemExit):
        main([*line, *options])
    assert capsys.readouterr().err.startswith("Traceback")
