"""The numbers of what a run learned from."""

import json

from accelerate import Accelerator

from blip2ft.data.questions import Question
from blip2ft.data.records import Record
from blip2ft.data.stream import open_stream
from blip2ft.training.learned_from import FILE, describe_source, keep_learned_from


def record(name: str, *captions: str) -> Record:
    return Record(b"", name, captions, "", {})


def test_captions_are_counted():
    source = [record("a", "a cat", "the cat there"), record("b", "a cat")]
    found = describe_source(source, ["a cat ", "a dog", "the cat there", "?"])
    assert found["images"] == 2
    assert (found["texts"], found["distinct_texts"]) == (3, 2)
    assert found["words_per_text"] == 7 / 3
    assert found["repeated"] == 0.5


def test_questions_are_counted_and_answers_looked_up():
    source = [Question(b"", "a", i, "What is it?", ("cat", "dog"), "") for i in range(2)]
    found = describe_source(source, ["dog", "bird"])
    assert (found["images"], found["texts"], found["distinct_texts"]) == (1, 2, 1)
    assert found["repeated"] == 0.5


def test_without_answers_nothing_is_repeated():
    assert describe_source([record("a", "a cat")])["repeated"] is None


def test_of_a_stream_only_its_size_is_known(photo_folder, tmp_path, blip2ft_main):
    status, _, _ = blip2ft_main("shard", photo_folder / "captions.csv", "--out", tmp_path / "s")
    assert status == 0
    stream = open_stream(sources=[{"source": str(tmp_path / "s")}])
    assert describe_source(stream, ["a cat"]) == {"samples": 8, "shards": 1}


def test_it_is_kept_in_the_run(tmp_path):
    keep_learned_from(tmp_path, [record("a", "a cat")], ["a cat"], Accelerator(cpu=True))
    assert json.loads((tmp_path / FILE).read_text())["repeated"] == 1.0
