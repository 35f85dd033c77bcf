"""A run on a hub on loopback: what goes out, where it may go, and what happens when it can't."""

import hashlib
import json
import re
import types

import pytest
import torch
import yaml
from hub_server import BOB, READER
from huggingface_hub import constants
from safetensors.torch import save_file

from blip2ft.publish.send import Target

ADAPTER = {"README.md", "blip2ft.json", "trained.safetensors"}
RECORD = {"config.yaml", "environment.json", "metrics.jsonl", "samples.jsonl"}
SENT = ADAPTER | {f"run/{name}" for name in RECORD}
CARD = "---\nlicense: mit\n---\n# Birds\n"


@pytest.fixture(autouse=True)
def card(monkeypatch):
    """A short card in place of a run's; its text can be changed."""
    made = types.SimpleNamespace(text=CARD, missing=["license"])
    monkeypatch.setattr("blip2ft.publish.outgoing.model_card", lambda *_: made)
    return made


@pytest.fixture
def run(made_run):
    return made_run("caption")


def test_a_push_is_one_commit_of_the_adapter_its_card_and_its_record(hub, run, push):
    status, out, err = push(run)
    assert (status, err) == (0, "")
    repo = hub.repos["anna/birds"]
    first, commit = repo.branches["main"]
    assert first.title == "initial commit"
    assert re.fullmatch(r"Adapter for caption \(blip2ft push [0-9a-f]{12}\)", commit.title)
    assert set(repo.files) == SENT | {".gitattributes"}
    assert not repo.private
    weights = (run / "adapter" / "trained.safetensors").read_bytes()
    assert repo.files["trained.safetensors"] == weights
    assert repo.files["README.md"].decode() == CARD
    assert f"{hub.url}/anna/birds/commit/{commit.oid}" in out
    assert "use it: blip2ft caption IMAGE --model anna/birds\n" in out
    assert (
        "the card lacks what only you know (--say or --about, see blip2ft card): license\n" in out
    )


def test_neither_data_nor_paths_nor_checkpoints_go_out(hub, run, push):
    push(run)
    sent = hub.repos["anna/birds"].files
    texts = b"".join(content for name, content in sent.items() if name != "trained.safetensors")
    assert str(run.parent).encode() in (run / "config.yaml").read_bytes()
    assert str(run.parent).encode() not in texts
    assert b"/tmp" not in texts
    settings = yaml.safe_load(sent["run/config.yaml"])
    assert settings["data"]["train"]["source"] == "train.csv"
    rows = [json.loads(line) for line in sent["run/samples.jsonl"].splitlines()]
    assert len(rows) == 8
    assert {frozenset(row) for row in rows} == {frozenset({"image_id", "caption", "references"})}
    last = (run / "predictions" / "test-00000040.jsonl").read_text().splitlines()
    assert [row["caption"] for row in rows] == [json.loads(row)["caption"] for row in last[:8]]


def test_samples_are_of_the_weights_that_go_out(hub, run, push):
    # the best step is 40; what came later was worse, and its weights stay here
    predictions = run / "predictions"
    rows = (predictions / "validation-00000040.jsonl").read_text()
    of_later = rows.replace('"caption": "', '"caption": "of later weights, ')
    (predictions / "validation-00000060.jsonl").write_text(of_later)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 60, "split": "validation", "cider": 0.1}\n')
    push(run)
    assert "of later weights" in of_later
    assert b"of later weights" not in hub.repos["anna/birds"].files["run/samples.jsonl"]


def test_samples_can_be_left_out(hub, run, push):
    push(run, "--samples", 0)
    assert "run/samples.jsonl" not in hub.repos["anna/birds"].files
    status, _, err = push(run, "--samples", -1)
    assert (status, err) == (2, "error: --samples is -1: 0 or more are allowed\n")


