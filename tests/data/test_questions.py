"""Every format gives the same questions, and every mistake in one is named with its place."""

import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from blip2ft.data.images import open_image
from blip2ft.data.questions import FORMATS, Question, read_questions
from blip2ft.data.records import Row

TEN = ["yes"] * 7 + ["no", "maybe", "yes it is"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of images a.png and b.png; the working directory of the test."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png"):
        picture(name)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / ".cache")
    datasets.disable_progress_bars()
    return tmp_path


def picture(name: str) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (len(name), 0, 0)).save(path)
    return path


def write(name: str, content: Any) -> Path:
    """Write text, JSON (.json), JSON lines (a list) or Parquet."""
    path = Path(name)
    if isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(content))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(content), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


def row(image: str = "a.png", **fields: Any) -> dict[str, Any]:
    return {"image": image, "question": "Is it red?", "answer": "yes", **fields}


def said(questions: list[Question]) -> list[tuple]:
    return [(q.question_id, q.question, q.answers) for q in questions]


# Tables.


def test_rows_keep_their_order_and_their_answers():
    rows = [
        {"image": "a.png", "question": " Is it red? ", "answers": TEN, "question_id": 7,
         "answer_type": "yes/no", "question_type": "is it", "image_id": 3},
        {"image": "./a.png", "question": "What is it?", "answers": ["a dog "], "question_id": "x"},
        {"image": "b.png", "question": "What is it?", "answers": "cat", "question_id": 0},
    ]  # fmt: skip
    write("x.jsonl", rows)
    first, second, third = read_questions("x.jsonl")
    assert first == Question(
        Path("a.png"), 3, 7, "Is it red?", tuple(TEN), "x.jsonl:1",
        answer_type="yes/no", question_type="is it",
    )  # fmt: skip
    assert (second.image_id, second.answers, second.answer_type) == ("a.png", ("a dog",), None)
    assert (third.question_id, third.answers, third.origin) == (0, ("cat",), "x.jsonl:3")


def test_other_columns_are_fields():
    rows = [row(answer="yes", domain="near", size=3), row(answer="no", scene="x", note=None)]
    write("x.jsonl", rows)
    first, second = read_questions("x.jsonl")
    assert first.fields == {"domain": "near", "size": 3}
    assert second.fields == {"scene": "x"}
    (first, _) = read_questions("x.jsonl", answer_column="domain", require_answers=False)
    assert (first.answers, first.fields) == (("near",), {"answer": "yes", "size": 3})


def test_vqav2_keeps_what_else_it_says_of_a_question():
    picture("val2014/COCO_val2014_000000000005.jpg")
    asked, noted = vqa("val2014", 1)
    asked["questions"][0]["domain"] = "indoor"
    noted["annotations"][0] |= {"confidence": 3, "multiple_choice_answer": "yes"}
    (question,) = read_questions(**write_vqa(asked, noted))
    assert question.fields == {"domain": "indoor", "confidence": 3}


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv", "x.tsv", "x.parquet"])
def test_every_kind_of_table_reads_alike(name):
    rows = [row(answer="yes"), row("b.png", question="What, then?", answer="[5]")]
    if name.endswith("sv"):
        mark = "," if name == "x.csv" else "\t"
        cells = [[f'"{value}"' for value in fields.values()] for fields in (rows[0], *rows)]
        content: Any = "\n".join(mark.join(line) for line in [list(rows[0]), *cells[1:]])
    else:
        content = rows
    write(name, content)
    questions = read_questions(name)
    assert said(questions) == [(0, "Is it red?", ("yes",)), (1, "What, then?", ("[5]",))]
    assert [question.image for question in questions] == [Path("a.png"), Path("b.png")]


@pytest.mark.parametrize("column", ["answer", "answers", "direct_answers"])
@pytest.mark.parametrize("cell", ['["a dog", "dog"]', "['a dog', 'dog']"])
def test_a_cell_may_hold_a_list(column, cell):
    quoted = cell.replace('"', '""')
    write("x.csv", f'image,question,{column}\na.png,What?,"{quoted}"\n')
    assert read_questions("x.csv")[0].answers == ("a dog", "dog")


