"""The docs as a site."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from code_blocks import ROOT

SOURCE = " ".join(
    re.sub(r"\s+", " ", re.sub(r'"\s*f?"', "", path.read_text(encoding="utf-8")))
    for path in sorted((ROOT / "blip2ft").rglob("*.py"))
)
TROUBLES = re.findall(r"^### `(.+)`$", (ROOT / "docs" / "troubleshooting.md").read_text(), re.M)
OF_OTHERS = {"CUDA out of memory"}


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site as it is built; it has to be without a warning."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "docs", folder / "docs")
    shutil.copy(ROOT / "mkdocs.yml", folder)
    done = subprocess.run(
        ["zensical", "build", "--strict"],
        cwd=folder,
        env={**os.environ, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return folder / "build" / "site"


@pytest.fixture(scope="module")
def address(site) -> Iterator[str]:
    """Where the site is served, on loopback."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site))
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_site_has_a_page_for_each_file(site):
    names = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert {path.stem for path in site.glob("*.html")} == names | {"404"}


def test_pages_fit_a_phone_show_their_pictures_and_ask_nobody_else(site, address, browser):
    """One half of them in light, the other in dark."""
    asked, broken = [], []
    names = sorted(path.name for path in site.glob("*.html"))
    empty = "images => images.filter(i => !(i.complete && i.naturalWidth)).map(i => i.src)"
    for scheme, half in (("light", names[::2]), ("dark", names[1::2])):
        page = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme=scheme)
        page.on("request", lambda request: asked.append(request.url))
        page.on("response", lambda a: a.status < 400 or broken.append(a.url))
        page.on("pageerror", lambda error: broken.append(str(error)))
        for name in half:
            page.goto(f"{address}/{name}")
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
            assert page.locator("article h1").is_visible()
            assert page.locator("article img").evaluate_all(empty) == []
        page.close()
    assert broken == []
    assert {url for url in asked if not url.startswith((f"{address}/", "data:", "blob:"))} == set()


def test_the_search_finds_a_message(address, browser_page):
    asked = []
    browser_page.on("request", lambda request: asked.append(request.url))
    with browser_page.expect_response("**/search.json"):
        browser_page.goto(f"{address}/index.html")
    box = browser_page.get_by_role("combobox")
    for _ in range(20):  # until the page's script listens to keys
        browser_page.keyboard.press("Control+k")
        browser_page.wait_for_timeout(250)
        if box.is_visible():
            break
    box.fill("whatever the image")
    found = browser_page.get_by_role("option").first
    assert "nothing of the image reaches" in found.inner_text()
    browser_page.keyboard.press("Enter")
    browser_page.wait_for_url("**/troubleshooting.html*")
    assert all(url.startswith((address, "blob:", "data:")) for url in asked)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "data/README.md"])
def test_links_outside_the_site_lead_somewhere(name):
    page = ROOT / name
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{name} links to {target}"


def test_every_page_is_in_the_menu():
    menu = (ROOT / "mkdocs.yml").read_text()
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert pages == set(re.findall(r"[\w-]+\.md", menu))


@pytest.mark.parametrize("message", [m for m in TROUBLES if m not in OF_OTHERS])
def test_a_message_that_is_explained_is_one_of_ours(message):
    assert message in SOURCE
