"""The files of the servers have the names and the contents that these ask for."""

import json

import pytest

from blip2ft.evaluation.servers import write_for_servers


def captions(*images: str) -> list[dict]:
    return [
        {"image_id": i, "caption": f"café {i}", "references": [], "image": image}
        for i, image in enumerate(images)
    ]


def answers(*images: str) -> list[dict]:
    return [
        row | {"question_id": 10 + row["image_id"], "answer": "yes"} for row in captions(*images)
    ]


def test_captions_are_named_after_cocos_own_data_set(tmp_path):
    rows = captions("d/COCO_val2014_000000000001.jpg", "d/COCO_val2014_000000000002.jpg")
    path = write_for_servers(tmp_path, "caption", "test", "Salesforce/blip2-opt-2.7b", rows)
    assert path == tmp_path / "captions_val2014_Salesforce-blip2-opt-2-7b_results.json"
    kept = [{"image_id": 0, "caption": "café 0"}, {"image_id": 1, "caption": "café 1"}]
    assert json.loads(path.read_text(encoding="utf-8")) == kept


def test_answers_are_named_as_the_vqa_tool_does(tmp_path):
    rows = answers("COCO_test2015_000000000001.jpg", "COCO_test2015_000000000002.jpg")
    path = write_for_servers(tmp_path, "vqa", "test", "runs/a", rows)
    assert path == tmp_path / "vqa_OpenEnded_mscoco_test2015_runs-a_results.json"
    kept = [{"question_id": 10, "answer": "yes"}, {"question_id": 11, "answer": "yes"}]
    assert json.loads(path.read_text()) == kept


@pytest.mark.parametrize(
    "images",
    [
        ("a.jpg", "b.jpg"),  # NoCaps'
        ("COCO_val2014_1.jpg", "COCO_train2014_2.jpg"),
        (None, None),  # of an archive
    ],
)
def test_other_data_are_named_after_their_split(tmp_path, images):
    path = write_for_servers(tmp_path, "caption", "validation", "m", captions(*images))
    assert path == tmp_path / "captions_validation_m_results.json"


def test_ids_that_are_no_numbers_are_no_servers(tmp_path):
    rows = [row | {"image_id": "a1"} for row in captions("a.jpg")]
    assert write_for_servers(tmp_path, "caption", "test", "m", rows) is None
    assert write_for_servers(tmp_path, "retrieval", "test", "m", captions("a.jpg")) is None
    assert not list(tmp_path.iterdir())


def test_of_a_long_name_the_end_stays(tmp_path):
    name = " + ".join(f"0.5 {'/scratch' * 12}/run{i}" for i in range(3))
    path = write_for_servers(tmp_path, "caption", "test", name, captions("a.jpg"))
    assert path is not None
    assert path.name.endswith("-scratch-run2_results.json")
    assert len(path.name) < 120
