"""The docs as a site."""

import os
import re
import shutil
import subprocess

import pytest
from code_blocks import ROOT

SOURCE = " ".join(
    re.sub(r"\s+", " ", re.sub(r'"\s*f?"', "", path.read_text(encoding="utf-8")))
    for path in sorted((ROOT / "blip2ft").rglob("*.py"))
)
TROUBLES = re.findall(r"^### `(.+)`$", (ROOT / "docs" / "troubleshooting.md").read_text(), re.M)
OF_OTHERS = {"CUDA out of memory"}


def test_the_site_is_built_without_a_warning(tmp_path):
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    done = subprocess.run(
        ["zensical", "build", "--strict"],
        cwd=tmp_path,
        env={**os.environ, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert (tmp_path / "build" / "site" / "first-run.html").is_file()


def test_every_page_is_in_the_menu():
    menu = (ROOT / "mkdocs.yml").read_text()
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert pages == set(re.findall(r"[\w-]+\.md", menu))


@pytest.mark.parametrize("message", [m for m in TROUBLES if m not in OF_OTHERS])
def test_a_message_that_is_explained_is_one_of_ours(message):
    assert message in SOURCE
