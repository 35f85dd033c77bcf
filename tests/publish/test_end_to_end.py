"""Push and caption as a user types them, in processes of their own, against a hub on loopback."""

import json
import os
import subprocess
import sys

import pytest
from hub_server import ANNA, hub_server

from blip2ft.captioner import caption
from blip2ft.finetuned import load_finetuned


@pytest.mark.slow
def test_what_one_process_pushes_another_captions_with(
    run_folder, opt_folder, photo_folder, tmp_path
):
    photos = sorted(photo_folder.glob("*.jpg"))
    with hub_server() as hub:
        hub.tokens = {ANNA: ("anna", True)}
        files = {path.name: path.read_bytes() for path in opt_folder.iterdir()}
        hub.put("anna/base", files)
        card = tmp_path / "card.md"
        card.write_text(f"---\nlicense: mit\n---\n# Birds, from {opt_folder}\n")
        words = ["push", run_folder, "--repo", "anna/birds", "--base-repo", "anna/base"]
        done = call(hub, tmp_path, *words, "--card", card)
        assert done.returncode == 0, done.stderr
        sent = hub.repos["anna/birds"].files["README.md"].decode()
        assert sent == "---\nlicense: mit\n---\n# Birds, from anna/base\n"
        done = call(hub, tmp_path, "caption", photo_folder, "--model", "anna/birds")
        assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    model, processor, description = load_finetuned(run_folder)
    decoding = {k: v for k, v in description["generation"].items() if k != "batch_size"}
    expected = caption(model, processor, photos, prompt=description["prompt"], **decoding)
    assert [row["caption"] for row in rows] == expected
    assert len(set(expected)) > 1


def call(hub, folder, *words):
    there = {"HF_ENDPOINT": hub.url, "HF_TOKEN": ANNA, "HF_HUB_CACHE": str(folder / "cache")}
    there |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-m", "blip2ft", *map(str, words)]
    return subprocess.run(command, env={**os.environ, **there}, capture_output=True, text=True)
