"""The parts of the embedded models, and the command that builds all of it."""

import json
import os
import subprocess
import sys

import make_tiny_bert
import make_tiny_language
import make_tiny_vision
import numpy as np
import pytest
import scene_things
import tiny_training
import tiny_words
import torch

from blip2ft.models.assemble import assemble

ROOT = scene_things.ROOT
SPOTS = make_tiny_vision.SPOTS


@pytest.fixture(scope="module", params=["opt", "t5"])
def tokenizer(request):
    return make_tiny_language.KINDS[request.param][0]()[1]


def test_every_outline_is_one_token_a_word(tokenizer):
    rng = np.random.default_rng(0)
    for _ in range(200):
        fields = tiny_words.random_text(rng)
        ids = tiny_words.outline_ids(tokenizer, fields)
        assert len(ids) == tiny_words.OUTLINE
        read = tokenizer.decode(ids).replace("\n", "").split()
        for thing in fields["things"]:
            assert set(thing.split()) <= set(read)
        assert (fields["relation"] or fields["background"]).split()[0] in read


def test_an_outline_tells_things_relation_ground_and_place():
    assert tiny_words.outline(["dog face", "red apple"], "left of", "blue", "") == [
        *(" left", " dog", " face", "\n", " red", " apple"),
        *("\n" for _ in range(6)),
    ]
    single = tiny_words.outline(["key"], None, "blue", "in the top left corner")
    assert single[:2] == [" blue", " key"]
    assert single[-2:] == [" top", " left"]


def test_bert_knows_every_word_of_the_captions():
    tokenizer, rng = tiny_words.bert_tokenizer(), np.random.default_rng(0)
    for _ in range(200):
        for caption in tiny_words.random_text(rng)["captions"]:
            ids = tokenizer(caption)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert len(ids) == 2 + len(caption.replace(",", " ,").replace(":", " :").split())


def test_hidden_words_are_learned_and_others_are_not():
    torch.manual_seed(0)
    ids = torch.randint(10, 90, (200, 50))
    special = torch.zeros_like(ids, dtype=torch.bool)
    special[:, 0] = True
    hidden, labels = make_tiny_bert.hide(ids, special, 4, 100)
    chosen = labels != make_tiny_bert.IGNORED
    assert not chosen[:, 0].any()
    assert torch.equal(hidden[~chosen], ids[~chosen])
    assert torch.equal(labels[chosen], ids[chosen])
    assert chosen[:, 1:].float().mean().item() == pytest.approx(0.15, abs=0.01)
    assert (hidden[chosen] == 4).float().mean().item() == pytest.approx(0.8, abs=0.04)
    assert (hidden[chosen] == ids[chosen]).float().mean().item() == pytest.approx(0.1, abs=0.03)


def test_patches_name_the_thing_on_them_or_the_ground():
    fields = {"things": ["key"], "boxes": [[0, 0, 64, 32]], "background": "white"}
    labels = make_tiny_vision.patch_labels(fields).reshape(8, 8)
    key, ground = scene_things.numbers()["key"], len(scene_things.numbers())
    assert (labels[:2, :4] == key).all()
    assert (labels == key).sum() == 8
    assert (labels[labels != key] == ground).all()
    two = fields | {"things": ["key", "bell"], "boxes": [[0, 0, 64, 32], [64, 64, 128, 128]]}
    labels = make_tiny_vision.patch_labels(two)
    assert set(labels) == {key, scene_things.numbers()["bell"], make_tiny_vision.IGNORED}


@pytest.mark.parametrize(
    ("things", "relation", "caption", "places"),
    [
        (["key", "bell"], "left of", "a key to the left of a bell", ["left", "right"]),
        (["key", "bell", "owl"], "above", "...", ["top", "middle", "bottom"]),
        (["key"], None, "a key in the top left corner", ["top left"]),
        (["key"], None, "a key on the right", ["right"]),
        (["key"], None, "nothing but a key", []),
    ],
)
def test_patches_tell_where_their_thing_is(things, relation, caption, places):
    boxes = [[32 * i, 32 * i, 32 * i + 32, 32 * i + 32] for i in range(len(things))]
    fields = {"things": things, "boxes": boxes, "background": "white", "relation": relation}
    labels = make_tiny_vision.place_labels(fields | {"captions": [caption]}).reshape(8, 8)
    for i, place in enumerate(places):
        assert (labels[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] == SPOTS.index(place)).all()
    assert (labels != make_tiny_vision.IGNORED).sum() == 4 * len(places)


@pytest.mark.parametrize("kind", ["opt", "t5"])
def test_only_the_caption_is_learned(kind):
    build, loss = make_tiny_language.KINDS[kind]
    torch.manual_seed(0)
    model, tokenizer = build()
    outlines = torch.full((2, tiny_words.OUTLINE), 5)
    found = loss(model, tokenizer, outlines, ["a key above a bell", "a key by itself"])
    assert found.item() == pytest.approx(np.log(model.config.vocab_size), rel=0.15)
    with torch.no_grad():  # what the last word is asked for must matter, and the prompt's not
        torch.manual_seed(1)
        once = loss(model, tokenizer, outlines[:1], ["a key"]).item()
        torch.manual_seed(1)
        assert loss(model, tokenizer, outlines[:1], ["a bell"]).item() != once


@pytest.mark.slow
def test_a_part_is_made_once_and_whole(tmp_path):
    out = tmp_path / "part"
    command = [sys.executable, str(ROOT / "scripts" / "make_tiny_bert.py"), str(out)]
    done = subprocess.run([*command, "--steps", "2"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "metrics.json").read_text())["steps"] == 2
    assert (out / "model.safetensors").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["part"]
    again = subprocess.run([*command, "--steps", "2"], capture_output=True, text=True)
    assert (again.returncode, again.stdout) == (0, f"{out} is there already\n")
    other = subprocess.run([*command, "--steps", "3"], capture_output=True, text=True)
    assert other.returncode == 2
    assert "was made with seed 0 and 2 steps; remove it" in other.stderr


def test_the_parts_can_be_put_together(tmp_path):
    torch.manual_seed(0)
    make_tiny_vision.make(tmp_path / "vision", seed=0, steps=1, scenes=20)
    make_tiny_bert.make(tmp_path / "bert", seed=0, steps=1)
    for kind in ("opt", "t5"):
        make_tiny_language.make(kind, tmp_path / kind, seed=0, steps=1)
        done = assemble(
            tmp_path / f"start-{kind}",
            vision=tmp_path / "vision",
            bert=tmp_path / "bert",
            language=tmp_path / kind,
            num_query_tokens=tiny_words.OUTLINE,
            cross_attention_frequency=1,
        )
        assert not any(name.startswith(("vision_model", "language_model")) for name in done.new)


def test_fit_minimises_and_tells_its_last_losses(capsys):
    weight = torch.nn.Parameter(torch.ones(3, 2))
    found = tiny_training.fit([weight], lambda: {"square": weight.square().sum()}, 150, 0.1, "it")
    assert found["square_loss"] < 1
    assert "it 150/150  square" in capsys.readouterr().out


@pytest.mark.slow
def test_the_whole_build_runs_from_nothing_and_goes_on(tmp_path):
    environment = os.environ | {"STEPS": "2", "OUT": str(tmp_path / "out")}
    command = ["bash", str(ROOT / "scripts" / "make_tiny_blip2.sh")]
    for _ in range(2):  # the second has nothing left to do
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["stage2-t5"]["steps"] == 2
    assert metrics["no-stage1"]["right"].keys() == {"1 things", "2 things", "3 things"}
