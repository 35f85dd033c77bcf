"""The page is whole in itself, and can be read by everyone."""

import re
from itertools import pairwise
from pathlib import Path

import pytest
from hostile import TEXTS, make_hostile
from html_page import HtmlPage
from made_run import make_run, rankings, write_rows
from test_report_reading import change_settings, unfinished

from blip2ft.pages import COLOURS, readable
from blip2ft.report.report import HEAD, OURS, write_comparison, write_report
from blip2ft.report.templates import LONG, LONGEST, PAGE, fold
from blip2ft.training.run import read_lines, write_lines

STYLE = COLOURS + (PAGE / "style.css").read_text(encoding="utf-8")


def page_of(run: Path) -> HtmlPage:
    return HtmlPage(write_report(run).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> list[HtmlPage]:
    """A page of each kind: the tasks', a comparison, a hostile one, one of an unfinished run."""
    tmp_path = tmp_path_factory.mktemp("pages")
    runs = [make_run(tmp_path / task, task) for task in ("caption", "vqa", "retrieval")]
    found = [page_of(run) for run in runs]
    other = unfinished(make_run(tmp_path / "other", "caption"))
    found.append(page_of(other))
    both = write_comparison([runs[0], other], tmp_path / "both.html")
    found.append(HtmlPage(both.read_text(encoding="utf-8")))
    found.append(page_of(make_hostile(make_run(tmp_path / "hostile", "caption"))))
    return found


def test_a_page_needs_no_network_and_runs_one_script(pages):
    for page in pages:
        tags = {tag for tag, _ in page.tags}
        assert tags.isdisjoint({"link", "iframe", "object", "form", "base"})
        assert all(image["src"].startswith("data:image/jpeg;base64,") for image in page.all("img"))
        links = [a["href"] for a in page.all("a")]
        assert links
        assert all(link.startswith("#") for link in links)
        assert len([s for s in page.all("script") if s.get("type") != "application/json"]) == 1
        (policy,) = (a["content"] for t, a in page.tags if a.get("http-equiv"))
        assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")
        assert re.search(r"script-src 'sha256-[\w+/]{43}='", policy)


def test_a_page_can_be_read_by_those_who_dont_see_it(pages):
    for page in pages:
        levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))
        ids = [a["id"] for _, a in page.tags if "id" in a]
        assert len(ids) == len(set(ids))
        for name in ("href", "for", "aria-labelledby"):
            named = [a[name].split() for t, a in page.tags if name in a and t != "use"]
            assert {one.removeprefix("#") for names in named for one in names} <= set(ids)
        assert len(page.all("caption")) == len(page.all("table"))
        assert all(image["alt"] for image in page.all("img"))
        assert all(cell.get("scope") in ("col", "row") for cell in page.all("th"))
        assert {a["id"] for a in page.all("input")} <= {a["for"] for a in page.all("label")}
        assert page.all("html")[0]["lang"] == "en"
        assert [tag for tag, _ in page.tags].count("main") == 1
        assert all("aria-label" in a for _, a in page.tags if a.get("role") == "region")


def test_what_others_wrote_is_text(tmp_path):
    run = make_hostile(make_run(tmp_path / 'a "<b>run', "caption"))
    page = page_of(run)
    assert len(page.all("script")) == 2
    assert not any(name.startswith("on") for _, a in page.tags for name in a)
    assert 'a "<b>run' in page.text
    for text in TEXTS[:5]:
        assert text in page.text
    assert "\ufffdemordnilap" in page.text
    assert "nothing\ufffd, escape\ufffd[31m" in page.text
    assert "the end" in page.text
    whole = write_report(run).read_text(encoding="utf-8")
    assert not re.search("[\x00\x07\x1b\u202e\u2066]", whole)
    data = re.search(r'id="other-answers">(.*?)</script>', whole, re.DOTALL)[1]
    assert not re.search("[<>&']", data)


def test_a_long_text_is_folded_and_cut():
    assert fold("a\x00b") == ("a\ufffdb", "", 0)
    head, rest, more = fold("word " * 5000)
    assert head.endswith("word ")
    assert len(head) <= LONG
    assert len(head) + len(rest) == LONGEST
    assert more == 25_000 - LONGEST
    assert fold("x" * (LONG + 1)) == ("x" * LONG, "x", 0)
    assert readable("\ud800") == "\ufffd"


def test_what_a_page_tells_is_the_runs(made_run):
    page = page_of(made_run("caption"))
    for said in (
        "Scores on the test split",
        "0.454 → before, after 4.538",
        "83.3 % better",
        "Validation cider",
        "Gradient norm",
        "Most improved",
        "a red square number 0",
        "NVIDIA A100-SXM4-40GB",
        "optimizer.warmup_steps",
    ):
        assert said in re.sub(r"\s+", " ", page.text), said
    assert len(page.all("img")) == 12


