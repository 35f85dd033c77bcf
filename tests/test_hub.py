"""Names of models, and how much is said while the hub doesn't answer."""

import logging

import pytest

from blip2ft.hub import check_model_name, check_revision, quiet_retries


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    (tmp_path / "models" / "photos").mkdir(parents=True)
    (tmp_path / "model.pt").touch()
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "name", ["models/photos", "./models/photos", "Salesforce/blip2-opt-2.7b", "bert-base", "a.b/c"]
)
def test_a_folder_and_a_hub_id_pass(name):
    check_model_name(name)


@pytest.mark.parametrize(
    "name", ["models/gone", "./gone", "../gone", "/gone", "~/gone", "a/b/c", "Salesforce/", "a b"]
)
def test_what_can_be_no_hub_id_is_a_missing_folder(name):
    with pytest.raises(ValueError, match=r"there is no folder .* or a hub id such as Salesforce/"):
        check_model_name(name)


def test_the_nearest_folder_is_named():
    with pytest.raises(ValueError, match=r"no folder models/phtos\. Did you mean 'photos'\?"):
        check_model_name("models/phtos")


def test_a_file_is_no_model():
    with pytest.raises(ValueError, match=r"model\.pt is a file; give the folder"):
        check_model_name("model.pt")


def test_only_a_model_on_the_hub_has_a_revision():
    check_revision("models/photos", None)
    check_revision("Salesforce/blip2-opt-2.7b", "main")
    with pytest.raises(ValueError, match=r"models/photos is a folder, and has no revision 'main'"):
        check_revision("models/photos", "main")


def test_retries_are_one_line(monkeypatch):
    shown = []

    class Handler(logging.Handler):
        def emit(self, record):
            shown.append(record.getMessage())

    logger, owner = (logging.getLogger(f"huggingface_hub{n}") for n in (".utils._http", ""))
    monkeypatch.setattr(logger, "filters", [])
    monkeypatch.setattr(owner, "propagate", True)
    monkeypatch.setattr(owner, "handlers", [Handler()])
    quiet_retries()
    for second in (1, 2):
        logger.warning("%r thrown while requesting HEAD %s", "no name", "config.json")
        logger.warning(f"Retrying in {second}s [Retry {second}/5].")
    logger.error("gone")
    assert shown == ["the hub doesn't answer; trying again for half a minute", "gone"]
