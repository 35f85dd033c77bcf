"""METEOR 1.5 through the Java program that pycocoevalcap brings.

Source: Denkowski and Lavie 2014 (W14-3348); options and protocol as in pycocoevalcap 1.2,
meteor/meteor.py. Words are the Treebank tokens of `ptb.py`.
"""

import contextlib
import subprocess
import tempfile
from collections.abc import Sequence
from typing import IO

import evaluate

from blip2ft.metrics.caption_info import caption_info
from blip2ft.metrics.java import MetricUnavailable, java_command, program_folder
from blip2ft.metrics.ptb import tokenize

DESCRIPTION = "METEOR 1.5 over Penn Treebank tokens, as for COCO captions; needs Java."


def meteor_scores(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """METEOR of captions against their references.

    Args:
        predictions: One caption a sample.
        references: The references of each sample, at least one.

    Returns:
        The corpus score and the per-sample scores, both under meteor, within 0 and 1. The corpus
        score pools statistics over samples, so it is not the mean of the per-sample ones.

    Raises:
        MetricUnavailable: Java or pycocoevalcap is missing, or the program failed.
    """
    folder, java = program_folder("meteor"), java_command("meteor")
    command = [java, "-jar", "-Xmx2G", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm"]
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            statistics = [
                _ask(process.stdin, process.stdout, errors, _score_line(prediction, sample))
                for prediction, sample in zip(predictions, references, strict=True)
            ]
            line = " ||| ".join(["EVAL", *statistics])
            scores = [float(_ask(process.stdin, process.stdout, errors, line))]
            # one line a sample, then one for the corpus
            scores += [float(_read(process.stdout, errors)) for _ in statistics]
        finally:
            process.kill()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
    return {"meteor": scores[-1]}, {"meteor": scores[:-1]}


def _score_line(prediction: str, references: Sequence[str]) -> str:
    # "|||" separates the fields of the protocol
    texts = [" ".join(tokenize(text)).replace("|||", "") for text in (*references, prediction)]
    return " ||| ".join(["SCORE", *texts])


def _ask(stdin: IO[bytes], stdout: IO[bytes], errors: IO[bytes], line: str) -> str:
    # a program that has ended is reported when its answer is read
    with contextlib.suppress(BrokenPipeError):
        stdin.write(f"{line}\n".encode())
        stdin.flush()
    return _read(stdout, errors)


def _read(stdout: IO[bytes], errors: IO[bytes]) -> str:
    answer = stdout.readline().decode().strip()
    if not answer:
        errors.seek(0)
        said = errors.read().decode(errors="replace").strip()[-500:]
        raise MetricUnavailable(
            f"METEOR's Java program ended without an answer; it said: {said or 'nothing'}. "
            "It needs Java 8 or later and 2 GB of memory: check `java -version`."
        )
    return answer


class Meteor(evaluate.Metric):
    """The `evaluate` module: predictions are strings, references lists of strings."""

    def _info(self) -> evaluate.MetricInfo:
        return caption_info(DESCRIPTION, "Denkowski and Lavie 2014")

    def _compute(self, predictions, references):
        return meteor_scores(predictions, references)[0]
