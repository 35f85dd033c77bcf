"""What a person says: asked for, read, and refused where it isn't an answer."""

import pytest

from blip2ft.card.said import QUESTIONS, check_said, parse_said, read_said, write_questions


def test_answers_of_a_file_are_texts(tmp_path):
    path = tmp_path / "about.yaml"
    path.write_text(
        "license: mit\nlanguage: [no, en]\ncard_authors: 2026-01-01\ndevelopers:\n"
        "tags: birds\nintended_use: |\n  One.\n\n  Two.\n"
    )
    assert read_said(path) == {
        "license": "mit",
        "language": ["no", "en"],
        "card_authors": "2026-01-01",
        "tags": ["birds"],
        "intended_use": "One.\n\nTwo.",
    }


def test_questions_can_be_filled_in_and_read(tmp_path):
    path = tmp_path / "about.yaml"
    text = write_questions(["license", "language"], {"paper": "x"})
    path.write_text(text)
    assert read_said(path) == {}
    assert "paper" not in text
    assert text.index("license:") < text.index("If there is something to say") < text.index("demo:")
    filled = text.replace("license:", "license: mit").replace("language: []", "language: [en]")
    path.write_text(filled)
    assert read_said(path) == {"license": "mit", "language": ["en"]}


def test_every_question_is_a_question_or_says_what_it_is_for():
    for name, question in QUESTIONS.items():
        assert "?" in question.ask, name
        assert not question.pattern or question.form, name


def test_words_of_the_command_line_are_answers():
    said = parse_said(
        ["license=mit", "tags=a", "tags=b", "citation=@misc{x, y={z}}", "language=en"]
    )
    assert said == {
        "license": "mit",
        "tags": ["a", "b"],
        "citation": "@misc{x, y={z}}",
        "language": ["en"],
    }
    with pytest.raises(ValueError, match=r"--say 'mit': expected QUESTION=ANSWER, such as lic"):
        parse_said(["mit"])
    with pytest.raises(ValueError, match=r"--say: license is a list: allowed is one text"):
        parse_said(["license=mit", "license=apache-2.0"])


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"licence": "mit"}, "nothing is asked by the name 'licence'; did you mean 'license'?"),
        ({"zzzz": "x"}, "nothing is asked by the name 'zzzz'; known are name, summary"),
        ({"license": "MIT License"}, "license is 'MIT License': allowed is the hub's short name"),
        ({"license": ["mit"]}, "license is a list: allowed is one text"),
        ({"country": "France"}, "country is 'France': allowed is a code of three capitals"),
        ({"device_watts": "300 W"}, "device_watts is '300 W': allowed is a number of watts"),
        ({"language": ["en", "English"]}, "language is 'English': allowed is a code of two"),
        ({"base_model": "mine"}, "base_model is 'mine': allowed is a hub id, OWNER/NAME"),
        ({"paper": {"a": 1}}, "paper has parts of its own: allowed is a text"),
    ],
)
def test_what_is_no_answer_is_told(said, told):
    with pytest.raises(ValueError, match=r"about\.yaml: ") as refused:
        check_said(said, "about.yaml")
    assert told in str(refused.value)


def test_what_is_no_file_of_answers_is_told(tmp_path):
    path = tmp_path / "about.yaml"
    with pytest.raises(ValueError, match=r"there is no such file; blip2ft card RUN --ask writes"):
        read_said(path)
    for text, told in (
        ("a: [", "isn't a YAML file"),
        ("- mit", "holds no answers: expected lines such as license: apache-2.0"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=told):
            read_said(path)
    path.write_text("")
    assert read_said(path) == {}
