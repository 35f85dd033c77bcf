"""What an error says, without what Python and torch wrap around it."""

import pytest
from torch._utils import ExceptionWrapper

from blip2ft.errors import plain_message

CLOSED = "not allowed to read or write it; change its permissions, or give another path"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("captions.csv: 2 problems\n- one\n- two"), None),
        (ValueError("such as:\nfile_name,caption\ncat.jpg,a cat\n"), None),
        (OSError(5, "Input/output error"), None),
        (RuntimeError("it failed"), None),
        (KeyError("caption"), "KeyError: 'caption'"),
        (PermissionError(13, "Permission denied", "/a/it's"), f"/a/it's: {CLOSED}"),
        (PermissionError(1, "Operation not permitted", "/a/b", None, "/c"), f"/a/b: {CLOSED}"),
        (
            OSError(30, "Read-only file system", "/a/b"),
            "/a/b: its disk is read-only; have it mounted for writing, or give another path",
        ),
    ],
)
def test_a_message_keeps_its_lines_with_and_without_a_worker(error, message):
    message = message or str(error).strip()
    assert plain_message(error) == message
    try:
        raise error
    except type(error):
        wrapper = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(type(error)) as caught:
        wrapper.reraise()
    assert "Traceback" in str(caught.value)
    assert plain_message(caught.value) == message


def test_an_error_inside_an_error_is_the_last_one():
    text = (
        "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent):\n"
        "ValueError: first\n\nDuring handling of the above:\nValueError: a.jpg: second\n  line\n"
    )
    assert plain_message(ValueError(text)) == "a.jpg: second\n  line"
