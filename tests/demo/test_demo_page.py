"""The page, in a real browser."""

import json

import pytest

from blip2ft.demo.answering import BASE, Answering, decoding_of
from blip2ft.demo.page import make_page, open_page
from blip2ft.finetuned import load_mixed
from blip2ft.models.load import load_retriever

gr = pytest.importorskip("gradio")


@pytest.fixture
def answering(run_folder) -> Answering:
    adapters, processor, description = load_mixed({str(run_folder): 1.0})
    return Answering("<b>tiny</b>", adapters.model, processor, description, adapters)


@pytest.fixture
def photo(photo_folder):
    return str(photo_folder / "photo0.jpg")


def test_an_adapter_is_switched_for_one_answer(answering, photo, run_folder):
    decoding = decoding_of(1, 4, 1.0, 0)
    tuned = answering.caption(photo, "the photo of", str(run_folder), **decoding)
    base = answering.caption(photo, "the photo of", BASE, **decoding)
    assert answering.choices == [str(run_folder), BASE]
    assert tuned.output != base.output
    assert tuned == answering.caption(photo, "the photo of", str(run_folder), **decoding)


def test_a_question_needs_words_and_every_request_a_picture(answering, photo):
    with pytest.raises(ValueError, match="There is no question yet; write one"):
        answering.ask(photo, " ", None)
    for request in (answering.caption, answering.ask, answering.attend):
        with pytest.raises(ValueError, match="There is no picture yet; choose one"):
            request(None, "what?", None)


def test_a_temperature_draws_instead_of_searching():
    assert decoding_of(5, 30, 1.5, 0) == {
        "num_beams": 5,
        "max_new_tokens": 30,
        "length_penalty": 1.5,
    }
    drawn = decoding_of(5, 30, 1.5, 0.7)
    assert (drawn["num_beams"], drawn["do_sample"], drawn["temperature"]) == (1, True, 0.7)


def test_a_retriever_writes_nothing_but_shows_where_it_looks(retriever_folder, photo):
    model, processor = load_retriever(retriever_folder, objectives={"itc": 1.0, "itm": 1.0})
    answering = Answering("finder", model.eval(), processor)
    assert not answering.writes
    (everywhere, _), (_, told) = answering.attend(photo, "a red apple", None)
    assert everywhere.size == (48, 40)
    assert told.startswith("what of it speaks for: a red apple (probability of a match")


def test_the_page_captions_asks_attends_and_takes_reports(
    answering, photo, tmp_path, browser_page, monkeypatch
):
    searched = []

    def search(query, top):
        searched.append((query, top))
        return [(photo, "1.500")]

    page = make_page(answering, tmp_path / "reports", search)
    address = open_page(page, "127.0.0.1", None, wait=False)
    asked, errors = [], []
    browser_page.on("request", lambda request: asked.append(request.url))
    browser_page.on("pageerror", lambda error: errors.append(str(error)))
    try:
        browser_page.goto(address)
        assert browser_page.get_by_role("heading", name="<b>tiny</b>").is_visible()

        button = browser_page.get_by_role("button", name="Caption", exact=True)
        button.click()
        browser_page.get_by_text("There is no picture yet; choose one.").wait_for()

        broken = tmp_path / "broken.jpg"
        broken.write_bytes(b"no picture")
        upload(browser_page, photo)
        browser_page.get_by_label("Prompt").fill("the photo of")
        button.click()
        output = browser_page.get_by_label("Caption", exact=True).and_(
            browser_page.locator("textarea")
        )
        wait_for(lambda: output.input_value())
        said = output.input_value()

        browser_page.get_by_role("button", name="Report a bad answer").click()
        browser_page.get_by_label("What would be right?").fill("a <i>red</i> apple")
        browser_page.get_by_role("button", name="Report", exact=True).click()
        browser_page.get_by_text("Thank you. It is in").wait_for()
        row = json.loads((tmp_path / "reports" / "captions.jsonl").read_text())
        assert (row["caption"], row["output"]) == ("a <i>red</i> apple", said)

        browser_page.get_by_role("tab", name="Attention").click()
        upload(browser_page, photo)
        browser_page.get_by_role("button", name="Show where it looks").click()
        browser_page.get_by_text("all queries, heads and layers").first.wait_for()

        browser_page.get_by_role("tab", name="Search").click()
        browser_page.get_by_label("What to look for").fill("a red flag")
        browser_page.get_by_role("button", name="Search", exact=True).click()
        browser_page.get_by_text("1.500").first.wait_for()
        assert searched == [("a red flag", 24)]
    finally:
        page.close()
    assert errors == []
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []


def upload(page, file):
    chosen = page.locator("[role=tabpanel]:visible input[type=file]").first
    chosen.set_input_files(file)
    page.locator("[role=tabpanel]:visible").get_by_role("button", name="Clear").wait_for()


def wait_for(condition, seconds=20):
    import time

    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing came"
        time.sleep(0.1)
