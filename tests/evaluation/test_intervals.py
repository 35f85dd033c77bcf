"""Values are the official scores; intervals hold what they promise."""

import random

import numpy as np
import pytest

from blip2ft.data.questions import Question
from blip2ft.evaluation.intervals import Interval, intervals, resample
from blip2ft.evaluation.sums import sums
from blip2ft.metrics import score_captions
from blip2ft.metrics.bleu import bleu_scores
from blip2ft.metrics.cider import cider_scores
from blip2ft.metrics.recall_at_k import recall_at_k
from blip2ft.tasks.vqa import score

WORDS = ["a", "the", "red", "blue", "dog", "cat", "bus", "tree", "sits", "runs", "on", "under"]


def text(rng):
    return " ".join(rng.choices(WORDS, k=rng.randint(3, 9)))


def captions(count, seed=0):
    rng = random.Random(seed)
    return [
        {
            "image_id": i,
            "caption": text(rng),
            "references": [text(rng) for _ in range(rng.randint(1, 4))],
        }
        for i in range(count)
    ]


def answered(count, images, seed=0, **more):
    rng = random.Random(seed)
    answers = ["yes", "no", "two", "2", "a dog."]
    return [
        {
            "question_id": i,
            "image_id": f"image-{rng.randrange(images)}",
            "question": "what?",
            "answer": rng.choice(answers),
            "answers": [rng.choice(answers) for _ in range(10)],
            "fields": {"answer_type": rng.choice(["yes/no", "number", None])},
            **more,
        }
        for i in range(count)
    ]


def questions_of(rows):
    return [
        Question(
            b"",
            row["image_id"],
            row["question_id"],
            row["question"],
            tuple(row["answers"]),
            "",
            tuple(row.get("choices", ())),
            row.get("correct_choice"),
            row["fields"]["answer_type"],
        )
        for row in rows
    ]


def ranked(count, seed=0):
    rng = random.Random(seed)
    ranks = [1, 1, 2, 4, 7, 20, None]
    return [
        {
            "image_id": i,
            "image_rank": rng.choice(ranks),
            "text_ranks": rng.choices(ranks, k=rng.randint(1, 5)),
        }
        for i in range(count)
    ]


def values(found):
    return {name: interval.value for name, interval in found.items()}


def test_values_of_captions_are_the_scorers_to_the_bit():
    rows = captions(40)
    rows[0]["caption"] = rows[0]["references"][0]
    rows[1]["caption"] = ""
    official = score_captions(
        {row["image_id"]: row["caption"] for row in rows},
        {row["image_id"]: row["references"] for row in rows},
        java=False,
    )
    assert values(intervals("caption", rows, resamples=2)) == official.scores


@pytest.mark.parametrize("kind", ["annotators", "one answer", "choices"])
def test_values_of_answers_are_those_of_the_task(kind):
    rows = answered(60, 20)
    for i, row in enumerate(rows):
        if kind == "one answer":
            row["answers"] = row["answers"][:1]
        if kind == "choices":
            row |= {"choices": ["no", row["answer"]], "correct_choice": i % 2}
    official = score(questions_of(rows), [row["answer"] for row in rows])
    assert official["accuracy"] > 0
    assert values(intervals("vqa", rows, resamples=2)) == official


def test_answers_of_an_earlier_version_are_scored_without_their_type():
    rows = answered(30, 10)
    new = values(intervals("vqa", rows, resamples=2))
    old = [{k: v for k, v in row.items() if k != "fields"} for row in rows]
    assert values(intervals("vqa", old, resamples=2)) == {"accuracy": new["accuracy"]}


def test_values_of_retrieval_are_those_of_the_rankings():
    rows = ranked(50)
    found = values(intervals("retrieval", rows, resamples=2))
    per_query = {
        "image_to_text": [row["image_rank"] for row in rows],
        "text_to_image": [rank for row in rows for rank in row["text_ranks"]],
    }
    for way, ranks in per_query.items():
        # a candidate of each rank up to 10, of which the one at its rank is right
        candidates = [np.arange(1, 11)] * len(ranks)
        scores = [-np.arange(1, 11)] * len(ranks)
        right = [[99 if rank is None else rank] for rank in ranks]
        for k, value in recall_at_k(candidates, scores, right).items():
            assert found[f"{way}_r{k}"] == value
    recalls = [value for name, value in found.items() if name != "mean_recall"]
    assert found["mean_recall"] == pytest.approx(np.mean(recalls), abs=1e-12)


