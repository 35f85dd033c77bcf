"""`blip2ft evaluate`: answers that are kept as they come, scores with intervals and groups."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.state import AcceleratorState

import blip2ft.evaluation.evaluate as evaluating
from blip2ft.data.records import read_records
from blip2ft.evaluation.folder import asked_of, begin
from blip2ft.evaluation.intervals import intervals
from blip2ft.evaluation.subject import Subject
from blip2ft.metrics.java import MetricUnavailable
from blip2ft.tasks.caption import score
from blip2ft.training.run import read_lines

FEW = ("--generation.num_beams", 1, "--generation.max_new_tokens", 3, "--data.workers", 0)


@pytest.fixture(autouse=True)
def fresh_accelerate(monkeypatch):
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture(autouse=True)
def without_java(monkeypatch):
    def missing(predictions, references):
        raise MetricUnavailable("no Java here")

    monkeypatch.setattr(evaluating, "JAVA", {"meteor": missing})


@pytest.fixture(scope="module")
def table(photo_folder, tmp_path_factory) -> Path:
    """Eight photos with ids, a field of two values, and one that is another in each."""
    path = photo_folder / "grouped.csv"
    captions = {
        row.image_id: row.captions[0] for row in read_records(photo_folder / "captions.csv")
    }
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "image_id", "caption", "domain", "note"])
        for i, (image, caption) in enumerate(captions.items()):
            writer.writerow([image, i, caption, "near" if i < 6 else "far", f"note {i}"])
    return path


@pytest.fixture
def config(opt_folder, table, tmp_path) -> Path:
    return write_config(tmp_path / "caption.yaml", opt_folder, source=str(table))


def write_config(path: Path, model: Path, source: str, **more: object) -> Path:
    data = {"validation": {"source": source}}
    settings = {"output": "unused", "model": {"name": str(model)}, "data": data, **more}
    path.write_text(yaml.safe_dump(settings))
    return path


def test_the_base_is_scored_with_intervals_and_groups(
    blip2ft_main, config, table, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    words = ["evaluate", "caption", "--config", config, "--out", out, "--by", "domain", *FEW]
    monkeypatch.setattr(sys, "argv", ["blip2ft", *map(str, words)])
    status, said, err = blip2ft_main(*words)
    assert (status, err) == (0, "")
    rows = read_lines(out / "predictions.jsonl")
    assert [row["image_id"] for row in rows] == [str(i) for i in range(8)]
    assert all(Path(row["image"]).is_file() for row in rows)
    assert rows[7]["fields"] == {"domain": "far", "note": "note 7"}
    official = score(read_records(table), [row["caption"] for row in rows]).scores
    kept = json.loads((out / "scores.json").read_text())
    assert {name: one["value"] for name, one in kept["scores"].items()} == official
    found = intervals("caption", rows)
    assert kept["scores"]["bleu1"]["high"] == found["bleu1"].high
    assert {name: one["records"] for name, one in kept["groups"]["domain"].items()} == {
        "near": 6,
        "far": 2,
    }
    assert (kept["split"], kept["records"], kept["images"]) == ("validation", 8, 8)
    assert kept["command"].startswith(f"blip2ft evaluate caption --config {config} --out")
    assert "on the validation split, 8 images" in said
    assert "meteor is left out: no Java here" in said
    assert "near    6" in said
    # its ids are text, and servers want numbers
    assert not list(out.glob("*_results.json"))


def test_what_a_kill_interrupted_goes_on_with_what_was_answered(
    blip2ft_main, config, tmp_path, monkeypatch
):
    monkeypatch.setattr(evaluating, "BATCHES", 2)
    words = ["evaluate", "caption", "--config", config, *FEW, "--generation.batch_size"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert blip2ft_main(*words, 2, "--out", whole)[0] == 0

    answered = []
    append = evaluating.append

    def killed(out, rows):
        append(out, rows)
        answered.append(len(rows))
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(evaluating, "append", killed)
    status, _, err = blip2ft_main(*words, 2, "--out", cut)
    assert (status, answered) == (130, [4])
    assert err == "\nstopped; the same command with --resume goes on with what was answered\n"
    monkeypatch.setattr(evaluating, "append", append)
    with (cut / "predictions.jsonl").open("a") as file:
        file.write('{"image_id": "4", "cap')
    # how many at once changes no answer
    status, said, _ = blip2ft_main(*words, 1, "--out", cut, "--resume")
    assert (status, "4 of 8 were answered already" in said) == (0, True)
    name = "predictions.jsonl"
    assert (cut / name).read_text() == (whole / name).read_text()
    scores = [json.loads((out / "scores.json").read_text())["scores"] for out in (cut, whole)]
    assert scores[0] == scores[1]


def test_what_is_stopped_while_it_loads_is_not_begun(blip2ft_main, config, tmp_path, monkeypatch):
    monkeypatch.setattr(Subject, "load", lambda *_: signal.raise_signal(signal.SIGINT))
    status, _, err = blip2ft_main(
        "evaluate", "caption", "--config", config, "--out", tmp_path / "out"
    )
    assert (status, (tmp_path / "out").exists()) == (130, False)
    assert err == "\nstopped before anything was answered; the same command begins anew\n"


def test_other_groups_are_scored_later_without_the_model(
    blip2ft_main, config, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    words = ["evaluate", "caption", "--config", config, "--out", out, *FEW]
    assert blip2ft_main(*words, "--by", "domain")[0] == 0
    monkeypatch.setattr(Subject, "load", lambda *_: pytest.fail("the model was loaded"))
    monkeypatch.setattr(sys, "argv", ["blip2ft", "evaluate", "--resume"])
    assert blip2ft_main(*words, "--resume", "--by", "note")[0] == 0
    kept = json.loads((out / "scores.json").read_text())
    assert list(kept["groups"]) == ["domain", "note"]
    assert kept["command"] == "blip2ft evaluate"


def test_an_evaluation_goes_on_as_the_same_alone(blip2ft_main, config, tmp_path):
    out = tmp_path / "out"
    words = ["evaluate", "caption", "--config", config, "--out", out, *FEW]
    status, _, err = blip2ft_main(*words, "--resume")
    assert (status, "holds no evaluation; leave out --resume" in err) == (2, True)
    assert blip2ft_main(*words)[0] == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    status, _, err = blip2ft_main(*words)
    assert (status, "in use and nothing in it is overwritten; go on" in err) == (2, True)
    status, _, err = blip2ft_main(*words, "--resume", "--prompt", "the photo of")
    assert status == 2
    assert 'prompt was "a photo of" and is "the photo of". Give what was given there' in err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (["--by", "domian"], "no record has a field 'domian'; did you mean domain?"),
        (["--split", "test"], "the settings have no test split; give --data.test.source"),
        (["--model", "nowhere/at all"], "nowhere/at all"),
        (["--data.validation.source", "gone.csv"], "gone.csv: no such file"),
        (["--propmt", "x"], "did you mean --prompt?"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_written(
    blip2ft_main, config, tmp_path, words, wrong
):
    out = tmp_path / "out"
    status, _, err = blip2ft_main("evaluate", "caption", "--config", config, "--out", out, *words)
    assert (status, wrong in err, out.exists()) == (2, True, False), err


def test_without_settings_it_asks_for_them(blip2ft_main, run_folder, tmp_path):
    words = ["evaluate", "caption", "--out", tmp_path / "out"]
    assert "say what to evaluate on: --config F.yaml, or --adapter RUN" in blip2ft_main(*words)[2]
    bare = tmp_path / "bare"
    bare.symlink_to(run_folder / "adapter")
    err = blip2ft_main(*words, "--adapter", bare)[2]
    assert "bare has no config.yaml, so it doesn't say what to evaluate on" in err
    err = blip2ft_main(*words, "--adapter", tmp_path / "gone")[2]
    assert "gone: there is no such folder; for a run on the hub give a --config F.yaml" in err
    err = blip2ft_main(*words, "--adapter", run_folder, "--adapter", f"{run_folder}=0.5")[2]
    assert "--adapter names a run twice" in err


def test_settings_of_another_task_are_told_as_such(blip2ft_main, opt_folder, table, tmp_path):
    config = write_config(tmp_path / "r.yaml", opt_folder, str(table), search={"candidates": 8})
    words = ["evaluate", "caption", "--config", config, "--out", tmp_path / "out"]
    status, _, err = blip2ft_main(*words)
    assert status == 2
    assert err == f"error: {config} is of retrieval, not of caption: only retrieval has search\n"


def test_a_subject_is_called_by_what_it_is():
    def name(base: str | None, **runs: float) -> str:
        return Subject(base, None, {Path(run): weight for run, weight in runs.items()}, {}).name

    assert name("anna/birds") == "anna/birds"
    assert name(None, a=1.0) == name("anna/birds", a=1.0) == "a"
    assert name(None, a=0.5) == "0.5 a"
    assert name(None, a=1.0, b=0.25) == "1 a + 0.25 b"


def test_a_run_is_evaluated_on_its_base_and_mixed_with_itself(
    blip2ft_main, config, run_folder, opt_folder, tmp_path
):
    words = ["evaluate", "caption", "--config", config, *FEW]
    alone, mixed = tmp_path / "alone", tmp_path / "mixed"
    status, said, _ = blip2ft_main(*words, "--adapter", run_folder, "--out", alone)
    assert status == 0
    assert "was trained with the prompt 'the photo of' and is asked with 'a photo of'" in said
    assert "--prompt 'the photo of'" in said
    twin = tmp_path / "twin"
    twin.symlink_to(run_folder)
    halves = ["--adapter", f"{run_folder}=0.5", "--adapter", f"{twin}=0.5"]
    assert blip2ft_main(*words, *halves, "--out", mixed)[0] == 0
    first, second = (read_lines(out / "predictions.jsonl") for out in (alone, mixed))
    assert [row["caption"] for row in first] == [row["caption"] for row in second]
    assert blip2ft_main(*words, "--out", tmp_path / "base")[0] == 0
    base = read_lines(tmp_path / "base" / "predictions.jsonl")
    assert [row["caption"] for row in base] != [row["caption"] for row in first]
    status, _, err = blip2ft_main(
        "evaluate", "vqa", "--config", config, "--adapter", run_folder, "--out", tmp_path / "no"
    )
    assert (status, "was trained for caption, not for vqa: blip2ft evaluate caption" in err) == (
        2,
        True,
    )


def test_captions_for_the_servers(blip2ft_main, opt_folder, photo_folder, tmp_path):
    images = [{"id": 10 + i, "file_name": f"photo{i}.jpg", "domain": "near"} for i in range(3)]
    (photo_folder / "nocaps.json").write_text(json.dumps({"images": images, "annotations": []}))
    config = write_config(tmp_path / "c.yaml", opt_folder, str(photo_folder / "nocaps.json"))
    out = tmp_path / "out"
    status, said, _ = blip2ft_main("evaluate", "caption", "--config", config, "--out", out, *FEW)
    assert status == 0
    assert "there is nothing to score the answers against" in said
    (path,) = out.glob("*_results.json")
    assert path.name.startswith("captions_validation_")
    kept = json.loads(path.read_text())
    assert [set(row) for row in kept] == [{"image_id", "caption"}] * 3
    assert [row["image_id"] for row in kept] == [10, 11, 12]
    assert json.loads((out / "scores.json").read_text())["scores"] == {}


def test_answers_by_type_and_for_the_server(blip2ft_main, opt_folder, photo_folder, tmp_path):
    table = photo_folder / "asked.jsonl"
    rows = [
        {"image": f"photo{i % 4}.jpg", "question": "what is it?", "answers": ["a cat"] * 3}
        | {"question_id": i, "answer_type": "other" if i % 2 else "number"}
        for i in range(8)
    ]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = tmp_path / "vqa.yaml"
    write_config(config, opt_folder, str(table), question_in_qformer=False)
    settings = yaml.safe_load(config.read_text())
    settings["data"]["train"] = []
    config.write_text(yaml.safe_dump(settings))
    out = tmp_path / "out"
    words = ["evaluate", "vqa", "--config", config, "--out", out, "--by", "answer_type", *FEW]
    status, said, err = blip2ft_main(*words)
    assert (status, err) == (0, "")
    assert "8 questions on 4 images" in said
    kept = json.loads((out / "scores.json").read_text())
    assert list(kept["scores"]) == ["accuracy", "accuracy_number", "accuracy_other"]
    assert list(kept["groups"]["answer_type"]) == ["number", "other"]
    (path,) = out.glob("vqa_OpenEnded_mscoco_validation_*_results.json")
    answers = json.loads(path.read_text())
    assert [row["question_id"] for row in answers] == list(range(8))


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        ([], "asked.jsonl:4: question 3 has 202 tokens with its prompt"),
        (["--prompt", "what is it?"], "the prompt 'what is it?' must have exactly one {}"),
        (["--candidates", "gone.txt"], "gone.txt"),
    ],
)
def test_questions_that_can_not_be_asked_are_told_before_any_is(
    blip2ft_main, opt_folder, retriever_folder, photo_folder, tmp_path, monkeypatch, words, wrong
):
    monkeypatch.setattr(evaluating, "BATCHES", 1)
    rows = [
        {"image": f"photo{i}.jpg", "question": "a cat " * (1 if i < 3 else 100)}
        | {"question_id": i, "answers": ["a cat"]}
        for i in range(4)
    ]
    table = tmp_path / "asked.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config, out = tmp_path / "vqa.yaml", tmp_path / "out"
    source = {"source": str(table), "image_root": str(photo_folder)}
    settings = {"output": "unused", "model": {"name": str(opt_folder)}, "prompt": "{}"}
    settings |= {"stage1": str(retriever_folder), "data": {"train": [], "validation": source}}
    config.write_text(yaml.safe_dump(settings))
    few = [*FEW, "--generation.batch_size", 1]
    status, _, err = blip2ft_main("evaluate", "vqa", "--config", config, "--out", out, *few, *words)
    assert (status, wrong in err, out.exists()) == (2, True, False), err


def test_answers_to_choose_from_and_the_text_branch_stay_the_same(tmp_path):
    listed = tmp_path / "answers.txt"
    listed.write_text("yes\nno\n")
    model = {"image_size": 224}
    data = {"validation": {"source": "a.csv"}, "max_target_tokens": 8}
    settings = {"model": model, "data": data, "prompt": "{}", "generation": {"batch_size": 2}}
    settings |= {"candidates": str(listed), "question_in_qformer": True, "stage1": "a/bert"}

    def asked(**changed):
        return asked_of("vqa", settings | changed, "validation", [], {}, "fp32")

    begin(tmp_path / "out", asked(), resume=False)
    assert begin(tmp_path / "out", asked(generation={"batch_size": 1}), resume=True) == []
    with pytest.raises(ValueError, match=r'stage1 was "a/bert" and is "b/bert"\. Give what was'):
        begin(tmp_path / "out", asked(stage1="b/bert"), resume=True)
    listed.write_text("yes\n")
    with pytest.raises(ValueError, match=r"candidates was .*answers\.txt.* and is .*answers\.txt"):
        begin(tmp_path / "out", asked(), resume=True)


def test_retrieval_is_scored_both_ways(blip2ft_main, retriever_folder, table, tmp_path):
    config = write_config(tmp_path / "r.yaml", retriever_folder, str(table))
    out = tmp_path / "out"
    words = ["evaluate", "retrieval", "--config", config, "--out", out, "--by", "domain"]
    status, _, err = blip2ft_main(*words, "--data.workers", 0, "--data.max_target_tokens", 12)
    assert (status, err) == (0, "")
    kept = json.loads((out / "scores.json").read_text())
    assert list(kept["scores"])[-1] == "mean_recall"
    assert kept["scores"]["image_to_text_r10"]["value"] == 1.0
    assert kept["groups"]["domain"]["far"]["records"] == 2


@pytest.mark.slow
def test_two_processes_count_each_sample_once(blip2ft_main, config, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    words = ["evaluate", "caption", "--config", config, *FEW, "--by", "domain"]
    assert blip2ft_main(*words, "--out", one)[0] == 0
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "blip2ft", *map(str, words), "--out", str(two)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    name = "predictions.jsonl"
    assert (two / name).read_text() == (one / name).read_text()
    assert done.stdout.count("everything lies in") == 1
    scores = [json.loads((out / "scores.json").read_text())["scores"] for out in (one, two)]
    assert {k: v for k, v in scores[1].items() if k != "meteor"} == scores[0]
