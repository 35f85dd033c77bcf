"""The pages in a real browser."""

import pytest
from hostile import TEXTS, make_hostile
from made_run import make_run

from blip2ft.report.report import write_comparison, write_report
from blip2ft.training.run import read_lines


@pytest.fixture
def opened(browser):
    """Open a page; what its console says, and what it asks the network for, fails the test."""
    contexts, said = [], []

    def open_page(file, **options):
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}} | options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        own = file.as_uri()
        page.on(
            "request",
            lambda sent: said.append(sent.url) if not sent.url.startswith(("data:", own)) else None,
        )
        page.goto(own)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []


@pytest.fixture
def hostile(tmp_path):
    return write_report(make_hostile(make_run(tmp_path / "<i>run", "caption")))


def test_hostile_texts_are_shown_as_text(opened, hostile):
    page = opened(hostile)
    assert page.title() == "<i>run · Captioning"
    assert page.locator("script").count() == 2
    assert page.locator("b b, h1 i, dd img").count() == 0
    shown = page.locator("dd").all_text_contents()
    for text in TEXTS[:5]:
        assert any(text in said for said in shown), text
    assert not page.evaluate("Object.keys(document.body).some((name) => name.startsWith('on'))")
    assert page.locator("img").count() == page.locator(".sample").count() > 12
    assert page.evaluate("[...document.images].every((image) => image.naturalWidth > 0)")


def test_a_search_finds_answers_with_and_without_a_picture(opened, hostile):
    page = opened(hostile)
    rows = read_lines(hostile.parent / "predictions" / "test-00000040.jsonl")
    count, words = page.locator("#count"), page.get_by_label("Find answers by words")
    pictured = page.locator(".sample:visible").count()
    assert count.text_content() == (
        f"{pictured} of {len(rows)} answers are shown; a search looks at all"
    )
    for asked in (
        "</SCRIPT><script>alert(2)",
        "7 * {{",
        "\u05e9\u05dc\u05d5\u05dd",
        "paper",
        "no such",
    ):
        words.fill(asked)
        number = sum(
            all(word in f"{row}".lower() for word in asked.lower().split()) for row in rows
        )
        assert count.text_content().startswith(f"{number} of {len(rows)} answers"), asked
        listed = page.locator("#found .sample").count()
        assert page.locator(".sample:visible").count() == number or listed == 40
        assert (number > 0) == (asked != "no such")
    words.fill("reference")  # a label, and in no answer
    assert count.text_content().startswith("0 of ")
    words.fill("")
    assert page.locator(".sample:visible").count() == pictured
    assert page.locator("#others").is_hidden()
    assert page.locator(".group:visible").count() == page.locator(".group").count() - 1


def test_a_page_is_worked_by_keys_alone(opened, hostile):
    page = opened(hostile)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.locator(".skip").bounding_box()["x"] >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        on = page.evaluate("document.activeElement.id || document.activeElement.tagName")
        reached.add(on)
        if on == "words":
            break
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        assert page.evaluate(outline) == "solid", on
    assert {"SUMMARY", "words"} <= reached
    folded = page.locator("details").first
    folded.locator("summary").focus()
    page.keyboard.press("Enter")
    assert folded.get_attribute("open") is not None


@pytest.mark.parametrize("width", [390, 320])
def test_a_page_fits_a_phone(opened, hostile, tmp_path, width):
    runs = [make_run(tmp_path / f"{'a-long-name-' * 5}{i}", "vqa") for i in range(3)]
    both = write_comparison(runs, tmp_path / "both.html")
    for file in (hostile, both):
        page = opened(file, viewport={"width": width, "height": 800})
        page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, file


def test_a_page_is_dark_where_the_reader_wants_it(opened, hostile):
    ground = "getComputedStyle(document.body).backgroundColor"
    line = "getComputedStyle(document.querySelector('.chart svg path[style*=series]')).stroke"
    light, dark = (opened(hostile, color_scheme=scheme) for scheme in ("light", "dark"))
    assert light.evaluate(ground) == "rgb(246, 246, 244)"
    assert dark.evaluate(ground) == "rgb(21, 21, 23)"
    assert light.evaluate(line) != dark.evaluate(line)


def test_a_page_without_script_has_all_but_the_search(opened, hostile):
    page = opened(hostile, java_script_enabled=False)
    assert page.locator("#search").is_hidden()
    assert page.locator(".sample:visible").count() > 12