def test_answers_may_be_objects_as_in_vqav2():
    answers = [{"answer": word, "answer_confidence": "yes", "answer_id": 1} for word in TEN]
    write("x.parquet", [{"image": "a.png", "question": "Is it?", "answers": answers}])
    assert read_questions("x.parquet")[0].answers == tuple(TEN)
    write("x.jsonl", [{"image": "a.png", "question": "Is it?", "answers": {"answer": TEN}}])
    assert read_questions("x.jsonl")[0].answers == tuple(TEN)


def test_one_of_several_answers_may_be_empty():
    write("x.jsonl", [row(answer=["yes", "", "yes"])])
    assert read_questions("x.jsonl")[0].answers == ("yes", "", "yes")


def test_columns_can_be_named():
    write("x.csv", "file,text,said,key,question\na.png,Is it?,yes,k1,no\n")
    named = {"image_column": "file", "question_column": "text", "answer_column": "said"}
    assert said(read_questions("x.csv", **named, id_column="key")) == [("k1", "Is it?", ("yes",))]
    write("x.jsonl", [row(text=["no", "never"], caption="a cat")])
    assert read_questions("x.jsonl", answer_column="text")[0].answers == ("no", "never")
    with pytest.raises(ValueError, match=r"no column 'captions'.*Did you mean 'caption'"):
        read_questions("x.jsonl", answer_column="captions")


def test_choices_and_the_right_one():
    write("x.jsonl", [row(choices=["cat", "dog"], correct_choice=1, answer=["hound", "dog"])])
    (question,) = read_questions("x.jsonl")
    assert question.choices == ("cat", "dog")
    assert (question.correct_choice, question.answers) == (1, ("hound", "dog"))
    write("x.csv", "image,question,choices,correct_choice_idx\na.png,What?,\"['a', 'b']\",1\n")
    (question,) = read_questions("x.csv")
    assert (question.choices, question.correct_choice) == (("a", "b"), 1)
    assert question.answers == ("b",)


def test_a_split_and_a_limit():
    write("x.jsonl", [row(split="val"), row("b.png", split="train"), row(split="train")])
    assert [q.question_id for q in read_questions("x.jsonl", split="train")] == [1, 2]
    assert len(read_questions("x.jsonl", limit=2)) == 2
    with pytest.raises(ValueError, match=r"no split 'tran'; the splits are: train, val\. Did you"):
        read_questions("x.jsonl", split="tran")
    with pytest.raises(ValueError, match=r"limit is 0\. Set it to 1 or more"):
        read_questions("x.jsonl", limit=0)


def test_images_may_be_in_another_source():
    images = [
        {"image": Path(name).read_bytes(), "image_id": name[0]} for name in ("a.png", "b.png")
    ]
    write("images.parquet", images)
    rows = [{"image_id": name, "question": "What?", "answers": ["x"]} for name in ("b", "a", "b")]
    write("x.jsonl", rows)
    questions = read_questions("x.jsonl", images="images.parquet")
    assert [question.image_id for question in questions] == ["b", "a", "b"]
    assert isinstance(questions[0].image, Row)
    assert questions[0].image.read() == Path("b.png").read_bytes()
    assert open_image(questions[1].image).size == (4, 4)
    write("x.jsonl", [*rows, {"image_id": "c", "question": "What?", "answers": ["x"]}])
    message = r"an image that isn't in images\.parquet \(1\): image_id c \(x\.jsonl:4\)\. Give the"
    with pytest.raises(ValueError, match=message):
        read_questions("x.jsonl", images="images.parquet")


def test_images_in_another_source_match_ids_of_any_type():
    write("images.jsonl", [{"image": "a.png", "image_id": 7}])
    write("x.csv", "image_id,question,answer\n7,What?,x\n")
    assert read_questions("x.csv", images="images.jsonl")[0].image == Path("a.png")
    write("images.jsonl", [{"image": "gone.png", "image_id": 7}])
    with pytest.raises(ValueError, match=r"no such image file \(1\): gone\.png"):
        read_questions("x.csv", images="images.jsonl")


