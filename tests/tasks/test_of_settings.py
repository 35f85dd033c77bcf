"""What settings say of an evaluation."""

import pytest

from blip2ft.tasks.of_settings import candidates_of


def test_answers_to_choose_from_are_a_files_lines(tmp_path):
    path = tmp_path / "answers.txt"
    path.write_text("yes\n\n a cat \r\nno", encoding="utf-8")
    assert candidates_of({"candidates": str(path)}) == ["yes", "a cat", "no"]
    assert candidates_of({"candidates": None}) is None
    assert candidates_of({}) is None


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        (None, r"candidates: there is no file .*answers\.txt; give one with an answer a line"),
        (b"\n \n", r"answers\.txt holds no answers to choose from; .* or leave candidates out"),
        (b"yes\n\xff", r"answers\.txt:2: not UTF-8 text"),
    ],
)
def test_a_file_without_answers_is_refused(tmp_path, content, wrong):
    path = tmp_path / "answers.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=wrong):
        candidates_of({"candidates": str(path)})
