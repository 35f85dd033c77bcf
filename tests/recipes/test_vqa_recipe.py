"""The recipe of visual question answering: every YAML runs, and stock answers from its export."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from blip2ft.config import VqaConfig
from blip2ft.data.batches import Sample, text_layout
from blip2ft.data.images import open_image, transforms_for
from blip2ft.export import export_run
from blip2ft.finetuned import load_finetuned
from blip2ft.parse import parse_config
from blip2ft.tasks.caption import generate
from blip2ft.tasks.vqa import ask
from blip2ft.training.run import read_lines

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "vqa.py"
YAMLS = sorted((ROOT / "recipes" / "vqa").glob("*.yaml"))
WORDS = ["a cat", "a dog", "red", "blue", "no", "a bird"]
PROMPT = "the {} of a"

# What a user without blip2ft writes.
STOCK = """
import json, sys
from PIL import Image
from transformers import InstructBlipForConditionalGeneration, InstructBlipProcessor

folder, image, prompt = sys.argv[1:]
model = InstructBlipForConditionalGeneration.from_pretrained(folder).eval()
processor = InstructBlipProcessor.from_pretrained(folder)
inputs = processor(images=Image.open(image).convert("RGB"), text=prompt, return_tensors="pt")
ids = model.generate(**inputs, generation_config=model.generation_config)
if model.config.use_decoder_only_language_model:
    ids = ids[:, inputs["input_ids"].shape[1]:]
