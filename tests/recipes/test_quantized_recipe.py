"""QLoRA from its start to a caption, and what a run on a quantised part can't be."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_caption_recipe import run_recipe, tiny, weights_of
from transformers import Blip2ForConditionalGeneration, Blip2Processor

import blip2ft.tasks.caption
from blip2ft.captioner import caption
from blip2ft.export import export_run
from blip2ft.finetuned import load_finetuned
from blip2ft.tasks.caption import caption_loss
from blip2ft.training.run import read_lines
from blip2ft.training.stored import list_checkpoints

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("bitsandbytes") is None, reason="needs blip2ft[quantize]"
    ),
    pytest.mark.filterwarnings("ignore:MatMul8bitLt"),
]
# name -> the model's fixture, kind, mode of the language model, optimizer
RUNS = {
    "opt-nf4-lora": ("wide_folder", "nf4", "lora", "adamw_8bit"),
    "opt-nf4-frozen": ("wide_folder", "nf4", "frozen", "adamw"),
    "opt-int8-lora": ("wide_folder", "int8", "lora", "adamw"),
    "t5-nf4-lora": ("t5_folder", "nf4", "lora", "adamw"),
    "t5-int8-frozen": ("t5_folder", "int8", "frozen", "adamw_8bit"),
}
QUICK = ("opt-nf4-lora",)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in RUNS],
)
def test_a_quantised_run_is_killed_goes_on_and_ends_as_a_stock_model_that_captions(
    name, request, photo_folder, tmp_path, monkeypatch
):
    fixture, kind, mode, optimizer = RUNS[name]
    base = request.getfixturevalue(fixture)
    words = ["--quantize", f'{{"language": "{kind}"}}', "--parts.language", mode]
    words += ["--parts.vision", "frozen", "--optimizer.kind", optimizer, "--optimizer.lr", 1e-2]
    words += ["--lora.r", 4, "--train.max_steps", 4]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_recipe(*tiny(base, photo_folder, whole), *words)

    def loss(model, batch):  # the third step is never finished, nor saved
        if len(list_checkpoints(parts / "checkpoints")) == 2:
            raise KeyboardInterrupt
        return caption_loss(model, batch)

    with monkeypatch.context() as patch:
        patch.setattr(blip2ft.tasks.caption, "caption_loss", loss)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(*tiny(base, photo_folder, parts), *words)
    run_recipe(*tiny(base, photo_folder, parts), *words, "--train.resume", "true")
    lines = [
        [(row["step"], row["loss"]) for row in read_lines(run / "log.jsonl")]
        for run in (whole, parts)
    ]
    assert [step for step, _ in lines[1]] == [1, 2, 3, 4]
    assert lines[0] == lines[1]
    assert read_lines(parts / "metrics.jsonl") == read_lines(whole / "metrics.jsonl")
    expected = weights_of(whole)
    assert all(torch.equal(t, expected[key]) for key, t in weights_of(parts).items())
    assert not any(key.startswith("language_model") for key in expected)
    assert (parts / "adapter" / "adapter_model.safetensors").is_file() == (mode == "lora")
    described = json.loads((parts / "adapter" / "blip2ft.json").read_text())
    assert described["quantize"] == {"language": kind}

    report = export_run(parts, tmp_path / "out")
    assert report["max_difference"] <= 1e-4 * report["largest_logit"]
    assert report["same_captions"] == report["captions"] == 4
    assert 0 < report["quantised_difference"] < report["largest_logit"]
    photos = sorted(Path(photo_folder).glob("*.jpg"))[:2]
    options = {"prompt": "a photo of", "num_beams": 1, "max_new_tokens": 5}
    model, processor, _ = load_finetuned(parts)
    tuned = caption(model, processor, photos, **options)
    stock = Blip2ForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    processor = Blip2Processor.from_pretrained(tmp_path / "out")
    for photo, expected_text in zip(photos, tuned, strict=True):
        inputs = processor(images=Image.open(photo), text="a photo of", return_tensors="pt")
        ids = stock.generate(**inputs, num_beams=1, max_new_tokens=5)
        if not stock.language_model.config.is_encoder_decoder:
            ids = ids[:, inputs["input_ids"].shape[1] :]
        assert processor.decode(ids[0], skip_special_tokens=True).strip() == expected_text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--quantize", '{"language": "nf4"}', "--parts.language", "full"),
            r"part 'language' is quantised and set to full, .* set parts.language to lora or froz",
        ),
        (("--quantize", '{"vision": "int8"}'), r"part 'vision' is quantised and set to full"),
        (("--quantize", '{"qformer": "nf4"}'), r"quantize names 'qformer', but only language and"),
        (
            ("--parts.vision", "frozen", "--quantize", '{"vision": "nf4", "language": "int8"}'),
            r"quantize has vision in nf4 and language in int8: allowed is one kind for both",
        ),
        (("--optimizer.kind", "paged_adamw_8bit"), r"pages go between a CUDA GPU and its host"),
    ],
    ids=["language-full", "vision-full", "qformer", "mixed", "pages"],
)
def test_a_run_that_cannot_be_is_refused_and_leaves_nothing(
    words, said, wide_folder, photo_folder, tmp_path
):
    if torch.cuda.is_available() and "paged_adamw_8bit" in words:
        pytest.skip("a GPU has pages")
    with pytest.raises(ValueError, match=said):
        run_recipe(*tiny(wide_folder, photo_folder, tmp_path / "run"), *words)
    assert not (tmp_path / "run").exists()
