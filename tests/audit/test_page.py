"""The page is whole in itself, and what others wrote is text in it and nothing else."""

import re
from pathlib import Path

import pytest
from html_page import HtmlPage
from pictures import encoded, picture

from blip2ft.audit.audit import Report, audit
from blip2ft.audit.page import LISTED, PICTURED, write_page
from blip2ft.audit.reading import Source
from blip2ft.audit.table import as_text

EVIL = '<script>alert("1")</script> & \u202eco\x1b[31m'


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(4):
        Path(f"{number}.jpg").write_bytes(encoded(picture(number)))


def report(rows: str, **asked) -> Report:
    Path("x.csv").write_text("image,caption\n" + rows)
    return audit({None: [Source("x.csv")]}, image_size=64, **asked)


def page_of(found: Report) -> HtmlPage:
    write_page(Path("report.html"), found)
    return HtmlPage(Path("report.html").read_text(encoding="utf-8"))


def test_a_page_needs_no_network_and_no_script():
    Path("copy.jpg").write_bytes(Path("1.jpg").read_bytes())
    page = page_of(report("0.jpg,a dog\n1.jpg,17\ncopy.jpg,a cat\n9.jpg,a cow\n"))
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "a", "form"})
    sources = [image["src"] for image in page.all("img")]
    assert len(sources) == 3  # of the text, and of both copies
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    (policy,) = (a["content"] for t, a in page.tags if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'")
    for said in ("1 error", "2 warnings", "No such image file", "x.csv:5", "copy.jpg"):
        assert said.lower() in page.text.lower()


def test_what_others_wrote_is_text():
    rows = f'0.jpg,"{EVIL.replace(chr(34), chr(34) * 2)}"\n"<img src=x>.jpg",a\n'
    found = report(rows)
    page = page_of(found)
    assert "script" not in {tag for tag, _ in page.tags}
    assert all(image["src"].startswith("data:") for image in page.all("img"))
    assert '<script>alert("1")</script> & ?co?[31m' in page.text
    assert "<img src=x>.jpg" in page.text
    table = as_text(found)
    assert "\x1b" not in table
    assert "\u202e" not in table


def test_many_findings_are_counted_and_the_first_shown():
    rows = "".join(f"{n % 4}.jpg,{n}\n" for n in range(LISTED + PICTURED + 5))
    found = report(rows)
    page = page_of(found)
    assert len(page.all("img")) == PICTURED
    assert re.search(r"and 5 more in findings\.jsonl", page.text)
    assert f"{LISTED + PICTURED + 5} warnings" in page.text
    assert f"and {LISTED + PICTURED + 2} more" in as_text(found)


def test_nothing_found_is_said():
    found = report("".join(f"{n}.jpg,a dog {n}\n" for n in range(4)))
    assert found.findings == []
    assert "Nothing was found" in page_of(found).text
    assert "0 errors, 0 warnings, 0 notes; 4 images in" in as_text(found)


def test_a_broken_image_is_not_opened_again(monkeypatch):
    def opened(*_):
        raise AssertionError("opened")

    Path("0.jpg").write_bytes(b"no image")
    found = report("0.jpg,17\n")
    assert [finding.kind for finding in found.findings] == ["unreadable", "wordless"]
    monkeypatch.setattr("blip2ft.audit.page.thumbnail", opened)
    page_of(found)


def test_an_image_that_went_meanwhile_is_listed():
    found = report("0.jpg,17\n")
    Path("0.jpg").unlink()
    page = page_of(found)
    assert page.all("img") == []
    assert "x.csv:2" in page.text


def test_names_that_are_no_utf_8_are_told():
    name = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    Path("set").mkdir()
    Path("set", name).write_bytes(b"no image")
    found = audit({None: [Source("set")]}, out="out")
    write_page(Path("report.html"), found)
    assert "caf?.jpg" in as_text(found)
    assert "caf\\udce9.jpg" in Path("out/findings.jsonl").read_text()
