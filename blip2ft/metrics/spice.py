"""SPICE through the Java program that pycocoevalcap brings.

Source: Anderson et al. 2016 (arXiv 1607.08822); options as in pycocoevalcap 1.2, spice/spice.py.
The program needs the Stanford CoreNLP 3.6.0 models (about 400 MB), which are downloaded once by
the command in the message and never by this module, so nothing here waits for a network.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import evaluate

from blip2ft.metrics.caption_info import caption_info
from blip2ft.metrics.java import MetricUnavailable, java_command, program_folder
from blip2ft.metrics.ptb import tokenize

MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
FETCH = f"{sys.executable} -m pycocoevalcap.spice.get_stanford_models"
SECONDS_TO_LOAD = 600
SECONDS_PER_SAMPLE = 2

DESCRIPTION = "SPICE over Penn Treebank tokens, as for COCO captions; needs Java and models."


def spice_scores(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """SPICE of captions against their references.

    Args:
        predictions: One caption a sample.
        references: The references of each sample, at least one.

    Returns:
        The mean and the per-sample F-scores, both under spice, within 0 and 1.

    Raises:
        MetricUnavailable: Java, pycocoevalcap or the models are missing, or the program failed.
    """
    folder, java = program_folder("spice"), java_command("spice")
    if missing := missing_models(folder):
        raise MetricUnavailable(
            f"SPICE needs {' and '.join(missing)} in {folder / 'lib'}. With a network, download "
            f"them once: {FETCH}"
        )
    samples = [
        {
            "image_id": index,
            "test": " ".join(tokenize(prediction)),
            "refs": [" ".join(tokenize(reference)) for reference in sample],
        }
        for index, (prediction, sample) in enumerate(zip(predictions, references, strict=True))
    ]
    with tempfile.TemporaryDirectory() as scratch:
        results = _run(java, folder, Path(scratch), samples)
    by_id = {result["image_id"]: float(result["scores"]["All"]["f"]) for result in results}
    scores = [by_id[index] for index in range(len(samples))]
    return {"spice": sum(scores) / len(scores)}, {"spice": scores}


def missing_models(folder: Path) -> list[str]:
    """Which models aren't in the program's folder."""
    return [name for name in MODELS if not (folder / "lib" / name).exists()]


def _run(java: str, folder: Path, scratch: Path, samples: list[dict]) -> list[dict]:
    (scratch / "in.json").write_text(json.dumps(samples))
    (scratch / "cache").mkdir()
    command = [java, "-jar", "-Xmx8G", "spice-1.0.jar", str(scratch / "in.json")]
    command += ["-cache", str(scratch / "cache"), "-out", str(scratch / "out.json")]
    limit = SECONDS_TO_LOAD + SECONDS_PER_SAMPLE * len(samples)
    try:
        subprocess.run(
            [*command, "-subset", "-silent"],
            cwd=folder,
            check=True,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=limit,
        )
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip()[-500:]
        raise MetricUnavailable(
            f"SPICE's Java program failed with status {error.returncode}; it said: "
            f"{said or 'nothing'}. It needs Java 8 and 8 GB of memory: check `java -version`."
        ) from error
    except subprocess.TimeoutExpired as error:
        raise MetricUnavailable(
            f"SPICE's Java program gave no result within {limit} s and was stopped. "
            "Score fewer captions at a time, or leave SPICE out."
        ) from error
    return json.loads((scratch / "out.json").read_text())


class Spice(evaluate.Metric):
    """The `evaluate` module: predictions are strings, references lists of strings."""

    def _info(self) -> evaluate.MetricInfo:
        return caption_info(DESCRIPTION, "Anderson et al. 2016")

    def _compute(self, predictions, references):
        return spice_scores(predictions, references)[0]
