"""`blip2ft ask` and `blip2ft.ask`: one question, many, and what can't be asked."""

import json

import pytest

import blip2ft
from blip2ft.cli import main
from blip2ft.models.vqa import load_vqa

FEW = ("--num-beams", "1", "--max-new-tokens", "3", "--prompt", "the {} of")


@pytest.fixture(scope="module")
def asker(opt_folder, retriever_folder, tmp_path_factory):
    """A model with the question in its Q-Former, as an export is."""
    folder = tmp_path_factory.mktemp("asker")
    for part in load_vqa(opt_folder, stage1=retriever_folder):
        part.save_pretrained(folder)
    return folder


def run(capsys, *words) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["ask", *map(str, words)])
    said = capsys.readouterr()
    return int(stop.value.code or 0), said.out, said.err


def test_one_question_and_many_get_the_same_answers(asker, photo_folder, tmp_path, capsys):
    photo = photo_folder / "photo1.jpg"
    status, one, _ = run(capsys, photo, "photo", "--model", asker, *FEW)
    assert status == 0
    table = tmp_path / "asked.jsonl"
    rows = [{"image": "photo1.jpg", "question": q, "question_id": q} for q in ("photo", "left cat")]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    many = ("--questions", table, "--image-root", photo_folder, "--model", asker)
    status, out, _ = run(capsys, *many, *FEW)
    assert status == 0
    answers = [json.loads(line) for line in out.splitlines()]
    assert [a["question_id"] for a in answers] == ["photo", "left cat"]
    assert answers[0]["answer"] == one.strip()
    model, processor = load_vqa(asker)
    asked = [(photo, "photo")]
    options = {"template": "the {} of", "num_beams": 1, "max_new_tokens": 3}
    assert blip2ft.ask(model, processor, asked, **options) == [one.strip()]


def test_a_plain_blip2_answers_too(opt_folder, photo_folder, capsys):
    status, out, _ = run(capsys, photo_folder / "photo1.jpg", "photo", "--model", opt_folder, *FEW)
    assert status == 0
    assert out.endswith("\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), 'say what to ask: IMAGE "QUESTION" for one, or --questions FILE for many'),
        (("{photo}",), "say what to ask"),
        (("{photo}", "what?"), "say which model: --model ID_OR_FOLDER, or --adapter RUN"),
        (("nowhere.jpg", "what?", "--model", "{model}"), "there is no image at nowhere.jpg"),
        (("{photo}", " ", "--model", "{model}"), "an empty question can't be asked"),
        (("{photo}", "a", "--model", "{model}", "--prompt", "x"), "must have exactly one {}"),
    ],
)
def test_what_cant_be_asked_is_one_line(asker, photo_folder, capsys, words, message):
    places = {"{photo}": photo_folder / "photo1.jpg", "{model}": asker}
    status, _, err = run(capsys, *(places.get(word, word) for word in words))
    assert status == 2
    assert message in err
    assert "Traceback" not in err
