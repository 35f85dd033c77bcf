"""A run on CLIP's image encoder becomes a folder that our loaders read, and that says so."""

from pathlib import Path

import pytest
import torch
from clip_folders import on_clip
from transformers import Blip2ForConditionalGeneration

from blip2ft.cli import main
from blip2ft.export import export_run
from blip2ft.finetuned import load_finetuned
from blip2ft.inspection import describe
from blip2ft.models.adapters import attach_lora, describe_training, save_trained
from blip2ft.models.identity import identify
from blip2ft.models.load import load_captioner, load_retriever
from blip2ft.models.parts import count_parameters, set_trainable
from blip2ft.models.vqa import load_vqa

PARTS = {"vision": "lora", "qformer": "full", "projection": "full"}
DECODING = {"num_beams": 2, "max_new_tokens": 5, "length_penalty": 1.0}
TASKS = {
    "caption": {"prompt": "the photo of", "generation": DECODING},
    "vqa": {"prompt": "{}", "generation": DECODING, "question_in_qformer": True},
    "retrieval": {"objectives": {"itc": 1.0, "itm": 1.0}, "max_text_tokens": 8},
}


@pytest.fixture(scope="module")
def runs(opt_folder, retriever_folder, tmp_path_factory) -> dict[str, Path]:
    """What a run of each task leaves, at another image size, with all of the embeddings trained."""
    folder = tmp_path_factory.mktemp("runs")
    captioner = on_clip(opt_folder, folder / "captioner")
    retriever = on_clip(retriever_folder, folder / "retriever")
    for task, settings in TASKS.items():
        torch.manual_seed(3)
        parts = PARTS | ({"vision": "full"} if task == "caption" else {})
        base = retriever if task == "retrieval" else captioner
        if task == "vqa":
            settings = settings | {"stage1": str(retriever)}
            model, _ = load_vqa(base, stage1=retriever, image_size=42)
        else:
            loader = load_retriever if task == "retrieval" else load_captioner
            model, _ = loader(base, image_size=42)
        lora = attach_lora(model, parts, r=2)
        set_trainable(model, parts)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        description = describe_training(
            task, identify(str(base)), image_size=42, parts=parts, **settings
        )
        save_trained(model, folder / task, lora, description)
    return {task: folder / task for task in TASKS}


@pytest.mark.parametrize("task", list(TASKS))
@torch.no_grad()
def test_an_export_computes_what_the_run_does(runs, tmp_path, task):
    report = export_run(runs[task], tmp_path / "out")
    assert report["max_difference"] <= 1e-4 * report["largest_logit"]
    loaders = {"caption": load_captioner, "vqa": load_vqa, "retrieval": load_retriever}
    model, processor = loaders[task](tmp_path / "out")
    tuned, _, _ = load_finetuned(runs[task])
    assert type(model) is type(tuned)
    assert processor.image_processor.size == {"height": 42, "width": 42}
    images = torch.randn(2, 3, 42, 42)
    found, expected = (m.vision_model(images).last_hidden_state for m in (model, tuned))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("task", list(TASKS))
def test_the_command_says_what_loads_it(runs, tmp_path, capsys, monkeypatch, task):
    monkeypatch.setattr("blip2ft.commands.export.quiet_libraries", lambda: None)
    out = tmp_path / "out"
    with pytest.raises(SystemExit, match="0"):
        main(["export", str(runs[task]), "--out", str(out)])
    loader = {"caption": "load_captioner", "vqa": "load_vqa", "retrieval": "load_retriever"}[task]
    assert capsys.readouterr().out.startswith(
        f"{out}: blip2ft.{loader} loads it, stock transformers can't, as its image encoder is "
        "CLIP's; its logits differ from the unmerged model's by at most "
    )


def test_stock_transformers_refuses_an_export(runs, tmp_path):
    export_run(runs["caption"], tmp_path / "out")
    with pytest.raises(KeyError, match=r"blip2ft\.quick_gelu"):
        Blip2ForConditionalGeneration.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("task", TASKS)
def test_a_run_on_clip_is_described_as_it_is(runs, task):
    model, _, _ = load_finetuned(runs[task])
    told = describe(str(runs[task]))
    total = count_parameters(model)["vision"][1]
    assert f"{total:,}" in next(line for line in told.splitlines() if line.startswith("vision"))
