"""A hub on loopback that the client of this process speaks to, with Anna logged in."""

import huggingface_hub.utils._http
import pytest
from hub_server import ANNA, BOB, READER, hub_server
from huggingface_hub import constants


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with hub_server() as server:
        server.tokens = {ANNA: ("anna", True), READER: ("anna", False), BOB: ("bob", True)}
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        address = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", ANNA)
        monkeypatch.setattr(huggingface_hub.utils._http.time, "sleep", lambda _: None)
        yield server


@pytest.fixture
def push(blip2ft_main):
    """Push a run to anna/birds, or to another --repo; status, output and errors."""

    def call(run, *options):
        where = () if "--repo" in options else ("--repo", "anna/birds")
        status, out, err = blip2ft_main("push", run, *where, *options)
        for token in (ANNA, READER, BOB):
            assert token not in out + err
        return status, out, err

    return call
