import pytest
from test_intervals import answered, captions

from blip2ft.evaluation.groups import by_field, fields_of, group
from blip2ft.evaluation.intervals import intervals
from blip2ft.metrics.bleu import bleu_scores
from blip2ft.metrics.cider import cider_scores


def with_field(rows, **values):
    return [
        row | {"fields": {name: of(i) for name, of in values.items()}} for i, row in enumerate(rows)
    ]


def test_groups_score_their_own_rows_with_the_rarity_of_all():
    rows = with_field(captions(30), domain=lambda i: "near" if i % 3 else "far")
    found = by_field("caption", rows, "domain", resamples=50)
    assert list(found) == ["near", "far"]
    far = rows[::3]
    said = [row["caption"] for row in far], [row["references"] for row in far]
    assert found["far"]["bleu4"].value == bleu_scores(*said)[0]["bleu4"]
    each = cider_scores([r["caption"] for r in rows], [r["references"] for r in rows])[1]["cider"]
    assert found["far"]["cider"].value == pytest.approx(sum(each[::3]) / 10)
    assert found["far"]["cider"].value != pytest.approx(cider_scores(*said)[0]["cider"])
    for scores in found.values():
        assert all(i.low <= i.value <= i.high for i in scores.values())


def test_a_group_of_questions_is_scored_as_if_it_were_alone():
    rows = answered(40, 12)
    found = by_field("vqa", rows, "answer_type", resamples=20)
    chosen = [row for row in rows if row["fields"]["answer_type"] == "number"]
    assert found["number"] == intervals("vqa", chosen, resamples=20)


def test_rows_without_a_value_are_a_group_that_comes_last():
    rows = with_field(captions(6), wild=lambda i: [None, True, False][i % 3])
    del rows[4]["fields"]["wild"]
    assert group(rows, "wild") == {"false": [2, 5], "true": [1], "(none)": [0, 3, 4]}
    assert group([*rows, captions(1)[0]], "wild")["(none)"] == [0, 3, 4, 6]


def test_of_many_values_the_rarest_are_joined():
    rows = with_field(captions(200), word=lambda i: "often" if i < 110 else i // 2)
    found = group(rows, "word")
    assert len(found) == 31
    assert len(found["often"]) == 110
    assert len(found["(16 others)"]) == 32
    assert sum(len(places) for places in found.values()) == 200


def test_refusals():
    rows = with_field(captions(40), domain=lambda i: i % 2, url=str, sizes=lambda i: [i])
    assert fields_of(rows) == ["domain", "url"]
    with pytest.raises(ValueError, match=r"no record has a field 'domian'; did you mean domain\?"):
        group(rows, "domian")
    with pytest.raises(ValueError, match=r"a field 'x' \(there are domain, url\)"):
        group(rows, "x")
    with pytest.raises(ValueError, match=r"a field 'x' \(they have none\)"):
        group(captions(3), "x")
    with pytest.raises(ValueError, match="'url' has 40 values in 40 records: a score for each"):
        group(rows, "url")
    with pytest.raises(ValueError, match="'sizes' holds lists or objects, which make no groups"):
        group(rows, "sizes")
