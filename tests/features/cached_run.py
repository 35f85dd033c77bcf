"""A run as a recipe has it when it comes to the cache, here and in two processes."""

from pathlib import Path
from typing import Any, NamedTuple

from accelerate import Accelerator

from blip2ft.data.images import transforms_for
from blip2ft.data.records import Record, read_records
from blip2ft.features.build import use_features
from blip2ft.features.level import VISION
from blip2ft.models.load import load_captioner


class Run(NamedTuple):
    """What a recipe has when it comes to the cache."""

    model: Any
    records: list[Record]
    transforms: Any
    said: list[str]
    folder: Path

    def use(self, level: str = VISION, records: list[Record] | None = None, **changes: Any) -> Any:
        options = {
            "folder": str(self.folder),
            "dtype": "fp32",
            "name": "a model",
            "train": self.records if records is None else records,
            "evaluated": self.records[:2],
            "transforms": self.transforms,
            "accelerator": Accelerator(cpu=True),
            "workers": 0,
            "say": self.said.append,
        }
        return use_features(self.model, level, **{**options, **changes})


def make_run(model_folder: Path, photos: Path, folder: Path) -> Run:
    model, processor = load_captioner(model_folder)
    transforms = transforms_for(processor.image_processor, scale=None, flip=False)
    return Run(model, read_records(photos / "captions.csv"), transforms, [], folder)


# Of each of two processes; environment variables say what goes wrong.
PROGRAM = """
import os, sys
from pathlib import Path
sys.path.insert(0, os.environ["TESTS"])
import torch
from accelerate import Accelerator
import cached_run
from blip2ft.data.loading import load_pixels
from blip2ft.errors import Stopped
from blip2ft.features import compute, wanted
accelerator = Accelerator(cpu=True)
rank, digest = accelerator.process_index, wanted.image_digest
def lacking(image):
    if rank == 1 and image.name == os.environ.get("LACKS"):
        raise KeyError(str(image))
    return digest(image)
wanted.image_digest = lacking
computed = compute.compute_features
def signalled(*arguments):
    if rank == 1 and "SIGNAL" in os.environ:
        os.kill(os.getpid(), int(os.environ["SIGNAL"]))
    return computed(*arguments)
compute.compute_features = signalled
folder = Path(os.environ["CACHE"] + (str(rank) if "APART" in os.environ else ""))
model, photos = map(Path, (os.environ["MODEL"], os.environ["PHOTOS"]))
run = cached_run.make_run(model, photos, folder)
try:
    augment, _ = run.use(accelerator=accelerator)
except (ValueError, Stopped) as error:
    Path(f"{os.environ['CACHE']}-{rank}.txt").write_text(str(error))
    raise
rows = [load_pixels(record, augment) for record in run.records]
torch.save(torch.stack(rows), f"{os.environ['CACHE']}-{rank}.pt")
accelerator.end_training()
"""
