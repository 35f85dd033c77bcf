"""The page, in a real browser."""

import html
import json
import threading
import time
from contextlib import contextmanager

import httpx
import pytest
from PIL import Image

from blip2ft.demo import page as module
from blip2ft.demo.answering import BASE, Answering
from blip2ft.demo.page import make_page
from blip2ft.demo.server import address_of, folder_of_uploads, listen, make_server
from blip2ft.finetuned import load_mixed

# Gradio counts its requests, now and then, by options that this pandas calls old
pytestmark = [
    pytest.mark.filterwarnings("ignore:'future.no_silent_downcasting'"),
    pytest.mark.filterwarnings("ignore:The copy keyword is deprecated"),
]


@pytest.fixture
def photo(photo_folder):
    return str(photo_folder / "photo0.jpg")


@pytest.fixture
def answering(run_folder) -> Answering:
    adapters, processor, description = load_mixed({str(run_folder): 1.0})
    runs = {"birds": str(run_folder)}
    descriptions = {"birds": description, None: {"prompt": "a picture of"}}
    return Answering("<b>tiny</b> $$x$$", adapters.model, processor, descriptions, adapters, runs)


@contextmanager
def served(answering, reports, search=None):
    """The address of the page, and the folder of what is uploaded to it."""
    with listen("127.0.0.1", None) as listener, folder_of_uploads() as folder:
        server = make_server(make_page(answering, reports, search), listener, folder)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield address_of(listener)[0], folder
        finally:
            server.should_exit = True
            thread.join()


def test_the_page_captions_asks_attends_searches_and_takes_reports(
    answering, photo, tmp_path, browser_page
):
    searched, asked, errors = [], [], []

    def search(query):
        searched.append(query)
        return [(Image.new("RGB", (40, 30), "red"), "1.50 <i>flag</i>.jpg")]

    browser_page.on("request", lambda request: asked.append(request.url))
    browser_page.on("pageerror", lambda error: errors.append(str(error)))
    with served(answering, tmp_path / "reports", search) as (address, folder):
        open_page(browser_page, address)
        assert browser_page.get_by_role("heading", name="<b>tiny</b> $$x$$").is_visible()
        prompt = browser_page.get_by_label("Prompt")
        assert prompt.input_value() == "the photo of"

        click(browser_page, "Caption")
        assert (
            message(browser_page, "There is no picture") == "There is no picture yet; choose one."
        )
        broken = tmp_path / "<u>x.jpg"
        broken.write_bytes(b"<script>alert(1)</script>")
        upload(browser_page, broken)
        click(browser_page, "Caption")
        told = message(browser_page, "x.jpg: not an image that can be read")
        assert "it starts with b'<script>alert(1)'" in told

        browser_page.get_by_role("button", name="Remove Image").click()
        upload(browser_page, photo)
        prompt.fill("a" * 2001)
        click(browser_page, "Caption")
        message(browser_page, "The prompt has 2,001 characters; up to 2,000 are taken.")
        prompt.fill("the photo of")
        said = written(browser_page, "Caption")

        browser_page.get_by_role("button", name="Report a bad answer").click()
        browser_page.get_by_label("What would be right?").fill("a <i>red</i> apple")
        click(browser_page, "Report")
        browser_page.get_by_text("Thank you. It is kept in captions.jsonl.").wait_for()
        row = json.loads((tmp_path / "reports" / "captions.jsonl").read_text())
        assert (row["caption"], row["output"]) == ("a <i>red</i> apple", said)
        assert (row["adapter"], row["decoding"]["num_beams"]) == ("birds", 2)
        click(browser_page, "Report")
        message(browser_page, "There is no answer to report; each can be once.")

        browser_page.get_by_label("Adapter").click()
        browser_page.get_by_role("option", name=BASE).click()
        wait_for(lambda: prompt.input_value() == "a picture of")
        assert written(browser_page, "Caption", before=said) != said

        browser_page.get_by_role("tab", name="Question").click()
        browser_page.get_by_label("Question", exact=True).last.fill("what is left?")
        written(browser_page, "Answer")

        browser_page.get_by_role("tab", name="Attention").click()
        browser_page.get_by_label("Text, if you like").fill("a <i>cat</i>")
        click(browser_page, "Show where it looks")
        browser_page.get_by_text("“a <i>cat</i>”: mean probability of its tokens").wait_for()

        browser_page.get_by_role("tab", name="Search").click()
        browser_page.get_by_label("What to look for").fill("a red flag")
        click(browser_page, "Search")
        browser_page.get_by_text("1.50 <i>flag</i>.jpg").first.wait_for()
        assert searched == ["a red flag"]
        assert any(folder.rglob("photo0.jpg"))
    assert not folder.exists()
    assert errors == []
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []


