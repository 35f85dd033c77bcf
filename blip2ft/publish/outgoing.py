"""What of a run goes to the hub: weights, card, settings, scores and a few answers.

README.md                                        the card
blip2ft.json                                     task, base and its commit, prompt, decoding
adapter_config.json, adapter_model.safetensors   the LoRA, in peft's layout
trained.safetensors                              parts trained in full, query tokens and heads too
run/config.yaml, environment.json                every setting; versions and command
run/metrics.jsonl, samples.jsonl                 each evaluation's scores; some of the answers

Merged, the model and its processor in transformers' format take the weights' place. Data, images,
checkpoints and the optimizer's state stay where they are, and so do absolute paths.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from safetensors import safe_open

from blip2ft.card.card import Card, model_card
from blip2ft.card.facts import Release
from blip2ft.export import export_run
from blip2ft.finetuned import adapter_folder
from blip2ft.models.adapters import DESCRIPTION_FILE, FULL_FILE, LORA_FILE, read_description
from blip2ft.models.identity import check_base, identify
from blip2ft.publish.private import leaks, of_this_machine, scrub, scrub_text
from blip2ft.report.reading import read_run
from blip2ft.training.run import read_lines

LORA_SETTINGS = "adapter_config.json"
NOT_OF_THE_ANSWER = ("image", "origin", "fields")  # of a prediction: where its data lie, and more
SHOWN_LEAKS = 5


@dataclass(frozen=True)
class Outgoing:
    """What is sent.

    files: by their paths in the repository, on disk or as bytes; lacking: what the card still asks
    a person for; local: paths that must not be in any of them; said: what a person said.
    """

    files: dict[str, Path | bytes]
    lacking: list[str]
    local: list[str]
    said: str

    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        return _sizes(self.files)


@contextmanager
def outgoing(
    run: Path,
    *,
    repo: str | None = None,
    merged: bool = False,
    dtype: str = "fp32",
    base_repo: str | None = None,
    look_up: bool = True,
    samples: int = 8,
    said: Mapping[str, Any] | None = None,
    fields: Sequence[str] | None = None,
    card: Path | None = None,
) -> Iterator[Outgoing]:
    """The files of `run` that go to the hub, while the body runs.

    repo: where they go to, for the card. merged: the exported model in `dtype`, which is made in a
      temporary folder, for the adapter.
    base_repo: hub id of the base, where the run's is a folder; without `look_up` it isn't looked
      up, so that neither its commit nor whether it is the same model is known. What is merged is
      merged into the folder while it is there.
    samples: how many answers of the result's evaluation; said: what a person says for the card;
    fields: by which the card tells results apart; card: one that is written already.

    Raises ValueError for what is no run or hasn't ended, and for an adapter whose base nobody else
    has or isn't `base_repo`.
    """
    if not (run / "config.yaml").is_file():
        raise ValueError(f"{run} is no run: it has no config.yaml; pass the --output of a run")
    folder = adapter_folder(run)
    description = read_description(folder)
    base, stand_ins = description["base"], {}
    if Path(base).is_absolute():
        stand_ins[base] = base_repo or Path(base).name
    stage1 = description.get("stage1")
    if not merged:
        _check_found_by_others(run, base, stage1, base_repo)
        if base_repo is not None:
            description |= {"base": base_repo, "revision": None}
            if look_up:
                found = identify(base_repo)
                check_base(run, read_description(folder), base_repo, found.revision)
                description["revision"] = found.revision
    files: dict[str, Path | bytes] = {}
    with TemporaryDirectory(prefix="blip2ft-push-") as scratch:
        if merged:
            out, gone = Path(scratch) / "model", base in stand_ins and not Path(base).exists()
            export_run(run, out, dtype=dtype, base=base_repo if gone else None)
            found_files = sorted(path for path in out.rglob("*") if path.is_file())
            files |= {path.relative_to(out).as_posix(): path for path in found_files}
        else:
            files |= _adapter_files(folder, description, stand_ins)
        files |= _record_files(run, stand_ins, samples)
        said = dict(said or {})
        if base_repo is not None:
            said.setdefault("base_model", base_repo)
        if card is None:
            release = _release(files, repo=repo, merged=merged, fields=fields, samples=samples)
            made = model_card(run, said, release)
        else:
            made = Card(card.read_text("utf-8"), [])
        files = {"README.md": scrub_text(made.text, stand_ins).encode(), **files}
        local = [str(run.resolve()), *(path for path in (base, stage1) if path)]
        local = [path for path in local if Path(path).is_absolute()]
        yield Outgoing(files, made.missing, local, " ".join(map(str, said.values())))


def check_nothing_private(sent: Outgoing, allowed: Collection[str] = ()) -> None:
    """Raise ValueError where a file that goes out holds a path of this machine, a name or a token.

    Of safetensors the header is read, which has the names of the tensors and what was noted. The
    message names file and line. allowed: strings that may go out all the same.
    """
    known = of_this_machine(*sent.local, said=sent.said)
    found = [
        leak
        for name, file in sent.files.items()
        for leak in leaks(name, _readable(name, file), known, allowed)
    ]
    if found:
        more = len(found) - SHOWN_LEAKS
        shown = "; ".join(found[:SHOWN_LEAKS]) + (f"; and {more} more" if more > 0 else "")
        raise ValueError(
            f"nothing was sent, as it would tell what is private: {shown}. Take it out of the run "
            "or of what the card says, or let a text go out with --allow TEXT"
        )


def mark_of(run: Path) -> str:
    """Twelve digits that tell a run from others, wherever its folder lies."""
    digest = hashlib.sha256()
    for name in ("config.yaml", "environment.json"):
        path = run / name
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()[:12]


def _check_found_by_others(run: Path, base: str, stage1: str | None, base_repo: str | None) -> None:
    if stage1 is not None and Path(stage1).is_absolute():
        raise ValueError(
            f"{run} took its Q-Former's text branch from the folder {stage1}, so nobody else can "
            "load its adapter: push the whole model, with --merged"
        )
    if base_repo is None and Path(base).is_absolute():
        raise ValueError(
            f"{run} was trained on the folder {base}, so nobody else can load its adapter: say "
            "where the same model is on the hub, with --base-repo ID, or push the whole model, "
            "with --merged"
        )


def _adapter_files(
    folder: Path, description: Mapping[str, Any], stand_ins: Mapping[str, str]
) -> dict[str, Path | bytes]:
    files: dict[str, Path | bytes] = {DESCRIPTION_FILE: _json(scrub(description, stand_ins))}
    if (folder / LORA_SETTINGS).is_file():
        settings = json.loads((folder / LORA_SETTINGS).read_text(encoding="utf-8"))
        settings["base_model_name_or_path"] = description["base"]
        settings["revision"] = description["revision"]
        files[LORA_SETTINGS] = _json(scrub(settings, stand_ins))
    for name in (LORA_FILE, FULL_FILE):
        if (folder / name).is_file():
            files[name] = folder / name
    return files


def _record_files(run: Path, stand_ins: Mapping[str, str], samples: int) -> dict[str, bytes]:
    """The run's own record, without paths."""
    settings = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    text = yaml.safe_dump(scrub(settings, stand_ins), sort_keys=False, allow_unicode=True)
    files = {"run/config.yaml": text.encode()}
    if (run / "environment.json").is_file():
        environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
        files["run/environment.json"] = _json(scrub(environment, stand_ins))
    rows = {"metrics": read_lines(run / "metrics.jsonl"), "samples": sample_answers(run, samples)}
    for name, of_it in rows.items():
        if of_it:
            lines = (json.dumps(scrub(row, stand_ins), ensure_ascii=False) for row in of_it)
            files[f"run/{name}.jsonl"] = "".join(f"{line}\n" for line in lines).encode()
    return files