def test_a_saved_dataset_of_images_and_questions(folder):
    table = datasets.Dataset.from_list([row(question_id=4)])
    table = table.cast_column("image", datasets.Image())
    table.save_to_disk("saved")
    (question,) = read_questions("saved")
    assert said([question]) == [(4, "Is it red?", ("yes",))]


def test_questions_pickle_and_never_change():
    write("x.jsonl", [row()])
    questions = read_questions("x.jsonl")
    assert pickle.loads(pickle.dumps(questions)) == questions
    with pytest.raises(AttributeError, match="cannot assign"):
        questions[0].answers = ()  # type: ignore[misc]


# VQAv2 and OK-VQA.


def vqa(subtype: str = "val2014", count: int = 2) -> tuple[dict[str, Any], dict[str, Any]]:
    """Questions 10, 20, ... and their annotations."""
    questions = [
        {"image_id": 5 + n, "question": f"Is it {n}?", "question_id": 10 * (n + 1)}
        for n in range(count)
    ]
    annotations = [
        {
            "question_type": "is it",
            "multiple_choice_answer": "yes",
            "answers": [{"answer": a, "answer_confidence": "no", "answer_id": 1} for a in TEN],
            "image_id": question["image_id"],
            "answer_type": "yes/no",
            "question_id": question["question_id"],
        }
        for question in reversed(questions)
    ]
    top = {"info": {}, "license": {}, "data_subtype": subtype, "data_type": "mscoco"}
    return {**top, "questions": questions}, {**top, "annotations": annotations}


def write_vqa(questions: Any, annotations: Any) -> dict[str, Any]:
    write("q.json", questions)
    return {"source": "q.json", "annotations": write("notes.json", annotations)}


def test_vqav2_joins_questions_and_annotations():
    picture("coco/val2014/COCO_val2014_000000000005.jpg")
    picture("coco/COCO_val2014_000000000006.jpg")
    files = write_vqa(*vqa())
    first, second = read_questions(**files, image_root="coco")
    assert first == Question(
        Path("coco/val2014/COCO_val2014_000000000005.jpg"), 5, 10, "Is it 0?", tuple(TEN),
        "q.json: questions[0]", answer_type="yes/no", question_type="is it",
    )  # fmt: skip
    assert second.image == Path("coco/COCO_val2014_000000000006.jpg")
    assert said([second]) == [(20, "Is it 1?", tuple(TEN))]


@pytest.mark.parametrize("subtype", ["test2015", "test-dev2015"])
def test_vqav2_test_sets_have_no_answers(folder, subtype):
    picture("test2015/COCO_test2015_000000000005.jpg")
    write("q.json", vqa(subtype, 1)[0])
    (question,) = read_questions("q.json", require_answers=False)
    assert (question.answers, question.answer_type) == ((), None)
    with pytest.raises(
        ValueError, match=r"answers are in another file\. Set annotations to it, or"
    ):
        read_questions("q.json")


def test_a_missing_coco_image_is_named():
    files = write_vqa(*vqa(count=1))
    name = re.escape("val2014/COCO_val2014_000000000005.jpg (q.json: questions[0]). Set image_root")
    with pytest.raises(ValueError, match=rf"no such image file \(1\): .*{name}"):
        read_questions(**files)
    assert len(read_questions(**files, check_images=False)) == 1


def test_one_missing_image_is_named_once():
    questions, annotations = vqa(count=3)
    for item in (*questions["questions"], *annotations["annotations"]):
        item["image_id"] = 5
    with pytest.raises(
        ValueError, match=r"no such image file \(1\): .*\(q\.json: questions\[0\]\)"
    ):
        read_questions(**write_vqa(questions, annotations))