def test_one_model_call_runs_at_a_time_and_others_wait_or_are_told_to(
    answering, photo, tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "WAITING", 2)
    running, most = [], []

    def slow(query):
        running.append(query)
        most.append(len(running))
        time.sleep(0.3)
        running.remove(query)
        return []

    with served(answering, tmp_path, slow) as (address, _), httpx.Client(base_url=address) as web:
        search, attend = function(web, inputs=1, outputs=1), function(web, inputs=3, outputs=2)
        first = [join(web, search, [word]) for word in ("one", "two")]
        wait_for(lambda: running)
        results = [result(web, session) for session in first]
        assert [r["success"] for r in results] == [True, True]
        assert max(most) == 1
        many = [join(web, search, [str(number)]) for number in range(5)]
        assert None in many  # the queue was full
        others = [result(web, session) for session in many if session]
        looked = result(web, join(web, attend, [None, "a cat", "birds"]))
        assert all(r["success"] for r in others)
        assert "There is no picture yet" in looked["output"]["error"]


def test_what_was_not_foreseen_is_told_and_the_page_goes_on(
    answering, photo, tmp_path, monkeypatch, caplog
):
    def fail(query):
        if query == "disk":
            raise OSError(28, "No space left on device", "/secret")
        raise RuntimeError("/secret")

    with served(answering, tmp_path, fail) as (address, _), httpx.Client(base_url=address) as web:
        search = function(web, inputs=1, outputs=1)
        full = result(web, join(web, search, ["disk"]))
        other = result(web, join(web, search, ["else"]))
        assert html.unescape(full["output"]["error"]) == (
            "It couldn't be kept (No space left on device); the terminal of blip2ft demo tells "
            "more."
        )
        assert html.unescape(other["output"]["error"]) == (
            "An error that wasn't foreseen; the terminal of blip2ft demo shows it."
        )
        assert web.get("/").status_code == 200
        assert web.get("/gradio_api/file=/etc/passwd").status_code == 403
    assert "RuntimeError: /secret" in caplog.text


def open_page(page, address):
    # the heartbeat is the last thing that the page starts
    with page.expect_response(lambda response: "heartbeat" in response.url):
        page.goto(address)
    page.get_by_role("tab").first.wait_for()


def click(page, name):
    page.get_by_role("button", name=name, exact=True).locator("visible=true").click()


def message(page, part):
    """The message with that part, which is then closed: it covers some of the page."""
    told = page.get_by_text(part)
    told.wait_for()
    text = told.inner_text()
    page.locator(".toast-close").click()
    told.wait_for(state="hidden")
    return text


def upload(page, file):
    page.locator("input[type=file]").first.set_input_files(file)
    page.get_by_role("button", name="Remove Image").wait_for()


def written(page, name, before=""):
    click(page, name)
    output = page.get_by_label(name, exact=True).and_(page.locator("textarea"))
    wait_for(lambda: output.input_value() not in ("", before))
    return output.input_value()


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing came"
        time.sleep(0.1)


def function(web, *, inputs, outputs):
    """The number of the last function with so many of them."""
    fitting = [
        found["id"]
        for found in web.get("/config").json()["dependencies"]
        if (len(found["inputs"]), len(found["outputs"])) == (inputs, outputs)
    ]
    return fitting[-1]


def join(web, number, data):
    """The session of a request that waits now, None where the queue is full."""
    session = f"session{time.monotonic_ns()}"
    body = {"data": data, "fn_index": number, "session_hash": session}
    response = web.post("/gradio_api/queue/join", json=body)
    return session if response.status_code == 200 else None


def result(web, session):
    url = f"/gradio_api/queue/data?session_hash={session}"
    with web.stream("GET", url, timeout=20) as events:
        for line in events.iter_lines():
            message = json.loads(line.removeprefix("data:") or "{}")
            if message.get("msg") == "process_completed":
                return message
    raise AssertionError("nothing came")
