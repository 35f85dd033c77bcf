"""What people answered to a question, and what they could choose from: checked, as text."""

import ast
import sys
from typing import Any

from blip2ft.data.entries import Problems, check_token


def check_choices(
    fields: dict[str, Any], place: str, problems: Problems
) -> tuple[tuple[str, ...], int | None]:
    """The choices of a question and the number of the right one."""
    choices = check_texts("choice", fields.get("choices"), place, problems)
    correct = fields.get("correct_choice")
    if isinstance(correct, str) and correct.strip().isdecimal():
        correct = int(correct)  # a table of text
    if correct is None or correct == "":
        return choices, None
    if type(correct) is int and 0 <= correct < len(choices):
        return choices, correct
    problems.add(
        "the correct choice isn't one of the choices",
        f"{place}: {correct!r} of {len(choices)}",
        "It is the number of a choice, from 0.",
    )
    return choices, None


def check_texts(what: str, value: Any, place: str, problems: Problems) -> tuple[str, ...]:
    """One text or a list of them; a list may be written in a cell of a table."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = written_list(value.strip())
    found = []
    for text in flat(value):
        if not isinstance(text, str):
            problems.add(
                f"the {what} isn't text",
                f"{place}: {text!r}",
                "It is a string, a list of strings, or of objects with 'answer' as in VQAv2.",
            )
            text = repr(text)
        check_token(what, text, place, problems)
        found.append(sys.intern(text.strip()))  # millions of answers are few words
    return tuple(found)


def flat(value: Any) -> list[Any]:
    """What a value holds, through lists and through objects with `answer`, as VQAv2 has them."""
    if isinstance(value, dict) and "answer" in value:
        return flat(value["answer"])
    if isinstance(value, list | tuple):
        return [inner for item in value for inner in flat(item)]
    return [] if value is None else [value]


def written_list(cell: str) -> str | list[str]:
    """The texts of a list written in a cell, or the cell itself where it isn't one."""
    try:
        found = ast.literal_eval(cell)
    except (ValueError, SyntaxError):
        return cell
    texts = isinstance(found, list) and all(isinstance(text, str) for text in found)
    return found if texts else cell