def test_questions_and_annotations_that_do_not_belong_together_are_refused():
    questions, annotations = vqa(count=4)
    del questions["questions"][1]
    annotations["annotations"].pop()  # of question 10
    annotations["annotations"][0]["image_id"] = 99
    annotations["annotations"].append({**annotations["annotations"][1]})
    annotations["annotations"].append({"answers": []})
    questions["questions"].append(3)
    files = write_vqa(questions, annotations)
    for message in (
        r"a question without its annotation \(1\): q\.json: questions\[0\] \(question_id 10\)\. Gi",
        r"an annotation without its question \(1\): notes\.json: annotations\[2\] \(question_id 20",
        r"two images \(1\): .*\[2\] \(image_id 8\) and notes\.json: .*\[0\] \(image_id 99\)\. Gi",
        r"two annotations of one question \(1\): notes\.json: annotations\[3\] \(question_id 30, a",
        r"no question_id \(2\): notes\.json: annotations\[4\]; q\.json: questions\[3\]\. Add it",
        r"no image_id \(1\): q\.json: questions\[3\]",
    ):
        with pytest.raises(ValueError, match=message):
            read_questions(**files, check_images=False)


def test_a_question_id_that_is_there_twice_is_named():
    questions, annotations = vqa(count=1)
    questions["questions"].append(questions["questions"][0])
    message = r"question id is there twice \(1\): .*\[1\] \(question 10, also q\.json: questions\[0"
    with pytest.raises(ValueError, match=message):
        read_questions(**write_vqa(questions, annotations), check_images=False)


def test_files_of_vqav2_in_the_wrong_place_are_told():
    questions, annotations = vqa()
    files = write_vqa(questions, annotations)
    with pytest.raises(
        ValueError, match=r"notes\.json: no list 'questions' in it; its keys are: i"
    ):
        read_questions("notes.json", annotations="q.json", format="vqav2")
    with pytest.raises(ValueError, match=r"q\.json: no list 'annotations' in it"):
        read_questions("q.json", annotations="q.json")
    with pytest.raises(ValueError, match=r"note\.json: no such file.*Did you mean 'notes\.json'"):
        read_questions("q.json", annotations="note.json")
    with pytest.raises(ValueError, match=r"there is no 'train' to choose\. Give the split's own"):
        read_questions(**files, split="train")
    with pytest.raises(ValueError, match=r"q\.json: no 'data_subtype'.* Add it: train2014, val"):
        read_questions(**write_vqa({"questions": []}, annotations))
    write("x.jsonl", [row()])
    with pytest.raises(
        ValueError, match=r"'q\.json' is for the format vqav2, but x\.jsonl was read"
    ):
        read_questions("x.jsonl", annotations="q.json")


# Visual Genome, A-OKVQA, GQA.


