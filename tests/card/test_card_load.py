"""What a card tells to type loads the model: with blip2ft, peft, and transformers alone."""

import re
import shutil

import pytest
import torch

from blip2ft.captioner import ask, caption
from blip2ft.card.facts import Release, read_facts
from blip2ft.card.uses import get_started
from blip2ft.export import export_run
from blip2ft.finetuned import load_finetuned
from blip2ft.models.adapters import attach_lora, describe_training, save_trained
from blip2ft.models.identity import identify
from blip2ft.models.load import load_captioner, load_retriever
from blip2ft.models.parts import PARTS, set_trainable
from blip2ft.models.vqa import load_vqa

QUESTION = "How many dogs are there?"


@pytest.fixture
def trained(made_run, opt_folder, retriever_folder, photo_folder, tmp_path, monkeypatch):
    """A run of a task with weights of a small model, in whose folder photo.jpg lies."""
    shutil.copy(photo_folder / "photo0.jpg", tmp_path / "photo.jpg")
    shutil.copytree(photo_folder, tmp_path / "photos", dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)

    def make(task, **options):
        run = made_run(task)
        shutil.rmtree(run / "adapter")
        base = retriever_folder if task == "retrieval" else opt_folder
        load = {"caption": load_captioner, "vqa": load_vqa, "retrieval": load_retriever}[task]
        if task == "retrieval":
            options["objectives"] = {"itc": 1.0, "itm": 1.0}
        model, _ = load(base, **options)
        parts = dict.fromkeys(PARTS, "frozen") | {"qformer": "lora"}
        lora = attach_lora(model, parts, r=2)
        set_trainable(model, parts)
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.3)
        options["lora"] = {"r": 2}
        if task != "retrieval":
            decoding = {"num_beams": 2, "max_new_tokens": 5, "length_penalty": 1.0, "batch_size": 2}
            prompt = {"caption": "the photo of", "vqa": "the {} on"}[task]
            options |= {"prompt": prompt, "generation": decoding}
        else:
            options["max_text_tokens"] = 16
        description = describe_training(
            task, identify(str(base)), image_size=28, parts=parts, **options
        )
        save_trained(model, run / "adapter", lora, description)
        settings = (run / "config.yaml").read_text().replace("image_size: 224", "image_size: null")
        (run / "config.yaml").write_text(settings)
        return run

    return make


def blocks(run, repo, *, merged, said=None):
    """The Python of "how to get started", with a folder in the place of the repository."""
    release = Release(str(repo), merged=merged)
    text = get_started(read_facts(run, said or {}, release))
    return re.findall(r"```python\n(.*?)\n```", text, re.DOTALL)


def said_by(code, capsys):
    capsys.readouterr()
    exec(compile(code, "card", "exec"), {})
    return capsys.readouterr().out


def test_the_python_of_an_adapter_captions(trained, capsys):
    run = trained("caption")
    model, processor, description = load_finetuned(run)
    decoding = {k: v for k, v in description["generation"].items() if k != "batch_size"}
    expected = caption(model, processor, ["photo.jpg"], prompt="the photo of", **decoding)
    (python,) = blocks(run, run, merged=False)
    assert "blip2ft.load_finetuned" in python
    assert said_by(python, capsys) == f"{expected}\n"


@pytest.mark.parametrize("question_in_qformer", [False, True])
def test_an_adapter_and_a_merged_model_answer_alike(
    trained, capsys, tmp_path, retriever_folder, question_in_qformer
):
    stage1 = str(retriever_folder) if question_in_qformer else None
    run = trained("vqa", question_in_qformer=question_in_qformer, stage1=stage1)
    model, processor, _ = load_finetuned(run)
    decoding = {"num_beams": 2, "max_new_tokens": 5, "length_penalty": 1.0}
    asked = [("photo.jpg", QUESTION)]
    expected = ask(model, processor, asked, template="the {} on", **decoding)
    (python,) = blocks(run, run, merged=False)
    assert said_by(python, capsys) == f"{expected}\n"
    export_run(run, tmp_path / "merged")
    python, stock = blocks(run, tmp_path / "merged", merged=True)
    name = "InstructBlip" if question_in_qformer else "Blip2"
    assert f"{name}ForConditionalGeneration.from_pretrained" in stock
    assert said_by(python, capsys) == f"{expected}\n"
    assert said_by(stock, capsys) == f"{expected[0]}\n"


def test_transformers_alone_captions_with_the_runs_decoding(trained, capsys, tmp_path):
    run = trained("caption")
    model, processor, description = load_finetuned(run)
    decoding = {k: v for k, v in description["generation"].items() if k != "batch_size"}
    (expected,) = caption(model, processor, ["photo.jpg"], prompt="the photo of", **decoding)
    export_run(run, tmp_path / "merged")
    _, stock = blocks(run, tmp_path / "merged", merged=True)
    assert "blip2ft" not in stock
    assert said_by(stock, capsys) == f"{expected}\n"


def test_transformers_alone_matches_image_and_text(trained, capsys, tmp_path):
    run = trained("retrieval")
    export_run(run, tmp_path / "merged")
    python, stock = blocks(run, tmp_path / "merged", merged=True)
    assert 0 < float(re.search(r"[\d.]+", said_by(stock, capsys).removeprefix("tensor("))[0]) < 1
    assert "photo0.jpg" in said_by(python, capsys)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft's own
def test_peft_alone_loads_a_lora_alone(trained, opt_folder, tmp_path):
    run = trained("caption")
    said = {"base_model": "anna/base"}
    _, peft = blocks(run, "anna/birds", merged=False, said=said)
    peft = peft.replace("anna/base", str(opt_folder)).replace("anna/birds", str(run / "adapter"))
    found: dict = {}
    exec(compile(peft, "card", "exec"), found)
    theirs = dict(found["model"].get_base_model().named_parameters())
    ours, _, _ = load_finetuned(run)
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(theirs[name], parameter, rtol=0, atol=0)
