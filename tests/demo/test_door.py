"""Only what the page itself asks for gets through to Gradio."""

import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import anyio
import httpx
import pytest

from blip2ft.demo import door
from blip2ft.demo.door import Door, make_room


async def inside(scope, receive, send):
    """Stands for Gradio: gives back what it was sent."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"inside " + body})


def ask(folder, method, path, *, hosts=("127.0.0.1",), **options) -> tuple[int, str]:
    async def request():
        transport = httpx.ASGITransport(Door(inside, folder, hosts))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:7860") as own:
            return await own.request(method, path, **options)

    # a thread of its own: in this one the browser of other tests may have a loop
    with ThreadPoolExecutor(1) as thread:
        response = thread.submit(anyio.run, request).result()
    return response.status_code, response.text


@pytest.mark.parametrize(
    "path",
    ["/", "/config", "/theme.css?v=1", "/assets/index.js", "/gradio_api/heartbeat/abc"],
)
def test_what_the_page_asks_for_gets_through(tmp_path, path):
    assert ask(tmp_path, "GET", path) == (200, "inside ")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/gradio_api/info"),
        ("GET", "/gradio_api/proxy=http://127.0.0.1/"),
        ("GET", "/monitoring"),
        ("GET", "/gradio_api/runs"),
        ("GET", "/docs"),
        ("POST", "/gradio_api/run/answer"),
        ("POST", "/gradio_api/call/answer"),
        ("POST", "/gradio_api/component_server"),
        ("POST", "/gradio_api/process_recording"),
        ("PUT", "/gradio_api/upload"),
        ("OPTIONS", "/gradio_api/upload"),
    ],
)
def test_what_else_gradio_serves_does_not(tmp_path, method, path):
    status, told = ask(tmp_path, method, path)
    assert status == 404
    assert told.startswith("there is no")


def test_only_files_of_the_page_are_sent(tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    (own / "a.png").touch()
    (own / "link.png").symlink_to("/etc/passwd")
    (tmp_path / "other.png").touch()
    assert ask(own, "GET", f"/gradio_api/file={own}/a.png") == (200, "inside ")
    for path in (
        "/etc/passwd",
        "%2Fetc%2Fpasswd",
        f"{own}/../other.png",
        f"{own}/%2e%2e/other.png",
        f"{own}/link.png",
        "http://192.0.2.1/a.png",
        "a%00b",
    ):
        assert ask(own, "GET", f"/gradio_api/file={path}")[0] in (403, 404), path


def test_no_request_names_a_file_that_is_not_the_pages(tmp_path):
    def asked(path, **more):
        data = [{"path": path, "meta": {"_type": "gradio.FileData"}, **more}, "a photo of"]
        body = {"data": data, "fn_index": 1}
        return ask(tmp_path, "POST", "/gradio_api/queue/join", json=body)

    status, told = asked(str(tmp_path / "a.png"))
    assert status == 200
    assert json.loads(told.removeprefix("inside "))["fn_index"] == 1
    assert asked(None)[0] == 200
    for path in ("/etc/passwd", f"{tmp_path}/../x.png", "http://192.0.2.1/a.png", "", ["/a"], 5):
        status, told = asked(path)
        assert status == 403, path
        assert json.loads(told)["detail"].startswith("only pictures that were uploaded to this")
    nested = {"data": [{"deep": [[{"path": "/etc/passwd"}]]}]}
    assert ask(tmp_path, "POST", "/gradio_api/queue/join", json=nested)[0] == 403
    assert ask(tmp_path, "POST", "/gradio_api/queue/join", content=b"[not json")[0] == 200


def test_what_is_sent_has_a_limit(tmp_path, monkeypatch):
    monkeypatch.setitem(door.SENT, "/gradio_api/upload", 2 << 20)
    assert ask(tmp_path, "POST", "/gradio_api/upload", content=bytes(2 << 20))[0] == 200
    refused = ask(tmp_path, "POST", "/gradio_api/upload", content=bytes(3 << 20))
    assert refused == (413, "up to 2 MB are taken")

    async def endless():
        yield b"x"

    assert ask(tmp_path, "POST", "/gradio_api/upload", content=endless())[0] == 411


def test_a_full_disk_is_told_before_anything_is_written(tmp_path, monkeypatch, caplog):
    disk = shutil.disk_usage(tmp_path)._replace(free=19)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: disk)
    assert ask(tmp_path, "POST", "/gradio_api/upload", content=b"x" * 9)[0] == 200
    told = ask(tmp_path, "POST", "/gradio_api/upload", content=b"x" * 10)
    assert told == (507, "the disk of the computer that runs this page is full")
    assert f"{tmp_path}: no space left on the disk" in caplog.text


def test_another_sites_page_does_not_reach_a_page_of_this_computer_alone(tmp_path):
    def asked(host, hosts):
        return ask(tmp_path, "GET", "/", hosts=hosts, headers={"Host": host})[0]

    own = ("127.0.0.1", "localhost", "::1")
    for host in ("127.0.0.1:7860", "localhost", "[::1]:7860"):
        assert asked(host, own) == 200
    for host in ("evil.example:7860", "127.0.0.1.evil.example", "", "[", "@"):
        assert asked(host, own) == 403
    assert asked("demo.example", None) == 200


def test_old_files_go_and_then_the_oldest(tmp_path):
    for age, name in enumerate(["new", "newer", "old", "ancient"]):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(b"x" * 10)
        then = time.time() - age * 100
        os.utime(tmp_path / name / "a.png", (then, then))
    make_room(tmp_path, kept=250, room=1000)
    assert {file.parent.name for file in tmp_path.rglob("*.png")} == {"new", "newer", "old"}
    make_room(tmp_path, kept=250, room=20)
    assert {file.parent.name for file in tmp_path.rglob("*.png")} == {"new", "newer"}
