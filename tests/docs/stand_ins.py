"""Small things under the names that the docs' commands use."""

import re
import shutil
from pathlib import Path

from blip2ft.models.adapters import attach_lora, describe_training, save_trained
from blip2ft.models.identity import identify
from blip2ft.models.load import load_captioner
from blip2ft.models.parts import set_trainable

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CAPTIONER, FINDER = "Salesforce/blip2-opt-2.7b", "Salesforce/blip2-itm-vit-g"


def keep_in_cache(cache: Path, name: str, folder: Path) -> None:
    """Copy a model to where huggingface_hub would have downloaded the hub id `name`."""
    repo = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, repo / "snapshots" / COMMIT)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)


def provide(text: str) -> set[Path]:
    """Make the runs and models that commands of a page name as there already; tells which.

    Those that a command makes itself (--out, --output) are left to it.
    """
    made = set(re.findall(r"(?:--out(?:put)?|convert \S+) (\S+)", text))
    named = set(re.findall(r"\b(?:runs|models)/[\w.-]*[\w-]", text)) - made
    paths = {Path(name) for name in named if not Path(name).exists()}
    for path in paths:
        (finished_run if path.parts[0] == "runs" else exported)(path)
    return paths


def finished_run(folder: Path) -> None:
    """What a run of the stand-in captioner leaves: a LoRA on the language model, the projection."""
    model, _ = load_captioner(CAPTIONER, image_size=364)
    parts = {"vision": "frozen", "qformer": "frozen", "projection": "full", "language": "lora"}
    lora = attach_lora(model, parts, r=2)
    set_trainable(model, parts)
    description = describe_training(
        "caption",
        identify(CAPTIONER),
        image_size=364,
        parts=parts,
        prompt="a photo of",
        generation={"num_beams": 1, "max_new_tokens": 3, "length_penalty": 1.0, "batch_size": 2},
    )
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("output: run\n")
    save_trained(model, folder / "adapter", lora, description)


def exported(folder: Path) -> None:
    """A folder for stock transformers."""
    model, processor = load_captioner(CAPTIONER)
    model.generation_config.max_new_tokens = 3
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
