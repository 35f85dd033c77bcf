"""What `describe` says of a run is what trained."""

from pathlib import Path

import pytest

from blip2ft.inspection import describe
from blip2ft.models.adapters import attach_lora, describe_training, save_trained
from blip2ft.models.identity import identify
from blip2ft.models.load import load_captioner
from blip2ft.models.parts import parts_table, set_trainable

PARTS = {"vision": "frozen", "qformer": "full", "projection": "full", "language": "lora"}
LORA = {"r": 4, "alpha": 8, "dropout": 0.0, "dora": False, "rslora": False, "init": "default"}


def make_run(run: Path, base: Path, lora: dict | None, **rest: object) -> str:
    """What a run leaves, and the table of parts that it printed."""
    parts = PARTS if lora else PARTS | {"language": "frozen"}
    model, _ = load_captioner(base)
    config = attach_lora(model, parts, **(lora or {}))
    set_trainable(model, parts)
    size = model.config.vision_config.image_size
    description = describe_training(
        "caption", identify(str(base)), image_size=size, parts=parts, lora=lora, **rest
    )
    save_trained(model, run / "adapter", config, description)
    return parts_table(model, parts)


@pytest.mark.parametrize(
    "lora",
    [None, LORA, LORA | {"init": "pissa"}, LORA | {"init": "olora", "dora": True, "rslora": True}],
    ids=["none", "default", "pissa", "olora-dora"],
)
def test_a_run_has_the_table_that_it_printed(opt_folder, tmp_path, lora):
    printed = make_run(tmp_path / "run", opt_folder, lora)
    assert describe(str(tmp_path / "run" / "adapter")).endswith(f"\n\n{printed}")


def test_a_run_tells_what_it_held_in_fewer_bits(opt_folder, tmp_path):
    quantize = {"language": "nf4", "vision": "nf4"}
    make_run(tmp_path / "run", opt_folder, LORA, quantize=quantize)
    line = "\nin fewer bits    language in nf4, vision in nf4, while it trained\n"
    assert line in describe(str(tmp_path / "run" / "adapter"))


def test_a_folder_has_no_revision(opt_folder):
    with pytest.raises(ValueError, match=r"is a folder, and has no revision 'main': only"):
        describe(str(opt_folder), revision="main")