def sample_answers(run: Path, count: int) -> list[dict[str, Any]]:
    """The first answers of the weights that go out, of the test split where there is one.

    Paths of images, and what else the data say of them, are left out.
    """
    return [
        {key: value for key, value in row.items() if key not in NOT_OF_THE_ANSWER}
        for row in read_run(run).answers_after[:count]
    ]


def _release(
    files: Mapping[str, Path | bytes],
    *,
    repo: str | None,
    merged: bool,
    fields: Sequence[str] | None,
    samples: int,
) -> Release:
    """How a card tells of what goes out."""
    weights = {name: size for name, size in _sizes(files).items() if name.endswith(".safetensors")}
    chosen = None if fields is None else tuple(fields)
    shown = min(samples, Release.examples)  # none where no answers shall go out
    return Release(repo, merged=merged, weights=weights, fields=chosen, examples=shown)


def _sizes(files: Mapping[str, Path | bytes]) -> dict[str, int]:
    return {
        name: len(one) if isinstance(one, bytes) else one.stat().st_size
        for name, one in files.items()
    }


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _readable(name: str, file: Path | bytes) -> str:
    """What of a file can be read: a text, or the header of safetensors."""
    if isinstance(file, Path) and file.suffix == ".safetensors":
        with safe_open(file, framework="np") as tensors:
            noted = sorted((tensors.metadata() or {}).items())  # they come in no order
            return "\n".join([*(f"{key}: {text}" for key, text in noted), *tensors.keys()])
    content = file if isinstance(file, bytes) else file.read_bytes()
    return content.decode("utf-8", errors="replace")
