"""Where the page listens, and what it keeps meanwhile."""

import os
import socket
import tempfile

import pytest

from blip2ft.demo import server
from blip2ft.demo.server import address_of, folder_of_uploads, listen


def free_port() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return asked.getsockname()[1]


def test_the_first_free_port_is_taken(monkeypatch):
    first = free_port()
    monkeypatch.setattr(server, "FIRST", first)
    monkeypatch.setattr(server, "LAST", first + 20)
    with listen("127.0.0.1", None) as one, listen("127.0.0.1", None) as other:
        assert address_of(one) == (f"http://127.0.0.1:{first}", True)
        assert address_of(other)[0] > address_of(one)[0]
        monkeypatch.setattr(server, "LAST", first)
        with pytest.raises(ValueError, match=f"all ports from {first} to {first} are taken on 127"):
            listen("127.0.0.1", None)
        with pytest.raises(ValueError, match=f"port {first} is taken on 127.0.0.1; choose another"):
            listen("127.0.0.1", first)


@pytest.mark.parametrize(
    ("host", "told"),
    [
        ("192.0.2.1", "--host 192.0.2.1 is no address of this computer; give 127.0.0.1 for this"),
        ("no host", r"--host no host: there is no such address \(.*\); give 127.0.0.1 for this"),
    ],
)
def test_a_host_that_is_not_this_computers_is_told(host, told):
    with pytest.raises(ValueError, match=told):
        listen(host, None)


def test_a_port_for_administrators_is_told(monkeypatch):
    def refuse(self, address):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(
        ValueError, match="port 80 is for administrators; choose a --port from 1024"
    ):
        listen("127.0.0.1", 80)


def test_an_address_for_all_is_shown_as_one_to_open():
    port = free_port()
    with listen("0.0.0.0", port) as listener:
        assert address_of(listener) == (f"http://127.0.0.1:{port}", False)
    with listen("localhost", port) as listener:
        assert address_of(listener)[1] is True


def test_the_folder_of_uploads_is_gone_in_the_end():
    before = tempfile.gettempdir()
    with folder_of_uploads() as folder:
        assert os.environ["GRADIO_TEMP_DIR"] == tempfile.gettempdir() == str(folder)
        (folder / "a").mkdir()
        (folder / "a" / "photo.png").touch()
    assert not folder.exists()
    assert "GRADIO_TEMP_DIR" not in os.environ
    assert tempfile.gettempdir() == before
