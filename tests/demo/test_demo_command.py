"""`blip2ft demo` as it is called: what stops it before a model is loaded, and how it ends."""

import os
import re
import signal
import socket
import subprocess
import sys

import httpx
import pytest

from blip2ft.commands import demo
from blip2ft.commands.demo import _shown

REFUSED = {
    "a folder that isn't there": (["nowhere/tiny", "--port", "9"], "can't load 'nowhere/tiny'"),
    "no port": (["MODEL", "--port", "70000"], "'70000' is no port; give a number from 1 to 65535"),
    "no address": (["MODEL", "--host", "192.0.2.1"], "--host 192.0.2.1 is no address of this comp"),
    "no index": (["MODEL", "--index", "PHOTOS"], "is no photo index; make one: blip2ft index"),
    "no folder": (["MODEL", "--reports", "FILE"], "is a file; choose another folder"),
    "no run": (["MODEL", "--adapter", "PHOTOS"], "is no run and no adapter folder; pass the --out"),
    "twice": (["MODEL", "--adapter", "RUN", "--adapter", "RUN"], "--adapter names a run twice"),
    "revision": (["MODEL", "--revision", "main"], "is a folder, and has no revision 'main'"),
    "another base": (["OTHER", "--adapter", "RUN"], "is another: the weights differ"),
    "a retriever": (["RETRIEVER", "--adapter", "RUN"], "is another: the weights differ"),
    "mistyped": (["MODEL", "--adaptor", "RUN"], "did you mean --adapter?"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_stops_it_is_told_in_a_line(
    case,
    blip2ft_main,
    opt_folder,
    wide_folder,
    retriever_folder,
    run_folder,
    photo_folder,
    tmp_path,
):
    words, told = REFUSED[case]
    (tmp_path / "file").touch()
    places = {
        "MODEL": opt_folder,
        "OTHER": wide_folder,
        "RETRIEVER": retriever_folder,
        "RUN": run_folder,
        "PHOTOS": photo_folder,
        "FILE": tmp_path / "file",
    }
    given = [places.get(word, word) for word in words]
    before = signal.getsignal(signal.SIGTERM)
    status, _, err = blip2ft_main("demo", *given)
    signal.signal(signal.SIGTERM, before)
    assert status == 2
    assert told in err
    assert err.count("\n") == 1


def test_a_port_that_is_taken_is_told_before_a_model_is_loaded(blip2ft_main, opt_folder):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        status, _, err = blip2ft_main("demo", opt_folder, "--port", port)
    assert (status, f"port {port} is taken on 127.0.0.1; choose another --port" in err) == (2, True)


def test_without_gradio_the_command_that_installs_it_is_named(blip2ft_main, monkeypatch):
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    status, _, err = blip2ft_main("demo", "any/model")
    assert (status, err) == (2, 'error: the page needs Gradio: pip install "blip2ft[demo]"\n')


def test_folders_go_by_their_own_names_where_these_differ(tmp_path):
    for name in ("a/birds", "b/birds", "signs"):
        (tmp_path / name).mkdir(parents=True)
    one, other, signs = (str(tmp_path / name) for name in ("a/birds", "b/birds", "signs"))
    assert _shown([one, signs, "anna/owls@v1"]) == ["birds", "signs", "anna/owls@v1"]
    assert _shown([one, other]) == [one, other]


@pytest.mark.slow
@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, signal.SIGTERM, signal.SIGHUP],
)
def test_it_ends_cleanly_by_signals_while_pages_are_open(number, run_folder, opt_folder, tmp_path):
    words = [opt_folder, "--adapter", run_folder]
    if number == signal.SIGTERM:
        words = [run_folder, "--host", "0.0.0.0"]
    running = subprocess.Popen(
        [sys.executable, "-m", "blip2ft", "demo", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    said = []
    for line in running.stdout:
        said.append(line)
        address = re.search(r"^(http://127.0.0.1:\d+) is the page; Ctrl-C ends it$", line)
        if address:
            break
    assert address, "".join(said)
    with httpx.Client(base_url=address[1]) as web:
        sent = web.post("/gradio_api/upload", files={"files": ("a.png", b"private")})
        assert sent.status_code == 200
        assert list(tmp_path.glob("blip2ft-demo-*/*/a.png"))
        with web.stream("GET", "/gradio_api/heartbeat/abc") as open_page:
            next(open_page.iter_lines())
            running.send_signal(number)
            rest, _ = running.communicate(timeout=60)
    # a terminal that is closed ends it as SIGTERM does
    assert running.returncode == {signal.SIGINT: 130}.get(number, 143)
    assert rest == "\nstopped\n"
    assert list(tmp_path.iterdir()) == []
    exposed = "0.0.0.0 lets in whoever reaches this computer, without a password: to ask the model"
    assert any(line.startswith(exposed) for line in said) == (number == signal.SIGTERM)
