"""`blip2ft card` as it is typed."""

import pytest
from huggingface_hub import ModelCard

from blip2ft.card.file import write_card


@pytest.fixture
def run(made_run):
    return made_run("caption")


def test_a_card_is_printed_and_what_it_lacks_is_listed_at_the_end(blip2ft_main, run):
    status, out, err = blip2ft_main("card", run, "--say", "license=mit", "--repo", "anna/birds")
    assert status == 0
    card = ModelCard(out)
    assert card.data.license == "mit"
    assert "blip2ft caption photo.jpg --model anna/birds" in out
    assert err.startswith("the card lacks what only you know; say it with --say QUESTION=ANSWER")
    assert "\n  developers        Who made it?\n" in err
    assert "\n  license " not in err


def test_answers_of_flags_go_over_those_of_the_file(blip2ft_main, run, tmp_path):
    about = tmp_path / "about.yaml"
    about.write_text("license: mit\ndevelopers: Anna\n")
    _, out, _ = blip2ft_main("card", run, "--about", about, "--say", "license=apache-2.0")
    assert ModelCard(out).data.license == "apache-2.0"
    assert "**Developed by:** Anna" in out


def test_the_questions_are_written_to_be_filled_in(blip2ft_main, run, tmp_path):
    about = tmp_path / "about.yaml"
    words = ("card", run, "--ask", "--out", about)
    assert blip2ft_main(*words, "--say", "license=mit") == (0, f"{about}\n", "")
    text = about.read_text()
    assert "# Who made it?\ndevelopers:\n" in text
    assert "\nlicense:" not in text
    status, _, err = blip2ft_main(*words)
    assert (status, err.count("\n")) == (2, 1)
    assert f"{about} is there already and isn't overwritten; choose another --out" in err
    filled = text.replace("developers:", "developers: Anna").replace("country:", "country: FRA")
    about.write_text(filled)
    _, out, err = blip2ft_main("card", run, "--about", about)
    assert "**Developed by:** Anna" in out
    assert "developers" not in err


def test_with_every_answer_nothing_is_lacking(blip2ft_main, run, said, tmp_path):
    words = [f"{name}={one}" for name, value in said.items() for one in _list(value)]
    words = [option for word in words for option in ("--say", word)]
    status, out, err = blip2ft_main("card", run, *words, "--out", tmp_path / "README.md")
    assert (status, err) == (0, "")
    assert out == f"{tmp_path}/README.md\nnothing is missing that only you know\n"


def _list(value):
    return value if isinstance(value, list) else [value]


def test_only_an_earlier_card_that_nobody_changed_is_replaced(blip2ft_main, run, tmp_path):
    out = tmp_path / "README.md"
    for license in ("mit", "apache-2.0"):
        words = ("card", run, "--say", f"license={license}", "--out", out)
        assert blip2ft_main(*words)[0] == 0
        assert ModelCard(out.read_text()).data.license == license
    changed = out.read_text().replace("apache-2.0", "cc0-1.0")
    out.write_text(changed)
    status, _, err = blip2ft_main("card", run, "--out", out)
    assert (status, err.count("\n")) == (2, 1)
    assert "was changed since blip2ft card wrote it, and isn't overwritten" in err
    assert out.read_text() == changed
    out.write_text("# Mine\n")
    status, _, err = blip2ft_main("card", run, "--out", out)
    assert status == 2
    assert "is no card of blip2ft card and isn't overwritten; choose another with --out" in err
    assert out.read_text() == "# Mine\n"
    status, _, err = blip2ft_main("card", run, "--out", tmp_path)
    assert status == 2
    assert f"is a folder; name a file, such as --out {tmp_path}/README.md" in err


def test_a_card_is_written_whole_with_its_mark_behind(tmp_path):
    write_card(tmp_path / "new" / "README.md", "# A\n")
    text = (tmp_path / "new" / "README.md").read_text()
    assert text.startswith("# A\n\n<!-- blip2ft card ")
    assert text.count("\n") == 3


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--say", "licence=mit"), "did you mean 'license'?"),
        (("--about", "gone.yaml"), "gone.yaml: there is no such file; blip2ft card RUN --ask"),
        (("--by", "grop"), "no record has a field 'grop'; did you mean group?"),
        (("--sya", "license=mit"), "did you mean --say?"),
    ],
)
def test_what_can_not_be_is_one_line(blip2ft_main, run, options, told):
    status, out, err = blip2ft_main("card", run, *options)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert told in err


def test_what_looks_private_is_pointed_out(blip2ft_main, run, monkeypatch):
    monkeypatch.setattr("blip2ft.publish.private._user", lambda: "annabird")
    status, _, err = blip2ft_main("card", run, "--say", "known_limits=see hf_" + "a" * 30)
    assert status == 0
    assert "looks private: card, line " in err
    assert "a token of the hub" in err