def test_resampled_bleu_and_cider_are_those_of_a_loop_over_the_drawn_rows():
    rows = captions(12)
    table = sums("caption", rows)
    drawn = np.random.default_rng(3).integers(12, size=(5, 12))
    times = np.stack([np.bincount(places, minlength=12) for places in drawn])
    fast = table.scores(times @ table.by_image())
    each = cider_scores([r["caption"] for r in rows], [r["references"] for r in rows])[1]["cider"]
    for i, places in enumerate(drawn):
        chosen = [rows[place] for place in places]
        slow, _ = bleu_scores([r["caption"] for r in chosen], [r["references"] for r in chosen])
        for name, value in slow.items():
            assert fast[name][i] == pytest.approx(value, rel=1e-9)
        assert fast["cider"][i] == pytest.approx(np.mean([each[place] for place in places]))


def test_resamples_are_draws_with_replacement_and_repeat_with_their_seed():
    one = resample(np.eye(7), 300, seed=5)
    assert (one.sum(1) == 7).all()
    assert one.mean() == pytest.approx(1.0)
    assert one.var() == pytest.approx(6 / 7, rel=0.1)  # of a multinomial
    assert (one == resample(np.eye(7), 300, seed=5)).all()
    assert (one != resample(np.eye(7), 300, seed=6)).any()


def test_resamples_of_many_images_are_drawn_in_parts(monkeypatch):
    monkeypatch.setattr("blip2ft.evaluation.intervals.DRAWN_AT_ONCE", 20)
    drawn = resample(np.eye(7), 9, seed=5)
    assert drawn.shape == (9, 7)
    assert (drawn.sum(1) == 7).all()


def test_an_interval_holds_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    truth, held = 0.3, 0
    for seed in range(200):
        right = rng.random(150) < truth
        rows = [
            {"image_id": i, "question_id": i, "answer": "yes" if yes else "no", "answers": ["yes"]}
            for i, yes in enumerate(right)
        ]
        found = intervals("vqa", rows, resamples=300, seed=seed)["accuracy"]
        held += found.low <= 100 * truth <= found.high
    assert 0.90 <= held / 200 <= 0.98


def test_questions_of_one_image_are_drawn_together():
    # ten questions of an image are all right or all wrong: 30 images tell what 30 questions would
    rows = [
        {"image_id": i // 10, "question_id": i, "answer": "yes", "answers": [said]}
        for i, said in enumerate(np.repeat(["yes", "no"] * 15, 10))
    ]
    together = intervals("vqa", rows)["accuracy"]
    for i, row in enumerate(rows):
        row["image_id"] = i
    apart = intervals("vqa", rows)["accuracy"]
    width, narrow = together.high - together.low, apart.high - apart.low
    assert width / narrow == pytest.approx(10**0.5, rel=0.15)


def test_one_image_has_an_interval_without_width():
    found = intervals("vqa", answered(3, 1))
    assert found["accuracy"] == Interval(*[found["accuracy"].value] * 3)


@pytest.mark.parametrize(
    ("task", "row"),
    [
        ("caption", {"image_id": 1, "caption": "a dog", "references": []}),
        ("vqa", {"image_id": 1, "answer": "a dog", "answers": []}),
        ("retrieval", {"image_id": 1, "image_rank": None, "text_ranks": []}),
    ],
)
def test_what_has_nothing_to_be_scored_against_has_no_scores(task, row):
    assert intervals(task, [row]) == {}


def test_refusals():
    with pytest.raises(ValueError, match="no task 'captions'; tasks are caption, vqa, retrieval"):
        intervals("captions", captions(2))
    with pytest.raises(ValueError, match="no predictions to score"):
        intervals("caption", [])
    with pytest.raises(ValueError, match="0 resamples tell nothing; take 1 or more"):
        intervals("caption", captions(2), resamples=0)
    old = [{"image_id": 1, "caption": "a", "references": ["a"], "texts": ["a"], "scores": [1.0]}]
    with pytest.raises(ValueError, match=r"have no ranks.*blip2ft evaluate retrieval"):
        intervals("retrieval", old)
