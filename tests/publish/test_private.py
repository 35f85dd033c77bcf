"""What is private: found by file and line, and taken out of what is ours."""

import socket

import pytest

from blip2ft.publish.private import leaks, of_this_machine, scrub, scrub_text

PATH = "a path of a machine"


def found(text, name="run/x.json", known=None, allowed=()):
    return list(leaks(name, text, known or {}, allowed))


@pytest.mark.parametrize(
    "text",
    [
        "/home/anna/photos/1.jpg",
        '{"source": "/home/anna/photos/1.jpg"}',
        "--output=/home/anna/photos/1.jpg",
        "file:///home/anna/photos/1.jpg",
        "server:/home/anna/photos/1.jpg",
        "(/home/anna/photos/1.jpg)",
        "/Users/anna/photos/1.jpg",
        "/mnt/nvme/1.jpg",
        "/scratch/anna/*.tar",
        r"C:\Users\anna\1.jpg",
    ],
)
def test_a_path_of_any_machine_is_found(text):
    (told,) = found(f"first\n{text} more")
    assert told.startswith("run/x.json, line 2: ")
    assert told.endswith(f"({PATH})")


@pytest.mark.parametrize(
    "text",
    [
        "https://huggingface.co/home/anna/birds",
        "a dog and/or a cat",
        "data/photos/train.csv",
        "./data/mnt/x",
        "</tmp/x>",
        "/usr/bin/env python",
        "1/2 and 3/4",
        "/home",
        "//tmp/x",
    ],
)
def test_what_only_looks_like_a_path_is_none(text):
    assert found(text) == []


@pytest.mark.parametrize(
    ("secret", "what"),
    [
        ("hf_" + "A1" * 17, "a token of the hub"),
        ("sk-proj-" + "a1" * 12, "an API key"),
        ("AKIA" + "A1" * 8, "an API key"),
        ("AIza" + "b" * 35, "an API key"),
        ("ghp_" + "c" * 36, "a token of GitHub"),
        ("eyJ" + "a" * 12 + ".eyJ" + "b" * 12 + ".sig", "a signed token"),
        ("-----BEGIN RSA PRIVATE KEY-----", "a private key"),
        ("https://anna:geheim@example.org/x", "a password in an address"),
        ("https://s3.example.org/x?X-Amz-Signature=0123456789", "a signed address"),
    ],
)
def test_a_secret_is_found_and_not_repeated(secret, what):
    (told,) = found(f"a\nb\nkey {secret}")
    assert told.startswith("run/x.json, line 3: ")
    assert told.endswith(f"… ({what})")
    assert secret not in told


def test_settings_and_scores_hold_no_secret():
    text = 'pad_token: null\nmax_text_tokens: 24\n"eos_token": "</s>"\nhf_hub: 1.0e-05\nsk-learn'
    assert found(text) == []


def test_names_count_as_whole_words_outside_of_vocabularies():
    known = of_this_machine() | {"anna": "the name of this machine's user"}
    assert found("savanna, anna_2, Anna", known=known) == []
    assert found("by anna.", known=known) == [
        "run/x.json, line 1: anna (the name of this machine's user)"
    ]
    assert found("by anna.", "tokenizer.json", known=known) == []
    assert found("by anna.", known=known, allowed={"anna"}) == []


def test_this_machine_is_known(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/annagramm")
    monkeypatch.setenv("LOGNAME", "annagramm")
    monkeypatch.setattr(socket, "gethostname", lambda: "pluto7.example.org")
    monkeypatch.setenv("SOME_API_KEY", "geheim-geheim")
    monkeypatch.setenv("HF_TOKEN", "not-of-the-usual-form")
    monkeypatch.chdir(tmp_path)
    known = of_this_machine("/models/base")
    text = "/home/annagramm\nannagramm\npluto7\ngeheim-geheim\nnot-of-the-usual-form\n/models/base"
    lines = [told.partition(": ")[0] for told in found(text, known=known)]
    assert lines == [f"run/x.json, line {n}" for n in range(1, 7)]
    assert str(tmp_path) in known
    # what a person says of the model may name its author
    assert "annagramm" not in of_this_machine(said="written by annagramm, 2026")
    assert "geheim-geheim" in of_this_machine(said="geheim-geheim")


@pytest.mark.parametrize("name", ["root", "ubuntu", "runner"])
def test_a_name_that_says_nothing_is_not_looked_for(monkeypatch, name):
    monkeypatch.setenv("LOGNAME", name)
    assert name not in of_this_machine()


def test_paths_are_taken_out_wherever_they_stand(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    value = {
        "name": "/models/my base",
        "source": [f"{tmp_path}/data/train.csv", "/mnt/photos with blanks/test.csv"],
        "command": ["/home/anna/recipes/caption.py", "--data", "[{source: '/home/anna/*.tar'}]"],
        "relative": "data/train.csv",
        "steps": 12,
        "none": None,
    }
    assert scrub(value, {"/models/my base": "anna/base"}) == {
        "name": "anna/base",
        "source": ["data/train.csv", "test.csv"],
        "command": ["caption.py", "--data", "[{source: '*.tar'}]"],
        "relative": "data/train.csv",
        "steps": 12,
        "none": None,
    }
    assert found(str(scrub(value, {}))) == []


def test_what_stands_for_a_path_does_not_stand_for_a_longer_one():
    stand_ins = {"/models/opt": "org/opt", "/models/opt/finder": "org/finder"}
    text = "/models/opt, /models/opt/finder and /models/opt-2"
    assert scrub_text(text, stand_ins).startswith("org/opt, org/finder and ")
    assert "org/opt-2" not in scrub_text(text, stand_ins)


def test_a_path_of_windows_leaves_its_last_name():
    assert scrub_text(r"C:\Users\anna\photos\1.jpg", {}) == "1.jpg"