def test_visual_genome_has_two_folders_of_images():
    picture("VG_100K/1.jpg")
    picture("VG_100K_2/2.jpg")
    qas = [
        {"question": "What?", "answer": "A tree.", "qa_id": 100 + n, "image_id": 1 + n // 2}
        for n in range(3)
    ]
    write("question_answers.json", [{"id": 1, "qas": qas[:2]}, {"id": 2, "qas": qas[2:]}])
    questions = read_questions("question_answers.json")
    assert [q.image for q in questions] == [Path("VG_100K/1.jpg")] * 2 + [Path("VG_100K_2/2.jpg")]
    assert said(questions)[2] == (102, "What?", ("A tree.",))
    assert questions[2].origin == "question_answers.json: [1].qas[0]"
    write("x.json", [{"id": 1}, {"qas": [{"question": "What?", "qa_id": 3}]}])
    with pytest.raises(ValueError, match=r"no list 'qas' \(1\): x\.json: \[0\]\. Add it") as caught:
        read_questions("x.json")
    assert "- no image_id (1): x.json: [1].qas[0]. Add it" in str(caught.value)


def aokvqa() -> list[dict[str, Any]]:
    return [
        {"split": split, "image_id": 5, "question_id": f"2{split}", "question": "What?",
         "choices": ["cat", "dog"], "correct_choice_idx": 1, "direct_answers": ["dog", "hound"],
         "difficult_direct_answer": False, "rationales": ["x"]}
        for split in ("train", "val")
    ]  # fmt: skip


def test_aokvqa_has_choices_and_answers():
    picture("val2017/000000000005.jpg")
    write("x.json", aokvqa())
    (question,) = read_questions("x.json", split="val")
    assert question == Question(
        Path("val2017/000000000005.jpg"), 5, "2val", "What?", ("dog", "hound"), "x.json: [1]",
        ("cat", "dog"), 1, fields={"difficult_direct_answer": False},
    )  # fmt: skip
    assert len(read_questions("x.json")) == 2
    with pytest.raises(ValueError, match=r"x\.json: no split 'test'; the splits are: train, val"):
        read_questions("x.json", split="test")


def test_aokvqa_test_sets_have_choices_only():
    picture("test2017/000000000005.jpg")
    (row, _) = aokvqa()
    kept = ("image_id", "question_id", "question", "choices")
    write("x.json", [{"split": "test"} | {name: row[name] for name in kept}])
    (question,) = read_questions("x.json", require_answers=False)
    assert (question.choices, question.correct_choice) == (("cat", "dog"), None)
    assert question.answers == ()
    with pytest.raises(
        ValueError, match=r"no answer \(1\): x\.json: \[0\] \(question 2train\)\. W"
    ):
        read_questions("x.json")
    write("x.json", [{"question_id": "1", "choices": [], "image_id": None}])
    with pytest.raises(ValueError, match=r"no image_id \(1\): x\.json: \[0\]\. Add it, as text or"):
        read_questions("x.json")


def test_gqa_has_its_questions_by_their_ids():
    picture("images/n7.jpg")
    types = {"structural": "query", "semantic": "attr", "detailed": "x"}
    item = {"imageId": "n7", "question": "What color?", "answer": "red", "types": types}
    write("x.json", {"0200": {**item, "isBalanced": True}})
    (question,) = read_questions("x.json")
    assert question == Question(
        Path("images/n7.jpg"), "n7", "0200", "What color?", ("red",), "x.json: 0200",
        question_type="query", fields={"semantic": "attr", "detailed": "x"},
    )  # fmt: skip
    write("x.json", {"0200": {**item, "imageId": None}, "0300": {**item, "answer": None}})
    with pytest.raises(ValueError, match=r"no imageId \(1\): x\.json: 0200\. Add it") as caught:
        read_questions("x.json")
    assert "- no answer (1): x.json: 0300 (question 0300). Write one" in str(caught.value)


# Mistakes.


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image": None}, r"no image named \(1\): x\.jsonl:1\. Write the path"),
        ({"image": "gone.png"}, r"no such image file \(1\): gone\.png \(x\.jsonl:1\)"),
        ({"image": "../a.png"}, r"image path outside of .*\.\./a\.png \(x\.jsonl:1\)"),
        ({"question": " "}, r"empty question \(1\): x\.jsonl:1 \(question 7\)\. Write a question"),
        ({"question": None}, r"no question \(1\): x\.jsonl:1 \(question 7\): none\. Write it as"),
        ({"question": 5}, r"no question \(1\): x\.jsonl:1 \(question 7\): 5\. Write it as text"),
        ({"question": "a <image>?"}, r"holds <image>, .* \(1\): x\.jsonl:1 .*\(question\)\. Take"),
        ({"answer": "<image>"}, r"holds <image>, .* \(1\): x\.jsonl:1 .*\(answer\)\. Take it out"),
        ({"answer": " "}, r"no answer \(1\): x\.jsonl:1 \(question 7\)\. Write one there, or set"),
        ({"answer": []}, r"no answer \(1\): x\.jsonl:1"),
        ({"answer": None}, r"no answer \(1\): x\.jsonl:1"),
        ({"answer": 3}, r"the answer isn't text \(1\): x\.jsonl:1 \(question 7\): 3\. It is a str"),
        ({"answer": ["a", {}]}, r"the answer isn't text \(1\): x\.jsonl:1 \(question 7\): \{\}"),
        ({"choices": [1]}, r"the choice isn't text \(1\): x\.jsonl:1 \(question 7\): 1\."),
        ({"choices": ["a"], "correct_choice": 1}, r"isn't one of the choices \(1\): .*: 1 of 1\."),
        ({"choices": ["a"], "correct_choice": True}, r"isn't one of the choices \(1\): .*: True "),
        ({"correct_choice": "b"}, r"isn't one of the choices \(1\): .*: 'b' of 0\. It is the numb"),
        ({"question_id": 1.5}, r"the question id is neither text nor a whole number \(1\): x\.js"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_row_is_named(fields, message):
    write("x.jsonl", [row(question_id=7) | fields])
    with pytest.raises(ValueError, match=r"x\.jsonl: 1 problem\n- .*" + message):
        read_questions("x.jsonl")


def test_all_problems_are_told_at_once():
    write("x.jsonl", [row(question=""), row(answer=""), row("gone.png"), row("gone.png")])
    with pytest.raises(
        ValueError, match=r"x\.jsonl: 3 problems\n- empty quest.*\n- no ans.*\n- no"
    ):
        read_questions("x.jsonl")


def test_answers_may_be_absent_where_they_are_not_required():
    write("x.jsonl", [{"image": "a.png", "question": "What?"}])
    assert read_questions("x.jsonl", require_answers=False)[0].answers == ()
    with pytest.raises(
        ValueError, match=r"no column answers or answer or direct_answers; there ar"
    ):
        read_questions("x.jsonl")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"x\.csv: no column question; there are: quest, answer\..*Set question_column to the"),
        ({"question_column": "ask"}, r"no column ask; there are: .* Set question_column"),
        ({"question_column": "quest", "id_column": "key"}, r"no column key; .* Set id_column to t"),
        ({"image_column": "images"}, r"no column 'images' for the image.*Did you mean 'image'\?"),
    ],
)
def test_a_column_that_is_not_there_is_named(arguments, message):
    write("x.csv", "image,quest,answer\na.png,What?,x\n")
    with pytest.raises(ValueError, match=message):
        read_questions("x.csv", **arguments)


