"""A real browser for the tests of pages: the Chromium of this machine."""

import shutil
from collections.abc import Iterator

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@pytest.fixture(scope="session")
def browser() -> Iterator:
    """A headless Chromium; tests are skipped where this machine has none."""
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"no browser is installed ({', '.join(NAMES)})")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        # without its sandbox, which containers have no rights for; the pages are our own
        chromium = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def browser_page(browser) -> Iterator:
    """A fresh page, 1200 pixels wide."""
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    yield page
    page.close()
