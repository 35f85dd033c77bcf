"""Small things under the names that the docs' commands use."""

import re
import shutil
import tempfile
from pathlib import Path

from made_run import COMMIT, make_run

from blip2ft.convert import to_checkpoint
from blip2ft.demo.reports import Answer, keep_report
from blip2ft.models.adapters import attach_lora, describe_training, save_trained
from blip2ft.models.identity import identify
from blip2ft.models.load import load_captioner
from blip2ft.models.parts import set_trainable

CAPTIONER, FINDER = "Salesforce/blip2-opt-2.7b", "Salesforce/blip2-itm-vit-g"
LANGUAGE_MODEL = "facebook/opt-2.7b"


def keep_in_cache(cache: Path, name: str, folder: Path) -> None:
    """Copy a model to where huggingface_hub would have downloaded the hub id `name`."""
    repo = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, repo / "snapshots" / COMMIT)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)


def language_model_of(captioner: Path, folder: Path) -> Path:
    """The language model of a captioner, in a folder of its own."""
    model, processor = load_captioner(captioner)
    model.language_model.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    return folder


def provide(text: str) -> set[Path]:
    """Make the runs and models that commands of a page name as there already; tells which.

    Those that a command makes itself (--out, --output) are left to it. checkpoint.pth is one of the
    original's, reports/ what was told on the demo page.
    """
    made = set(re.findall(r"(?:--out(?:put)?|convert \S+) (\S+)", text))
    named = set(re.findall(r"\b(?:runs|models)/[\w.-]*[\w-]", text)) - made
    paths = {Path(name) for name in named if not Path(name).exists()}
    for path in paths:
        (finished_run if path.parts[0] == "runs" else exported)(path)
    if "checkpoint.pth" in text:
        exported(Path("original"))
        to_checkpoint("original", Path("checkpoint.pth"))
    if "reports/" in text:
        reported(Path("reports"))
    return paths


def reported(folder: Path) -> None:
    """Bad answers that were reported on the demo page, with what would be right and without."""
    for task, asked in (("caption", "a photo of"), ("vqa", "What is it?")):
        for n, right in enumerate(("a cat", "a dog", "")):
            answer = Answer(task, f"photos/photo{n}.jpg", asked, "a bird", "tiny", None, {})
            keep_report(folder, answer, "wrong", right)


def finished_run(folder: Path) -> None:
    """What a run of the stand-in captioner leaves: a LoRA on the language model, the projection."""
    beside = Path(tempfile.mkdtemp(dir=".")).resolve()  # for the photos, which lie beside a run
    run = make_run(beside / "run", "caption")
    for split in ("train", "validation", "test"):
        rows = [f"{n:02d}.png,a red square,{'night' if n % 2 else 'day'}" for n in range(12)]
        table = "\n".join(["image,caption,group", *rows])
        (beside / "photos" / f"{split}.csv").write_text(table + "\n")
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
    shutil.rmtree(run / "adapter")
    save_trained(model, run / "adapter", lora, description)
    folder.parent.mkdir(exist_ok=True)
    run.rename(folder)


def exported(folder: Path) -> None:
    """A folder for stock transformers."""
    model, processor = load_captioner(CAPTIONER)
    model.generation_config.max_new_tokens = 3
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