def test_a_dry_run_lists_files_and_sizes_without_the_network(hub, run, push, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    status, out, err = push(run, "--dry-run")
    assert (status, err) == (0, "")
    assert not hub.requests
    assert f"{run} -> {hub.url}/anna/birds (main)" in out
    listed = dict(reversed(line.split("  ")[-2:]) for line in out.splitlines()[1:-3])
    assert set(listed) == SENT
    weights = (run / "adapter" / "trained.safetensors").stat().st_size
    assert listed["trained.safetensors"].strip() == f"{weights} B"
    assert out.endswith("nothing was sent: this is a dry run\n")


def test_a_second_push_sends_what_is_new(hub, run, push, card):
    push(run)
    status, out, _ = push(run)
    assert status == 0
    assert "nothing new to send: anna/birds has all of it" in out
    card.text = CARD + "More.\n"
    assert push(run)[0] == 0
    first, second = hub.repos["anna/birds"].branches["main"][1:]
    assert {name for name in SENT if first.files[name] != second.files[name]} == {"README.md"}
    assert len(hub.sent) == 1


def test_what_others_put_there_stays(hub, run, push):
    hub.put("anna/birds", {"notes.txt": b"mine", "demo/app.py": b"mine"})
    assert push(run)[0] == 0
    assert hub.repos["anna/birds"].files["notes.txt"] == b"mine"
    assert hub.repos["anna/birds"].files["demo/app.py"] == b"mine"


def test_a_file_that_was_edited_there_is_replaced_only_on_demand(hub, run, push, card):
    push(run)
    hub.put("anna/birds", {"README.md": b"edited"}, "Update README.md")
    status, _, err = push(run)
    assert status == 2
    assert "anna/birds has README.md, which this run didn't put there or which was changed" in err
    assert hub.repos["anna/birds"].files["README.md"] == b"edited"
    status, out, _ = push(run, "--overwrite")
    assert status == 0
    assert "replaces what others put there: README.md" in out
    assert hub.repos["anna/birds"].files["README.md"].decode() == CARD


def test_another_run_is_replaced_only_on_demand(hub, run, push):
    push(run)
    settings = run / "config.yaml"
    settings.write_text(settings.read_text().replace("seed: 42", "seed: 43"))
    status, _, err = push(run)
    assert status == 2
    assert "blip2ft.json" in err
    assert "trained.safetensors, which this run didn't put there" in err
    assert push(run, "--overwrite")[0] == 0


def test_a_new_branch_replaces_nothing_of_main(hub, run, push):
    push(run)
    former = hub.repos["anna/birds"].files
    settings = run / "config.yaml"
    settings.write_text(settings.read_text().replace("seed: 42", "seed: 43"))
    hub.fail("POST /api/models/anna/birds/commit/.*", 403)
    assert push(run, "--revision", "seed-43")[0] == 2
    assert "seed-43" in hub.repos["anna/birds"].branches  # made, with main's files and no more
    status, out, err = push(run, "--revision", "seed-43")
    assert (status, err, "what others" in out) == (0, "", False)
    branches = hub.repos["anna/birds"].branches
    assert b"seed: 43" in branches["seed-43"][-1].files["run/config.yaml"]
    assert branches["main"][-1].files == former
    settings.write_text(settings.read_text().replace("seed: 43", "seed: 44"))
    assert "which this run didn't put there" in push(run, "--revision", "seed-43")[2]


def test_weights_that_would_be_loaded_along_are_refused(hub, run, push):
    hub.put("anna/birds", {"config.json": b"{}", "model.safetensors": b"0"})
    status, _, err = push(run, "--overwrite")
    assert status == 2
    assert "anna/birds has config.json, model.safetensors, which this push doesn't bring" in err
    assert "nothing is ever deleted there" in err


def test_a_new_repository_can_be_private(hub, run, push):
    push(run, "--private")
    assert hub.repos["anna/birds"].private
    assert push(run, "--private")[0] == 0


def test_a_public_repository_is_not_taken_for_a_private_one(hub, run, push):
    hub.put("anna/birds", {})
    status, _, err = push(run, "--private")
    assert status == 2
    assert "anna/birds is there already and is public, and --private is for a new one" in err


def test_a_branch_is_made_where_there_is_none(hub, run, push):
    hub.put("anna/birds", {"notes.txt": b"mine"})
    for _ in range(2):
        status, out, _ = push(run, "--revision", "v2/try")
        assert status == 0
        assert "use it: blip2ft caption IMAGE --model anna/birds --revision v2/try" in out
    branches = hub.repos["anna/birds"].branches
    assert set(branches["main"][-1].files) == {"notes.txt"}
    assert set(branches["v2/try"][-1].files) > SENT
    assert len(branches["v2/try"]) == len(branches["main"]) + 1


def test_a_pull_request_leaves_main_as_it_is(hub, run, push, monkeypatch):
    hub.put("anna/birds", {"README.md": b"theirs"})
    monkeypatch.setenv("HF_TOKEN", BOB)
    status, out, _ = push(run, "--pull-request")
    assert status == 0
    assert f"{hub.url}/anna/birds/discussions/1" in out
    assert hub.repos["anna/birds"].files == {"README.md": b"theirs"}
    assert set(hub.repos["anna/birds"].branches["refs/pr/1"][-1].files) >= SENT


def test_a_pull_request_needs_a_repository(hub, run, push):
    status, _, err = push(run, "--pull-request")
    assert status == 2
    assert "the hub has no repository anna/birds that you may see, so there is nothing to" in err
    assert not hub.repos


def test_a_pull_request_that_is_not_there_is_told(hub, run, push):
    hub.put("anna/birds", {})
    status, _, err = push(run, "--revision", "refs/pr/7")
    assert (status, err.count("\n")) == (2, 1)
    assert "anna/birds has no such branch or pull request on the hub" in err


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("birds", "lacks its owner; give OWNER/NAME, such as YOU/birds"),
        ("anna/my birds", "can be no repository: letters, digits"),
        ("anna/birds/2", "can be no repository"),
        ("anna/birds.git", "can be no repository"),
        ("https://huggingface.co/anna/birds", "can be no repository"),
    ],
)
def test_a_name_that_can_not_be_is_told_before_the_hub_is_asked(hub, run, push, name, said):
    status, _, err = push(run, "--repo", name)
    assert (status, err.count("\n")) == (2, 1)
    assert f"--repo is '{name}'" in err
    assert said in err
    assert not hub.requests