print(json.dumps(processor.batch_decode(ids, skip_special_tokens=True)[0].strip()))
"""


@pytest.fixture(scope="module")
def questions(photo_folder, tmp_path_factory) -> Path:
    """Two questions on each photo, with three answers each."""
    path = photo_folder / "questions.jsonl"
    with path.open("w") as file:
        for i in range(16):
            row = {
                "image": f"photo{i % 8}.jpg",
                "question_id": i,
                "question": f"photo {WORDS[i % 6]}",
            }
            row |= {"answers": [WORDS[i % 5], WORDS[i % 5], WORDS[i % 3]]}
            row |= {"answer_type": ["yes/no", "other"][i % 2]}
            file.write(json.dumps(row) + "\n")
    return path


def parse(*argv: str) -> VqaConfig:
    return parse_config(VqaConfig, argv, "recipes/vqa.py")[0]


def run_recipe(*argv: object) -> None:
    spec = importlib.util.spec_from_file_location("vqa_recipe", RECIPE)
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    recipe.main(*parse_config(VqaConfig, [str(word) for word in argv], "recipes/vqa.py"))


def tiny(model_folder: Path, stage1: Path, questions: Path, output: Path) -> list[object]:
    """Overrides that bring any YAML down to a tiny model, sixteen questions and two steps."""
    unset = dict.fromkeys(("annotations", "images", "image_root", "split"))
    source = json.dumps({"source": str(questions), "format": "auto", **unset})
    words = ["--output", output, "--model.name", model_folder, "--model.image_size", 28]
    words += ["--stage1", stage1, "--prompt", PROMPT, "--data.train", f"[{source}]"]
    words += ["--data.validation", source, "--data.test", "null", "--data.workers", 0]
    words += ["--optimizer.warmup_steps", 1, "--train.max_steps", 2, "--train.batch_size", 4]
    words += ["--train.micro_batch_size", 2, "--train.evaluate_every", 1, "--train.log_every", 1]
    words += ["--evaluate_only", "false", "--question_in_qformer", "true"]
    return [*words, "--generation.num_beams", 1, "--generation.max_new_tokens", 3]


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_every_yaml_takes_two_steps(path, request, retriever_folder, questions, tmp_path):
    family = "t5_folder" if "t5" in path.stem else "opt_folder"
    run = tmp_path / "run"
    words = tiny(request.getfixturevalue(family), retriever_folder, questions, run)
    run_recipe("--config", path, *words)
    assert [row["step"] for row in read_lines(run / "log.jsonl")] == [1, 2]
    header = path.read_text().partition("\noutput:")[0]
    assert f"--config recipes/vqa/{path.name}" in header


@pytest.mark.parametrize("name", ["opt-2.7b", "flan-t5-xl"])
def test_the_vqav2_settings_are_the_papers(name):
    config = parse("--config", str(ROOT / "recipes" / "vqa" / f"{name}.yaml"))
    assert (config.train.epochs, config.train.batch_size) == (5, 128)
    assert (config.optimizer.lr, config.optimizer.warmup_steps) == (1e-5, 1000)
    assert (config.optimizer.weight_decay, config.optimizer.vision_layer_decay) == (0.05, 0.95)
    assert (config.model.image_size, config.prompt) == (490, "Question: {} Answer:")
    assert (config.generation.num_beams, config.generation.length_penalty) == (5, -1.0)
    assert len(config.data.train) == 3
    assert config.train.best_metric == "accuracy"


def test_a_run_leaves_what_its_folder_promises(
    opt_folder, retriever_folder, questions, tmp_path, capsys
):
    run = tmp_path / "run"
    run_recipe(*tiny(opt_folder, retriever_folder, questions, run))
    rows = read_lines(run / "metrics.jsonl")
    assert {(row["split"], row["step"]) for row in rows} == {("validation", i) for i in range(3)}
    assert all({"accuracy", "accuracy_yes/no", "accuracy_other"} <= row.keys() for row in rows)
    answers = read_lines(run / "predictions" / "validation-00000002.jsonl")
    assert [row["question_id"] for row in answers] == list(range(16))
    results = json.loads((run / "predictions" / "validation-00000002-results.json").read_text())
    assert results[3] == {"question_id": 3, "answer": answers[3]["answer"]}
    said = capsys.readouterr().out
    assert "16 questions, 16 samples; 2 steps of 4" in said
    assert "always the commonest answer of the type: " in said


def test_all_answers_may_be_learned_by_their_share(
    opt_folder, retriever_folder, questions, tmp_path, capsys
):
    words = tiny(opt_folder, retriever_folder, questions, tmp_path / "run")
    run_recipe(*words, "--data.answers", "all")
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    samples = sum(len(set(row["answers"])) for row in rows)
    assert f"16 questions, {samples} samples" in capsys.readouterr().out


def test_candidates_and_plain_blip2(opt_folder, questions, tmp_path):
    run, listed = tmp_path / "run", tmp_path / "answers.txt"
    listed.write_text("a cat\nred\n\n")
    words = tiny(opt_folder, "unused", questions, run)
    run_recipe(*words, "--question_in_qformer", "false", "--candidates", listed)
    answers = read_lines(run / "predictions" / "validation-00000000.jsonl")
    assert {row["answer"] for row in answers} <= {"a cat", "red"}


def test_a_test_set_without_answers_is_answered(opt_folder, retriever_folder, questions, tmp_path):
    bare = questions.with_name("bare.jsonl")
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    kept = ("image", "question", "question_id")
    bare.write_text("".join(json.dumps({k: row[k] for k in kept}) + "\n" for row in rows))
    run = tmp_path / "run"
    words = tiny(opt_folder, retriever_folder, questions, run)
    source = {"source": str(bare), "require_answers": False}
    run_recipe(*words, "--data.validation", json.dumps(source), "--evaluate_only", "true")
    results = json.loads((run / "predictions" / "validation-00000000-results.json").read_text())
    assert [row["question_id"] for row in results] == list(range(16))
    assert "None of them is scored." in (run / "report.html").read_text(encoding="utf-8")


def test_stock_transformers_answers_alike_from_the_export(
    model_folder, retriever_folder, questions, photo_folder, tmp_path
):
    run, out = tmp_path / "run", tmp_path / "model"
    lora = ["--parts.language", "lora", "--parts.qformer", "lora", "--lora.r", 2]
    words = tiny(model_folder, retriever_folder, questions, run)
    run_recipe(*words, *lora, "--optimizer.lr", 1e-2)
    export_run(run, out)
    model, processor, description = load_finetuned(run)
    layout = text_layout(model, processor, 8)
    _, resize = transforms_for(processor.image_processor)
    photo, prompt = photo_folder / "photo3.jpg", ask(description["prompt"], "photo")
    pixels = resize(open_image(photo, origin="here", size_hint=None))
    options = {"num_beams": 1, "max_new_tokens": 3}
    (ours,) = generate(model, layout, [Sample(pixels, prompt)], **options)
    found = subprocess.run(
        [sys.executable, "-c", STOCK, out, photo, prompt], capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr[-2000:]
    assert json.loads(found.stdout.strip().splitlines()[-1]) == ours


def test_bad_prompts_and_missing_stage1_are_refused(
    opt_folder, retriever_folder, questions, tmp_path
):
    run = tmp_path / "run"
    words = tiny(opt_folder, retriever_folder, questions, run)
    with pytest.raises(ValueError, match=r"the prompt 'Answer:' must have exactly one \{\}"):
        run_recipe(*words, "--prompt", "Answer:")
    with pytest.raises(ValueError, match="no text branch in its Q-Former; pass stage1"):
        run_recipe(*words, "--stage1", "null")
    assert not run.exists()
    assert torch.is_grad_enabled()


@pytest.mark.slow
def test_two_processes_answer_as_one(opt_folder, retriever_folder, questions, tmp_path):
    """Written and chosen answers alike; each question once, in its order."""
    listed = tmp_path / "answers.txt"
    listed.write_text("a cat\nred\nthe left bird\n")
    for name, more in {"written": [], "chosen": ["--candidates", listed]}.items():
        one, two = tmp_path / f"one-{name}", tmp_path / f"two-{name}"
        words = [*more, "--evaluate_only", "true"]
        run_recipe(*tiny(opt_folder, retriever_folder, questions, one), *words)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc_per_node", "2", RECIPE]
        words = [*tiny(opt_folder, retriever_folder, questions, two), *words]
        found = subprocess.run(list(map(str, [*command, *words])), capture_output=True, text=True)
        assert found.returncode == 0, found.stderr[-3000:]
        path = Path("predictions") / "validation-00000000-results.json"
        assert json.loads((one / path).read_text()) == json.loads((two / path).read_text())


def test_a_question_that_is_too_long_is_named(opt_folder, retriever_folder, photo_folder, tmp_path):
    path = photo_folder / "long.jsonl"
    row = {"image": "photo1.jpg", "question": "cat " * 60, "answer": "dog", "question_id": 77}
    path.write_text(json.dumps(row) + "\n")
    run = tmp_path / "run"
    with pytest.raises(
        ValueError, match=r"long\.jsonl:1: question 77 has 6\d tokens with its prompt"
    ):
        run_recipe(*tiny(opt_folder, retriever_folder, path, run))
    assert not run.exists()
