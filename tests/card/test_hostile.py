"""Text of the data, and of a person, can't break the Markdown, HTML or metadata of a card."""

import json
import re

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from blip2ft.card.card import model_card
from blip2ft.card.markdown import LONGEST, block, code, own_words, plain, shown_source, table

HOSTILE = [
    "<script>alert(1)</script>",
    "</details><!-- ",
    "a | b \\| c",
    "# Head\n\n---\n- x",
    "---\nlicense: mit\n---",
    "```\ncode",
    "[x](javascript:alert(1)) ![y](http://evil.example/z.png)",
    "{{ 7 * 7 }} {% raw %}",
    "*a* _b_ ~~c~~ `d`",
    "\u202eesrever",
    "tab\tnul\x00bell\x07",
    "1. one",
    "=====",
    "&lt;b&gt; &#60;i&#62;",
    "@everyone http://evil.example",
    "",
    "x" * 10_000,
]


def render(text):
    renderer = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    return renderer.parse(text)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_text_in_a_paragraph_and_in_a_cell_is_text(text):
    for shown in (plain(text), table(["a", "b"], [[plain(text), "2"]])):
        tokens = render(shown)
        inline = [child for token in tokens for child in token.children or ()]
        assert {token.type for token in inline} == {"text"} or {"text", "text_special"} >= {
            token.type for token in inline
        }
        assert not [
            token for token in tokens if token.type.startswith(("html", "heading", "fence"))
        ]
    cells = [t.content for t in render(table(["a", "b"], [[plain(text), "2"]])) if t.children]
    assert len(cells) == 4
    assert cells[3] == "2"


def test_a_reader_sees_what_was_written():
    for text in ("a | b", "<b>x</b> & y", "2*3_4", "[x](y)", "1. one", "- dash", "3.11", "é 鳥 🐦"):
        (token,) = [t for t in render(plain(text)) if t.children]
        assert "".join(child.content for child in token.children) == text


def test_long_texts_are_cut_and_empty_ones_named():
    assert len(plain("x" * 10_000)) == LONGEST
    assert plain("x" * 10_000).endswith("…")
    assert plain(" \n\u202e") == "(nothing)"


def test_code_holds_any_ticks():
    for text in ("a`b", "``", "`", "a\nb", "x"):
        (token,) = [t for t in render(code(text)) if t.children]
        assert [child.type for child in token.children] == ["code_inline"]
        assert token.children[0].content == " ".join(text.split())
    for text in ("a\n```\nb", "~~~"):
        (token,) = render(block("bibtex", text))
        assert (token.type, token.content) == ("fence", f"{text}\n")


def test_of_a_source_elsewhere_only_the_name_stays():
    assert shown_source("data/photos/train.csv") == "data/photos/train.csv"
    assert shown_source("anna/birds") == "anna/birds"
    assert shown_source("https://example.org/x.tar") == "https://example.org/x.tar"
    for path in ("/home/anna/x.csv", "~/x.csv", "../x.csv", "C:\\Anna\\x.csv", "\\\\nas\\x.csv"):
        assert shown_source(path) == "x.csv"


def test_own_words_keep_links_and_lose_html():
    text = "*Look* at <https://example.org>, <a@b.org> or [x](https://e.org)."
    assert own_words(text) == text
    assert own_words("<img src=x> a < b <!--") == "&lt;img src=x> a &lt; b &lt;!--"


@pytest.mark.parametrize("task", ["caption", "vqa", "retrieval"])
def test_a_card_of_hostile_data_has_the_outline_of_any_other(made_run, task):
    run = made_run(task)
    harmless = model_card(run, {}).text
    for path in sorted((run / "predictions").iterdir()):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for number, row in enumerate(rows):
            text = HOSTILE[number % len(HOSTILE)] or "x"
            row["fields"] = {"<b>|*": text[:80] if number < 9 else "x"}
            for key in ("caption", "answer"):
                if key in row:
                    row[key] = text
            key = "answers" if task == "vqa" else "references"
            row[key] = [f"{text} {number}"] * len(row[key])
            if "question" in row:
                row["question"] = text
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    card = model_card(run, {"developers": "</details> <!-- <script>", "name": "a\n---\nb: [c"})
    head, body = (ModelCard(card.text).data.to_dict(), card.text.split("\n---\n", 1)[1])
    assert head["model-index"][0]["name"] == "a --- b: [c"
    tokens, before = render(body), render(harmless.split("\n---\n", 1)[1])
    headings = [t.tag for t in tokens if t.type == "heading_open"]
    assert headings == [t.tag for t in before if t.type == "heading_open"]
    html = "".join(t.content for t in tokens if t.type == "html_block")
    assert set(re.findall(r"</?(\w+)", html)) <= {"details", "summary"}
    inline = [child.type for t in tokens for child in t.children or ()]
    assert "html_inline" not in inline
    assert "image" not in inline
    links = {c.attrs["href"] for t in tokens for c in t.children or () if c.type == "link_open"}
    known = {c.attrs["href"] for t in before for c in t.children or () if c.type == "link_open"}
    assert links == known


def test_hostile_settings_are_text_in_the_metadata_too(made_run):
    run = made_run("caption")
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["data"]["test"]["source"] = "photos/a: [b\n---\nlicense: mit.csv"
    settings["prompt"] = "a `photo` of"
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    card = ModelCard(model_card(run, {}).text)
    assert card.data.license is None
    assert card.data.eval_results[0].dataset_name == "photos/a: [b --- license: mit.csv"
