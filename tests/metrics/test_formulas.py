"""The formulas on small cases worked by hand, and on all that a sample can be."""

import math
import random

import evaluate
import pytest

from blip2ft.metrics import module_path
from blip2ft.metrics.bleu import bleu_scores
from blip2ft.metrics.cider import cider_scores
from blip2ft.metrics.rouge import rouge_scores

PREDICTIONS = ["a dog runs in the park", "two cats on a mat", ""]
REFERENCES = [
    ["a dog is running in the park", "the dog runs"],
    ["two cats sit on a mat"],
    ["a red bus", "the bus on a street"],
]


def test_bleu_of_an_equal_caption_is_one():
    corpus, per_sample = bleu_scores(["a dog runs fast"], [["a dog runs fast", "cat"]])
    assert list(corpus) == ["bleu1", "bleu2", "bleu3", "bleu4"]
    assert corpus == pytest.approx(dict.fromkeys(corpus, 1.0), abs=1e-6)
    assert per_sample["bleu4"] == pytest.approx([1.0], abs=1e-6)


def test_bleu_takes_the_closest_reference_length():
    # lengths 4 against 3 and 6: 3 is closer, so there is no brevity penalty
    assert bleu_scores(["a b c d"], [["a b c", "a x y z v w"]])[0]["bleu1"] == pytest.approx(3 / 4)
    # of lengths equally close the shorter counts
    assert bleu_scores(["x y z"], [["x y", "x y z v"]])[0]["bleu1"] == pytest.approx(1.0)
    short = bleu_scores(["x y"], [["x y z v"]])[0]["bleu1"]
    assert short == pytest.approx(math.exp(1 - 4 / 2))


def test_bleu_of_the_corpus_pools_counts():
    corpus, per_sample = bleu_scores(["x", "y y y z"], [["x"], ["y v w z"]])
    assert corpus["bleu1"] == pytest.approx(3 / 5)
    assert per_sample["bleu1"] == pytest.approx([1.0, 2 / 4])


def test_rouge_takes_precision_and_recall_from_different_references():
    # precision 2/2 from the second, recall 1/1 from the first
    assert rouge_scores(["x y"], [["x", "x y z"]])[1]["rougeL"] == pytest.approx([1.0])
    beta = 1.2**2
    expected = (1 + beta) * 0.5 * 0.25 / (0.25 + beta * 0.5)
    assert rouge_scores(["x q"], [["x y z v"]])[0]["rougeL"] == pytest.approx(expected)


def test_rouge_keeps_the_order_of_words():
    assert rouge_scores(["x y z"], [["z y x"]])[0]["rougeL"] == pytest.approx(1 / 3)


def test_cider_of_an_equal_caption_is_ten():
    captions = ["one two three four five", "six seven eight nine ten"]
    corpus, per_sample = cider_scores(captions, [[caption] for caption in captions])
    assert corpus["cider"] == pytest.approx(10.0)
    assert per_sample["cider"] == pytest.approx([10.0, 10.0])


def test_cider_of_one_sample_is_zero():
    assert cider_scores(["a dog runs fast"], [["a dog runs fast"]])[0]["cider"] == 0.0


def test_cider_ignores_what_every_image_has_and_punishes_length():
    references = [["x one two three four"], ["x six seven eight nine"]]
    assert cider_scores(["x", "x"], references)[0]["cider"] == 0.0
    repeated = cider_scores(["one two three four " * 3, "q"], references)[1]["cider"][0]
    exact = cider_scores(["one two three four", "q"], references)[1]["cider"][0]
    assert 0 < repeated < exact


def test_an_empty_prediction_scores_zero_and_spoils_no_other():
    for scores in (bleu_scores, rouge_scores, cider_scores):
        corpus, per_sample = scores(PREDICTIONS, REFERENCES)
        assert all(value > 0 for value in corpus.values())
        for values in per_sample.values():
            assert len(values) == 3
            assert values[2] == pytest.approx(0.0, abs=1e-9)
            assert values[0] > values[2]


def test_predictions_that_are_all_empty_score_zero():
    for scores in (bleu_scores, rouge_scores, cider_scores):
        corpus, _ = scores(["", "."], [["a dog"], ["a cat"]])
        assert all(value == pytest.approx(0.0, abs=1e-9) for value in corpus.values())


def test_scores_do_not_depend_on_the_order_of_samples():
    order = [2, 0, 1]
    for scores in (bleu_scores, rouge_scores, cider_scores):
        corpus, per_sample = scores(PREDICTIONS, REFERENCES)
        shuffled, of_each = scores([PREDICTIONS[i] for i in order], [REFERENCES[i] for i in order])
        assert shuffled == pytest.approx(corpus)
        for name, values in per_sample.items():
            assert of_each[name] == pytest.approx([values[i] for i in order])


def test_unicode_captions_are_compared():
    corpus, _ = bleu_scores(["ein Café in Köln 日本語 😀"], [["Ein café in köln, 日本語!"]])
    assert corpus["bleu4"] == pytest.approx(1.0, abs=1e-6)


def test_rouge_equals_a_plain_table_of_subsequences():
    generator = random.Random(0)
    for _ in range(50):
        first, second = (
            [generator.choice("qrst") for _ in range(generator.randint(1, 9))] for _ in range(2)
        )
        table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
        for i, a in enumerate(first):
            for j, b in enumerate(second):
                longer = max(table[i][j + 1], table[i + 1][j])
                table[i + 1][j + 1] = table[i][j] + 1 if a == b else longer
        common = table[-1][-1]
        precision, recall = common / len(first), common / len(second)
        weighted = recall + 1.44 * precision
        expected = 2.44 * precision * recall / weighted if weighted else 0.0
        got = rouge_scores([" ".join(first)], [[" ".join(second)]])[0]["rougeL"]
        assert got == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "scores"), [("bleu", bleu_scores), ("rouge", rouge_scores), ("cider", cider_scores)]
)
def test_the_evaluate_module_loads_offline_and_gives_the_same(name, scores, tmp_path):
    metric = evaluate.load(module_path(name), cache_dir=str(tmp_path))
    got = metric.compute(predictions=PREDICTIONS, references=REFERENCES)
    assert got == pytest.approx(scores(PREDICTIONS, REFERENCES)[0])


def test_the_evaluate_module_takes_batches(tmp_path):
    metric = evaluate.load(module_path("cider"), cache_dir=str(tmp_path))
    for prediction, references in zip(PREDICTIONS, REFERENCES, strict=True):
        metric.add_batch(predictions=[prediction], references=[references])
    assert metric.compute() == pytest.approx(cider_scores(PREDICTIONS, REFERENCES)[0])


def test_an_unknown_metric_is_refused():
    with pytest.raises(ValueError, match=r"no metric 'bleurt'.*bleu, rouge, cider, meteor, spice"):
        module_path("bleurt")
