import json
import os
import random
import time
from pathlib import Path

import pytest

from blip2ft.metrics import read_predictions, read_references, score_captions

GOLDEN = Path(
    os.environ.get("BLIP2FT_GOLDEN", Path(__file__).resolve().parents[3] / "shared" / "golden")
)


def test_official_captions_give_the_official_scores():
    folder = GOLDEN / "captions"
    if not folder.is_dir():
        pytest.skip(f"no golden captions in {folder}; set BLIP2FT_GOLDEN")
    predictions = read_predictions(folder / "predictions.jsonl")
    references = read_references(folder / "references.jsonl")
    expected = json.loads((folder / "expected.json").read_text())
    del expected["meteor"]  # in test_java.py
    scores = score_captions(predictions, references, java=False).scores
    assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-4)


def test_all_python_scores_come_under_their_names():
    result = score_captions({1: "a dog", 2: "a cat"}, {2: ["a cat"], 1: ["a dog"]}, java=False)
    names = ["exact_match", "bleu1", "bleu2", "bleu3", "bleu4", "rougeL", "cider"]
    assert list(result.scores) == list(result.per_sample) == names
    assert all(list(values) == [1, 2] for values in result.per_sample.values())
    assert result.unavailable == {}


def test_one_sample_is_scored():
    scores = score_captions({"x": "a dog"}, {"x": ["a dog", "the dog"]}, java=False).scores
    assert scores["exact_match"] == scores["rougeL"] == 1.0
    assert scores["cider"] == 0.0


def test_exact_match_strips_and_is_otherwise_to_the_letter():
    predictions = {1: " a dog ", 2: "A dog", 3: "", 4: "a dog"}
    references = {1: ["x", "a dog\n"], 2: ["a dog"], 3: ["a dog"], 4: ["a dog"]}
    result = score_captions(predictions, references, java=False)
    assert result.scores["exact_match"] == 0.5
    assert result.per_sample["exact_match"] == {1: 1.0, 2: 0.0, 3: 0.0, 4: 1.0}


def test_an_empty_prediction_scores_zero():
    result = score_captions({1: "", 2: "a cat"}, {1: ["a dog"], 2: ["a cat"]}, java=False)
    assert all(abs(values[1]) < 1e-9 for values in result.per_sample.values())


def test_nothing_to_score_is_refused():
    with pytest.raises(ValueError, match="no predictions to score"):
        score_captions({}, {})


def test_a_prediction_without_reference_is_named():
    with pytest.raises(ValueError, match=r"2 \(2, '1'\) of 3 predictions have no reference"):
        score_captions({1: "a", 2: "b", "1": "c"}, {1: ["a"]})


def test_a_reference_without_prediction_is_named():
    references = {i: ["a"] for i in range(10)}
    with pytest.raises(
        ValueError, match=r"9 \(1, 2, 3, 4, 5, \.\.\.\) of 10 references have no pred"
    ):
        score_captions({0: "a"}, references)


def test_an_empty_list_of_references_is_named():
    with pytest.raises(ValueError, match=r"1 \('b'\) of 2 lists of references are empty"):
        score_captions({"a": "x", "b": "y"}, {"a": ["x"], "b": []})


def test_references_that_are_one_string_are_refused():
    with pytest.raises(ValueError, match=r"references of id 1 are one string, 'a dog'.*\[text\]"):
        score_captions({1: "a dog"}, {1: "a dog"})


def test_time_grows_with_the_number_of_images_and_no_faster():
    generator = random.Random(0)
    vocabulary = [f"w{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(500)]

    def seconds(images: int, salt: str) -> float:
        def caption() -> str:
            return " ".join([*generator.choices(vocabulary, k=10), salt])

        references = {i: [caption() for _ in range(5)] for i in range(images)}
        predictions = {i: caption() for i in range(images)}
        start = time.process_time()
        score_captions(predictions, references, java=False)
        return time.process_time() - start

    seconds(20, "warm")
    assert seconds(1600, "big") < 4 * 3 * seconds(400, "small") + 1


def test_ids_that_dont_match_are_shown_from_both_sides():
    with pytest.raises(ValueError, match=r"1 \('photos/a\.jpg'\) .* ids such as 'a\.jpg'"):
        score_captions({"photos/a.jpg": "a"}, {"a.jpg": ["a"]}, java=False)
    with pytest.raises(ValueError, match=r"1 \('b'\) of 2 references .* ids such as 'a'"):
        score_captions({"a": "x"}, {"a": ["x"], "b": ["y"]}, java=False)