def test_question_ids_of_a_table_are_unique():
    write("x.csv", "image,question,answer,question_id\na.png,What?,x,7\nb.png,What?,x,7\n")
    with pytest.raises(
        ValueError, match=r"twice \(1\): x\.csv:3 \(question 7, also x\.csv:2\)\. G"
    ):
        read_questions("x.csv")


def test_formats_are_told_apart_or_asked_for():
    write("x.json", {"images": [], "annotations": []})
    with pytest.raises(
        ValueError, match=r"can't tell its format\. Set format to one of: vqav2, vi"
    ):
        read_questions("x.json")
    with pytest.raises(ValueError, match=r"unknown format 'vqav3'\. Did you mean 'vqav2'\?"):
        read_questions("x.json", format="vqav3")
    with pytest.raises(ValueError, match=r"no such file or folder\. Did you mean 'x\.json'\?"):
        read_questions("y.json")
    with pytest.raises(ValueError, match=r"x\.json: an object where a list of questions belongs"):
        read_questions("x.json", format="aokvqa")
    write("x.json", [])
    with pytest.raises(
        ValueError, match=r"x\.json: no object where an object of questions belongs"
    ):
        read_questions("x.json", format="gqa")
    assert set(FORMATS) >= {"vqav2", "visual_genome", "aokvqa", "gqa", "jsonl", "csv", "parquet"}


@pytest.mark.parametrize(
    ("name", "content"), [("x.jsonl", "\n"), ("x.json", "[]"), ("x.csv", "image,question,answer\n")]
)
def test_an_empty_source_is_refused(name, content):
    write(name, content)
    with pytest.raises(
        ValueError, match=r"no questions in it \(read as .*Check that it is the rig"
    ):
        read_questions(name)


def test_the_image_root_has_to_be_a_folder():
    write("x.jsonl", [row()])
    with pytest.raises(
        ValueError, match=r"image_root 'gone' isn't a folder\. Set it to the folder"
    ):
        read_questions("x.jsonl", image_root="gone")
    os.mkdir("there")
    with pytest.raises(ValueError, match=r"no such image file \(1\): there/a\.png"):
        read_questions("x.jsonl", image_root="there")