@pytest.mark.parametrize("name", ["a..b", "-x", "a b", "x.lock", "a//b", "/a", "a/", "a~1", "x^"])
def test_a_branch_that_can_not_be_is_refused(name):
    with pytest.raises(ValueError, match="which can be no branch; give one such as main"):
        Target("anna/birds", name).check()


def test_a_commit_is_no_branch_and_a_pull_request_goes_to_main():
    Target("anna/birds", "feature/x-1.0").check()
    with pytest.raises(ValueError, match="is a commit; give the name of a branch"):
        Target("anna/birds", "0123456789" * 4).check()
    with pytest.raises(ValueError, match="a pull request goes to main; leave out --revision"):
        Target("anna/birds", "dev", pull_request=True).check()


def test_without_a_token_nothing_is_asked(hub, run, push, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    status, _, err = push(run)
    assert (status, err.count("\n")) == (2, 1)
    assert "there is no token of the hub: log in with `hf auth login`, or set HF_TOKEN" in err
    assert not hub.requests


def test_an_unknown_token_is_told(hub, run, push, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    status, _, err = push(run)
    assert (status, err.count("\n")) == (2, 1)
    assert "the hub doesn't know your token" in err
    assert "xxxx" not in err


@pytest.mark.parametrize("there", [False, True])
def test_a_token_without_the_right_is_told(hub, run, push, monkeypatch, there):
    if there:
        hub.put("anna/birds", {})
    monkeypatch.setenv("HF_TOKEN", READER)
    status, _, err = push(run)
    assert (status, err.count("\n")) == (2, 1)
    assert "your token may not write to anna/birds" in err


def test_a_repository_of_another_owner_is_told(hub, run, push):
    hub.put("bob/birds", {})
    for name in ("bob/birds", "bob/cats"):
        status, _, err = push(run, "--repo", name)
        assert status == 2
        assert f"your token may not write to {name}" in err


def test_offline_nothing_is_asked(hub, run, push, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    status, _, err = push(run)
    assert (status, err.count("\n")) == (2, 1)
    assert "HF_HUB_OFFLINE is set, so nothing can be sent" in err
    assert not hub.requests


def test_a_broken_upload_is_gone_on_with_by_the_same_command(hub, run, push):
    lora = {"base_model.model.x.lora_A.weight": torch.ones(64, 64)}
    save_file(lora, run / "adapter" / "adapter_model.safetensors", {"format": "pt"})
    (run / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "x"}')
    # the second upload breaks off midway, as often as the client tries again
    small, large = sorted(run.glob("adapter/*.safetensors"), key=lambda path: path.stat().st_size)
    lost = hashlib.sha256(large.read_bytes()).hexdigest()
    hub.fail(f"PUT /large/{lost}", times=6, after=1000)
    status, _, err = push(run)
    assert status == 2
    assert "Error while uploading 'adapter_model.safetensors'" in err
    assert f"the connection to {hub.url} broke off" in err
    assert "run the same command again" in err
    assert len(hub.repos["anna/birds"].branches["main"]) == 1
    assert [size for _, size in hub.sent] == [small.stat().st_size]
    assert push(run)[0] == 0
    assert [size for _, size in hub.sent] == [small.stat().st_size, large.stat().st_size]
    sent = hub.repos["anna/birds"].files
    assert sent["adapter_model.safetensors"] == large.read_bytes()
    assert json.loads(sent["adapter_config.json"])["base_model_name_or_path"].startswith("Sales")


def test_a_commit_that_breaks_off_is_made_by_the_same_command(hub, run, push):
    hub.fail("POST .*/commit/main", after=10)
    status, _, err = push(run)
    assert (status, err.count("\n")) == (2, 1)
    assert "broke off" in err
    assert push(run)[0] == 0
    assert set(hub.repos["anna/birds"].files) > SENT
    assert len(hub.sent) == 1


def test_a_fault_that_passes_is_waited_out(hub, run, push):
    hub.fail("PUT /large/.*", 503, times=2)
    hub.fail("POST .*/preupload/.*", 500, times=1)
    assert push(run)[0] == 0
    assert hub.asked("PUT /large/.*") == 3


@pytest.mark.parametrize(
    ("where", "status", "message", "said"),
    [
        ("POST .*/commit/main", 500, "", "the hub has a fault of its own, 500"),
        ("POST .*/objects/batch", 507, "Storage full", "the hub has no room for this in anna/bir"),
        ("POST .*/objects/batch", 403, "Private storage limit reached", "limit reached"),
        ("POST .*/commit/main", 412, "Changed", "anna/birds was changed meanwhile (Changed)"),
        ("POST .*/commit/main", 422, "Bad", "the hub refuses this for anna/birds, 422 (Bad)"),
        ("POST .*/commit/main", 418, "Tea", "the hub answered 418 for anna/birds (Tea)"),
        ("POST /api/repos/create", 400, "Odd", "the hub refuses this for anna/birds, 400 (Odd)"),
        ("GET /api/models/.*", 429, "Slow", "the hub was asked too often (Slow)"),
        ("PUT /large/.*", 403, "Gone", "Error while uploading 'trained.safetensors'"),
    ],
    ids=["500", "507", "storage", "412", "422", "418", "400", "429", "upload"],
)
def test_what_the_hub_refuses_is_one_line(hub, run, push, where, status, message, said):
    hub.fail(where, status, message, times=9)
    exit_status, _, err = push(run)
    assert exit_status == 2
    *_, last = err.splitlines()
    assert said in last
    assert "Request ID" not in err
    assert "Traceback" not in err


def test_a_full_storage_is_told(hub, run, push):
    hub.is_full = True
    status, _, err = push(run)
    assert (status, err.count("\n")) == (2, 1)
    assert "the hub doesn't take the weights for anna/birds" in err
    assert "You have no storage left" in err


def test_what_xet_can_not_send_is_told(hub, run, push, monkeypatch):
    pytest.importorskip("hf_xet")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    status, _, err = push(run)  # this hub doesn't speak it
    assert (status, err.count("\n")) == (2, 1)
    assert "error: the upload broke off" in err
    assert "run the same command again" in err


def test_large_files_go_in_parts_where_the_hub_wants_that(hub, run, push):
    hub.part_size = 100
    assert push(run)[0] == 0
    sizes = [size for _, size in hub.sent]
    weights = run / "adapter" / "trained.safetensors"
    assert sum(sizes) == weights.stat().st_size
    assert max(sizes) == 100
    assert hub.repos["anna/birds"].files["trained.safetensors"] == weights.read_bytes()


def test_a_card_that_the_hub_refuses_stops_the_push(hub, run, push, card):
    card.text = "---\nlicense: bad\n---\n"
    status, _, err = push(run)
    assert (status, err.count("\n")) == (2, 1)
    assert 'Invalid metadata in README.md. - "license" must be one of them' in err


def test_what_the_hub_warns_of_is_told(hub, run, push, card, caplog):
    card.text = "# No metadata\n"
    assert push(run)[0] == 0
    assert "README.md: - empty or missing yaml metadata" in caplog.text


def test_a_card_of_ones_own_is_taken_as_it_is(hub, run, push, tmp_path):
    written = tmp_path / "card.md"
    written.write_text(CARD + "By me: 🐦\n", encoding="utf-8")
    status, out, _ = push(run, "--card", written)
    assert status == 0
    assert "the card lacks" not in out
    assert hub.repos["anna/birds"].files["README.md"] == written.read_bytes()
    status, _, err = push(run, "--card", tmp_path / "gone.md")
    assert (status, err.count("\n")) == (2, 1)
    assert "gone.md; leave --card out to have one made" in err


def test_a_path_in_the_card_is_taken_out(hub, run, push, card):
    card.text = CARD + f"Look at `{run.parent}/photos/1.jpg`.\n"
    assert push(run)[0] == 0
    assert hub.repos["anna/birds"].files["README.md"].decode() == CARD + "Look at `1.jpg`.\n"


def test_a_secret_stops_the_push_and_can_be_let_out(hub, run, push):
    key = "sk-" + "1" * 30
    (run / "environment.json").write_text(json.dumps({"command": ["--key", key]}))
    status, _, err = push(run)
    assert (status, err.count("\n")) == (2, 1)
    assert (
        "nothing was sent, as it would tell what is private: run/environment.json, line 4: " in err
    )
    assert "sk-1… (an API key)" in err
    assert key not in err
    assert not hub.repos
    assert push(run, "--allow", key)[0] == 0


def test_weights_are_looked_at_too(run, hub, push):
    weights = {"query_tokens": torch.zeros(2)}
    noted = {"format": "pt", "made": "/home/anna/x.py"}
    save_file(weights, run / "adapter" / "trained.safetensors", noted)
    status, _, err = push(run)
    assert status == 2
    assert "trained.safetensors, line 2: /home/anna/x.py (a path of a machine)" in err


def test_something_else_is_no_run(hub, run, push, tmp_path):
    for folder in (tmp_path / "gone", run / "adapter", run.parent):
        status, _, err = push(folder)
        assert (status, err.count("\n")) == (2, 1)
        assert "is no run: it has no config.yaml; pass the --output of a run" in err


def test_a_run_that_goes_on_has_nothing_to_push(hub, run, push):
    (run / "adapter" / "blip2ft.json").unlink()
    status, _, err = push(run)
    assert status == 2
    assert "hasn't ended" in err


def test_an_adapter_on_a_folder_needs_its_base_on_the_hub(hub, run_folder, push):
    status, _, err = push(run_folder)
    assert (status, err.count("\n")) == (2, 1)
    assert re.search(r"was trained on the folder .*, so nobody else can load its adapter", err)
    assert "--base-repo ID" in err
    assert "--merged" in err


def test_a_text_branch_of_a_folder_can_only_be_merged(hub, made_run, push):
    run = made_run("vqa")
    path = run / "adapter" / "blip2ft.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"stage1": "/models/bert"}))
    status, _, err = push(run)
    assert status == 2
    assert "took its Q-Former's text branch from the folder /models/bert" in err


@pytest.mark.parametrize(
    ("task", "use"),
    [
        ("vqa", 'blip2ft ask IMAGE "QUESTION" --model anna/birds'),
        ("retrieval", "blip2ft index FOLDER --out INDEX --model anna/birds"),
    ],
)
def test_runs_of_other_tasks_are_pushed_alike(hub, made_run, push, task, use):
    status, out, _ = push(made_run(task))
    assert status == 0
    assert f"use it: {use}\n" in out
    assert set(hub.repos["anna/birds"].files) >= SENT
