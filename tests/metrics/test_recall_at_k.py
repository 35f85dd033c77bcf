"""Recall at K against a naive oracle, with ties, several right answers, and K beyond the set."""

import evaluate
import numpy as np
import pytest

from blip2ft.metrics import module_path
from blip2ft.metrics.recall_at_k import recall_at_k


def oracle(candidates, scores, right, k) -> float:
    found = 0
    for ids, values, wanted in zip(candidates, scores, right, strict=True):
        # wrong ones first among equals
        pairs = sorted(zip(ids, values, strict=True), key=lambda p: (-p[1], p[0] in wanted))
        found += any(i in wanted for i, _ in pairs[:k])
    return found / len(right)


@pytest.mark.parametrize("levels", [3, 1000])
def test_equals_the_oracle(levels):
    rng = np.random.default_rng(levels)
    candidates = [rng.permutation(30)[:12] for _ in range(200)]
    scores = [rng.integers(levels, size=12) / levels for _ in candidates]
    right = [rng.choice(30, rng.integers(1, 6), replace=False).tolist() for _ in candidates]
    for k in (1, 2, 5, 12, 50):
        assert recall_at_k(candidates, scores, right, [k])[k] == oracle(
            candidates, scores, right, k
        )


def test_a_model_that_scores_all_alike_finds_nothing():
    same = recall_at_k([np.arange(10)] * 4, [np.zeros(10)] * 4, [[0], [3], [5], [9]])
    assert same == {1: 0.0, 5: 0.0, 10: 1.0}


def test_what_is_no_candidate_is_not_found():
    assert recall_at_k([np.array([1, 2])], [np.array([2.0, 1.0])], [[7]], [10]) == {10: 0.0}


def test_is_an_evaluate_module():
    metric = evaluate.load(module_path("recall_at_k"))
    predictions = [{"candidates": [4, 2, 9], "scores": [0.1, 0.9, 0.5]}] * 2
    found = metric.compute(predictions=predictions, references=[[9, 4], [2]], k=[1, 2])
    assert found == {"recall_at_1": 0.5, "recall_at_2": 1.0}


@pytest.mark.parametrize(
    ("candidates", "scores", "right", "ks", "message"),
    [
        ([[1]], [[1.0]], [], (1,), "there are 1, 1 and 0"),
        ([[1]], [[1.0]], [[]], (1,), "query 0 has no right answer"),
        ([[1, 2]], [[1.0]], [[1]], (1,), "query 0 has 2 candidates and 1 scores"),
        ([[1]], [[float("nan")]], [[1]], (1,), "query 0 has a score that isn't a number"),
        ([[1]], [[1.0]], [[1]], (0,), "recall at 0 means nothing; k starts at 1"),
    ],
)
def test_bad_input_is_refused(candidates, scores, right, ks, message):
    with pytest.raises(ValueError, match=message):
        recall_at_k(candidates, scores, right, ks)
