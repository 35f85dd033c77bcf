"""What `import blip2ft` gives, and that it costs nothing."""

import importlib
import pkgutil
import subprocess
import sys

import pytest

import blip2ft


def test_import_is_light():
    program = (
        "import sys, blip2ft, blip2ft.cli, blip2ft.config, blip2ft.parse\n"
        "assert blip2ft.__version__ and 'caption' in dir(blip2ft)\n"
        "heavy = {'torch', 'transformers', 'peft', 'evaluate', 'datasets', 'PIL'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", blip2ft.__all__)
def test_every_name_resolves_whatever_was_imported_before(name):
    for module in pkgutil.iter_modules(blip2ft.__path__):
        importlib.import_module(f"blip2ft.{module.name}")
    assert callable(getattr(blip2ft, name))
    assert name in dir(blip2ft)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'blip2ft' has no attribute 'captoin'"):
        _ = blip2ft.captoin


def test_ten_lines_fine_tune_and_caption(opt_folder, photo_folder, tmp_path):
    model, processor = blip2ft.load_captioner(opt_folder)
    parts = {"qformer": "lora", "projection": "full"}
    assert blip2ft.attach_lora(model, parts, r=4) is not None
    blip2ft.set_trainable(model, parts)
    assert "projection  full" in blip2ft.parts_table(model, parts)
    photos = blip2ft.read_records(photo_folder / "captions.csv")
    captions = blip2ft.caption(model, processor, [photo.image for photo in photos[:2]])
    scores = blip2ft.score_captions(
        dict(zip("ab", captions, strict=True)),
        dict(zip("ab", [photo.captions for photo in photos[:2]], strict=True)),
        java=False,
    ).scores
    assert set(scores) >= {"bleu4", "cider"}
