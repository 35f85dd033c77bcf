"""The card that a push brings along: made of the run, with its name on the hub, and read there."""

import re
import shlex
import shutil

import pytest
from huggingface_hub import ModelCard

from blip2ft.card.said import NOT_SAID


@pytest.fixture
def run(made_run, run_folder):
    """A run with the record of one and the weights of another, on the model `opt_folder`."""
    run = made_run("caption")
    shutil.rmtree(run / "adapter")
    shutil.copytree(run_folder / "adapter", run / "adapter")
    return run


@pytest.fixture
def base(hub, opt_folder):
    """The base of `run`, on the hub."""
    hub.put("anna/base", {path.name: path.read_bytes() for path in opt_folder.iterdir()})
    return ("--base-repo", "anna/base")


def test_a_push_has_a_card_that_lacks_only_what_a_person_knows(hub, run, base, push):
    status, out, err = push(run, *base, "--say", "license=mit", "--say", "developers=Anna")
    assert (status, err) == (0, "")
    assert (
        "the card lacks what only you know (--say or --about, see blip2ft card): contact, "
        "data_source, data_license, data_people, intended_use, out_of_scope_use, base_license, "
        "base_training_data, country, provider, funded_by, card_authors\n"
    ) in out
    text = hub.repos["anna/birds"].files["README.md"].decode()
    data = ModelCard(text).data
    assert (data.license, data.base_model, data.base_model_relation) == (
        "mit",
        "anna/base",
        "adapter",
    )
    assert "**Developed by:** Anna" in text
    assert NOT_SAID in text
    assert "/tmp" not in text
    sizes = hub.repos["anna/birds"].files
    for name in ("adapter_model.safetensors", "trained.safetensors"):
        assert f"`{name}` {len(sizes[name]) / 1000:.1f} kB" in text


def test_what_the_card_tells_to_type_works(hub, run, base, push, blip2ft_main, photo_folder):
    push(run, *base)
    text = hub.repos["anna/birds"].files["README.md"].decode()
    command = re.search(r"```bash\n(blip2ft caption .*)\n```", text)[1]
    words = shlex.split(command)[1:]
    words[words.index("photo.jpg")] = photo_folder / "photo0.jpg"
    status, out, err = blip2ft_main(*words)
    assert status == 0, err
    expected = blip2ft_main("caption", photo_folder / "photo0.jpg", "--adapter", run)
    assert out == expected[1]


def test_a_merged_model_has_another_card(hub, run, push):
    status, _, err = push(run, "--merged", "--say", "license=mit")
    assert (status, err) == (0, "")
    text = hub.repos["anna/birds"].files["README.md"].decode()
    data = ModelCard(text).data
    assert data.library_name == "transformers"
    assert data.get("base_model") is None  # it was a folder, and isn't on the hub
    assert 'Blip2ForConditionalGeneration.from_pretrained("anna/birds")' in text
    size = len(hub.repos["anna/birds"].files["model.safetensors"])
    assert f"**Size of the weights:** `model.safetensors` {size / 1000:.1f} kB" in text
    assert "an **adapter**" not in text


def test_where_no_answers_go_out_none_is_in_the_card(hub, run, base, push):
    push(run, *base)
    assert "| a blue square number 2 |" in hub.repos["anna/birds"].files["README.md"].decode()
    push(run, *base, "--repo", "anna/silent", "--samples", 0)
    assert "a blue square" not in hub.repos["anna/silent"].files["README.md"].decode()


def test_fields_are_chosen_as_for_the_card_alone(hub, run, base, push):
    status, _, err = push(run, *base, "--by", "grop")
    assert (status, err.count("\n")) == (2, 1)
    assert "no record has a field 'grop'; did you mean group?" in err
    assert "anna/birds" not in hub.repos
    assert push(run, *base, "--by", "group")[0] == 0


def test_a_card_of_ones_own_takes_no_answers(hub, run, base, push, tmp_path):
    card = tmp_path / "card.md"
    card.write_text("# Mine\n")
    status, _, err = push(run, *base, "--card", card, "--say", "license=mit")
    assert (status, err.count("\n")) == (2, 1)
    assert "--card is taken as it is, so --about, --say and --by add nothing to it" in err


def test_a_secret_in_an_answer_stops_the_push(hub, run, base, push):
    token = "hf_" + "a" * 34
    status, _, err = push(run, *base, "--say", f"more_information={token}")
    assert (status, err.count("\n")) == (2, 1)
    assert "README.md, line " in err
    assert token not in err
    assert "anna/birds" not in hub.repos