def test_a_page_of_thousands_of_samples_stays_small(made_run):
    run = made_run("retrieval")
    for step in (0, 40):
        rows = rankings(run.parent / "photos", after=step > 0)
        many = [rows[i % 12] | {"image_id": f"{i:05d}"} for i in range(5000)]
        write_rows(run / "predictions" / f"test-{step:08d}.jsonl", many)
    write_rows(run / "log.jsonl", [{"step": n, "loss": 1 / n} for n in range(1, 20_001)])
    file = write_report(run)
    assert file.stat().st_size < 1_500_000
    page = HtmlPage(file.read_text(encoding="utf-8"))
    assert len(page.all("img")) <= 60
    assert "of 5,000" in page.text


def test_runs_that_lack_something_have_a_page(made_run):
    run = unfinished(made_run("caption"))
    assert "trained for 40 steps so far" in page_of(run).text
    for name in ("metrics.jsonl", "log.jsonl", "environment.json", "resources.json"):
        (run / name).unlink()
        page_of(run)
    text = page_of(run).text
    assert "There is no evaluation after training yet." in text
    assert "Scores" not in text


def test_a_model_that_is_evaluated_as_it_is_has_one_score(made_run):
    run = made_run("vqa")
    change_settings(run, evaluate_only=True)
    page = page_of(run)
    assert "nothing was trained" in page.text
    assert "→" not in page.text
    assert "Change" not in page.text


def test_answers_that_nothing_is_known_of_are_shown(made_run):
    run = made_run("vqa")
    change_settings(run, evaluate_only=True)
    path = run / "predictions" / "test-00000000.jsonl"
    write_lines(path, [row | {"answers": []} for row in read_lines(path)])
    write_lines(run / "metrics.jsonl", [{"step": 0, "split": "test"}])
    text = page_of(run).text
    assert "None of them is scored." in text
    assert "Scores on" not in text


def test_runs_of_other_splits_are_compared_with_a_warning(tmp_path):
    runs = [make_run(tmp_path / name, "caption") for name in ("one", "two")]
    change_settings(runs[1], data__test=None)
    rows = read_lines(runs[1] / "metrics.jsonl")
    write_lines(runs[1] / "metrics.jsonl", [r for r in rows if r["split"] == "validation"])
    text = write_comparison(runs, tmp_path / "out.html").read_text(encoding="utf-8")
    words = HtmlPage(text).text
    assert "They aren't of one split: one was scored on test, two was scored on validation" in words
    assert "Settings that differ" in words
    assert "data.test" in words
    assert "model.name" not in words


def test_a_page_is_known_as_ours(made_run):
    assert OURS.encode() in write_report(made_run("caption")).read_bytes()[:HEAD]


def variables() -> dict[str, dict[str, tuple[float, ...]]]:
    """The colours of the light and of the dark page, by their names."""
    dark = "".join(re.findall(r"prefers-color-scheme: dark\) \{ :root \{(.*?)\}", STYLE, re.DOTALL))
    light = STYLE
    for part in re.findall(r"@media \(prefers-color-scheme: dark\).*?\} \}", STYLE, re.DOTALL):
        light = light.replace(part, "")
    return {"light": colours_in(light), "dark": colours_in(dark)}


def colours_in(text: str) -> dict[str, tuple[float, ...]]:
    found = {}
    for name, digits in re.findall(r"--([\w-]+): #([0-9a-f]+);", text):
        digits = digits if len(digits) == 6 else "".join(2 * d for d in digits)
        found[name] = tuple(int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4))
    return found


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """As WCAG 2.2 has it: of 1 to 21."""

    def luminance(colour: tuple[float, ...]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_texts_and_drawings_stand_out(mode):
    found = variables()[mode]
    texts = set(re.findall(r"[^-]color: var\(--([\w-]+)\)", STYLE))
    assert {"ink", "quiet", "good"} <= texts
    for text in texts - {"card"}:
        for ground in ("page", "card", "mat"):
            assert contrast(found[text], found[ground]) >= 4.5, (text, ground)
    drawings = {name for name in found if name.startswith("series-")}
    assert len(drawings) == 8
    for drawing in drawings | {"good", "bad", "bar-even", "warning", "note"}:
        assert contrast(found[drawing], found["card"]) >= 3, drawing
    assert found.keys() == variables()["light"].keys()


def test_contrast_is_that_of_the_standard():
    black, white, grey = (0.0,) * 3, (1.0,) * 3, (0x77 / 255,) * 3
    assert contrast(black, white) == pytest.approx(21)
    assert contrast(grey, white) == pytest.approx(4.48, abs=0.01)
