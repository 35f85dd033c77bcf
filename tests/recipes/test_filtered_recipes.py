"""Every recipe learns from what the filters leave, and a run that goes on has the same filters."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from blip2ft.parse import parse_config
from blip2ft.settings import CONFIGS
from blip2ft.training.run import read_lines

ROOT = Path(__file__).parents[2]
DROP = ["--data.filters.harmful", "drop", "--data.filters.personal", "drop"]
SHORT = ["--optimizer.warmup_steps", 1, "--train.max_steps", 1, "--train.batch_size", 2]
SHORT += ["--train.micro_batch_size", 2, "--data.workers", 0, "--model.image_size", 28]
SHORT += ["--data.max_target_tokens", 16]
CAPTIONS = ["a cat", "a fucking cat", "a dog", "a dog of jane@example.com"]


def run_recipe(task: str, *argv: object) -> None:
    spec = importlib.util.spec_from_file_location(f"{task}_recipe", ROOT / f"recipes/{task}.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    words = [str(word) for word in argv]
    recipe.main(*parse_config(CONFIGS[task], words, f"recipes/{task}.py"))


@pytest.fixture
def photos(photo_folder, tmp_path) -> Path:
    """Four photos, with two captions that are dropped, and the same as answers."""
    for i in range(4):
        shutil.copy(photo_folder / f"photo{i}.jpg", tmp_path)
    rows = [f"photo{i}.jpg,{caption}\n" for i, caption in enumerate(CAPTIONS)]
    (tmp_path / "captions.csv").write_text("image,caption\n" + "".join(rows))
    questions = [
        {"image": f"photo{i}.jpg", "question": "photo a", "answer": caption}
        for i, caption in enumerate(CAPTIONS)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in questions)
    (tmp_path / "questions.jsonl").write_text(lines)
    return tmp_path


def of_captions(model: Path, photos: Path) -> list[object]:
    words = ["--model.name", model, "--output", photos / "run", *SHORT]
    for split in ("train", "validation"):
        words += [f"--data.{split}.source", photos / "captions.csv"]
    return words


@pytest.mark.parametrize(("task", "model"), [("caption", "opt"), ("retrieval", "retriever")])
def test_captions_that_are_dropped_are_not_learned_but_evaluated_on(
    task, model, photos, request, capsys
):
    words = of_captions(request.getfixturevalue(f"{model}_folder"), photos)
    run_recipe(task, *words, *DROP)
    rows = read_lines(photos / "run" / "filtered.jsonl")
    assert [(row["image_id"], row["found"]) for row in rows] == [
        ("photo1.jpg", ["fucking"]),
        ("photo3.jpg", ["email address"]),
    ]
    said = capsys.readouterr().out
    assert "filters: 1 caption dropped for harmful words, 1 caption dropped for personal" in said
    assert "2 images, 2 captions; 1 step of 2" in said
    assert len(read_lines(photos / "run/predictions/validation-00000001.jsonl")) == 4


def test_a_run_goes_on_with_its_own_filters_alone(photos, opt_folder):
    words = of_captions(opt_folder, photos)
    run_recipe("caption", *words, *DROP)
    more = ["--train.resume", "true", "--train.max_steps", 2]
    with pytest.raises(ValueError, match=r"data\.filters was .*personal: drop.* and is null"):
        run_recipe("caption", *words, *more)
    run_recipe("caption", *words, *DROP, *more)
    assert [row["step"] for row in read_lines(photos / "run" / "log.jsonl")] == [1, 2]


def test_questions_without_an_answer_left_are_not_learned(photos, opt_folder, capsys):
    source = json.dumps({"source": str(photos / "questions.jsonl")})
    words = [
        "--model.name",
        opt_folder,
        "--output",
        photos / "run",
        *SHORT,
        "--prompt",
        "the {} of",
    ]
    words += ["--data.train", f"[{source}]", "--data.validation", source]
    run_recipe("vqa", *words, "--question_in_qformer", "false", *DROP)
    assert [row["question_id"] for row in read_lines(photos / "run" / "filtered.jsonl")] == [1, 3]
    said = capsys.readouterr().out
    assert "1 answer dropped for personal data; 2 questions left out; filtered.jsonl has" in said
    assert "2 questions, 2 samples; 1 step of 2" in said
