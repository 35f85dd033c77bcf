"""The command line: what each command prints, and how it says what is wrong."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

import blip2ft.captioner
import blip2ft.commands.caption
import blip2ft.commands.inspect
import blip2ft.models.load
import blip2ft.models.vqa
from blip2ft.export import export_run
from blip2ft.finetuned import load_finetuned
from blip2ft.metrics import MetricUnavailable, meteor, spice
from blip2ft.models.load import load_captioner
from blip2ft.models.parts import PARTS, count_parameters
from blip2ft.models.source import read_config

COMMANDS = ("caption", "ask", "index", "search", "score", "export", "convert", "inspect", "cache")
COMMANDS += ("evaluate", "compare")
FEW = ("--num-beams", "1", "--max-new-tokens", "3")


@pytest.fixture(scope="module")
def export_folder(run_folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("exports") / "merged"
    export_run(run_folder, out)
    return out


@pytest.fixture
def asked(monkeypatch):
    """The calls of `caption` that the command makes, answered without a model's help."""
    calls = []

    def answer(model, processor, images, **options):
        calls.append(options)
        return [f"{image.width} x {image.height}" for image in images]

    monkeypatch.setattr(blip2ft.captioner, "caption", answer)
    return calls


def rows(text: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in text.splitlines()]


def test_help_answers_within_a_second_and_without_torch():
    program = (
        "import sys\n"
        "from blip2ft.cli import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit as stop:\n    assert not stop.code\n"
        "assert not {'torch', 'transformers', 'PIL', 'jsonargparse'} & set(sys.modules)"
    )
    times = []
    for _ in range(3):  # the quickest: other programs may take their share of the processor
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        times.append(time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
        assert all(command in done.stdout for command in COMMANDS)
    assert min(times) < 1


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(blip2ft_main, command):
    status, out, _ = blip2ft_main(command, "--help")
    assert status == 0
    assert out.startswith(f"usage: blip2ft {command}")
    assert "--debug" in out


def test_no_command_shows_the_help(blip2ft_main):
    status, out, err = blip2ft_main()
    assert (status, out) == (2, "")
    assert all(command in err for command in COMMANDS)


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("capton x.png", "did you mean caption?"),
        ("scor caption", "did you mean score?"),
        ("evaluate caption --split tes", "did you mean test?"),
        ("caption x.png --modle m", "did you mean --model?"),
        ("caption x.png --modle=m", "did you mean --model?"),
        ("caption x.png --dtype fp23", "did you mean fp32?"),
        ("score captoin --predictions a --references b", "did you mean caption?"),
        ("export run --uot x --out y", "did you mean --out?"),
        ("inspect m --revison main", "did you mean --revision?"),
        ("--verson", "unrecognized arguments: --verson"),
        ("cache build --config f --gpu 24GB", "--gpu 24GB (see"),  # nothing is like it
        ("caption x.png --num-beams 0", "'0' isn't a whole number above 0"),
        ("caption x.png --batch-size -2", "'-2' isn't a whole number above 0"),
        ("caption x.png --max-new-tokens many", "'many' isn't a whole number above 0"),
        ("score caption --predictions a", "required: --references"),
        ("caption", "required: IMAGE"),
    ],
)
def test_a_mistyped_line_is_answered_in_one_line(blip2ft_main, line, hint):
    status, out, err = blip2ft_main(*line.split())
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert hint in err
    assert "--help)" in err


def test_captions_come_as_json_lines_in_order(blip2ft_main, opt_folder, photo_folder):
    status, out, err = blip2ft_main("caption", photo_folder, "--model", opt_folder, *FEW)
    assert status == 0, err
    photos = sorted(photo_folder.glob("*.jpg"))
    assert [row["image"] for row in rows(out)] == [str(photo) for photo in photos]
    model, processor = load_captioner(opt_folder)
    expected = blip2ft.captioner.caption(model, processor, photos, num_beams=1, max_new_tokens=3)
    assert [row["caption"] for row in rows(out)] == expected


def test_folders_are_searched_to_the_bottom(blip2ft_main, asked, opt_folder, tmp_path):
    for i, name in enumerate(["größer Vogel.png", "b/日本 の写真.JPG", "b/c/-x'y\".webp"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (i + 1, 9)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    single = tmp_path / "größer Vogel.png"
    status, out, err = blip2ft_main("caption", single, tmp_path, "--model", opt_folder)
    assert status == 0, err
    assert {row["image"]: row["caption"] for row in rows(out)} == {
        str(single): "1 x 9",
        str(tmp_path / "b/日本 の写真.JPG"): "2 x 9",
        str(tmp_path / "b/c/-x'y\".webp"): "3 x 9",
    }
    assert len(rows(out)) == 4  # an image that is given twice is answered twice
    assert "größer" in out


def test_out_is_written_and_never_overwritten(
    blip2ft_main, asked, opt_folder, photo_folder, monkeypatch
):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)  # or there is no bar
    out_file = photo_folder / "captions.jsonl"
    line = ("caption", photo_folder, "--model", opt_folder, "--batch-size", 3, "--out", out_file)
    try:
        status, out, err = blip2ft_main(*line)
        assert (status, out) == (0, "")
        assert "caption: 100%" in err
        written = out_file.read_text()
        assert len(rows(written)) == 8
        status, _, err = blip2ft_main(*line)
        assert status == 2
        assert err == f"error: {out_file} exists and is not overwritten; choose another --out\n"
        assert out_file.read_text() == written
    finally:
        out_file.unlink()


def test_a_broken_image_stops_no_other(blip2ft_main, asked, opt_folder, photo_folder, tmp_path):
    good, broken, empty = (tmp_path / name for name in ("good.jpg", "broken.jpg", "empty.png"))
    shutil.copy(photo_folder / "photo0.jpg", good)
    broken.write_bytes(good.read_bytes()[:200])
    empty.touch()
    status, out, err = blip2ft_main("caption", broken, good, empty, "--model", opt_folder)
    assert status == 2
    assert [row["image"] for row in rows(out)] == [str(good)]
    assert f"error: {broken}: the image is damaged or cut short" in err
    assert f"error: {empty}: the image file is empty" in err
    assert err.endswith("error: 2 of 3 images couldn't be read\n")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nowhere.jpg", "--model", "m"], "there is no image at nowhere.jpg"),
        (["{empty}", "--model", "m"], "holds no image (.avif, .bmp, .gif, .jp2"),
        (["{photo}"], "say which model: --model ID_OR_FOLDER, or --adapter RUN"),
        (["{photo}", "--adapter", "{empty}"], "is no run and no adapter folder"),
        (["{photo}", "--adapter", "nowhere"], "is no run and no adapter folder"),
        (["{photo}", "--model", "{empty}"], "has no config.json, so it isn't a transformers model"),
        (["{photo}", "--model", "{run}"], "it is a run: blip2ft export"),
        (["{photo}", "--model", "{run}/adapter"], "it holds trained weights only"),
    ],
)
def test_caption_says_what_is_missing(
    blip2ft_main, run_folder, photo_folder, tmp_path, argv, message
):
    places = {"empty": tmp_path, "photo": photo_folder / "photo0.jpg", "run": run_folder}
    status, out, err = blip2ft_main("caption", *(word.format(**places) for word in argv))
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize("command", ["caption {} --model {}", "index {} --model {} --out {}/new"])
def test_a_folder_that_may_not_be_read_is_not_called_empty(
    blip2ft_main, tmp_path, opt_folder, monkeypatch, command
):
    def scandir(path):
        if str(path) == str(tmp_path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    real = os.scandir
    monkeypatch.setattr(os, "scandir", scandir)  # root may read all
    words = command.format(tmp_path, opt_folder, tmp_path).split()
    status, out, err = blip2ft_main(*words)
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {tmp_path}: not allowed to read or write it; change its")


def test_the_adapter_brings_prompt_and_decoding(blip2ft_main, asked, run_folder, photo_folder):
    photo = photo_folder / "photo0.jpg"
    for adapter in (run_folder, run_folder / "adapter"):
        status, _, err = blip2ft_main("caption", photo, "--adapter", adapter)
        assert status == 0, err
    own = {"num_beams": 2, "max_new_tokens": 4, "length_penalty": 0.5}
    assert asked == [{"prompt": "the photo of", "batch_size": 16, **own}] * 2


def test_the_export_brings_prompt_and_decoding(blip2ft_main, asked, export_folder, photo_folder):
    blip2ft_main("caption", photo_folder / "photo0.jpg", "--model", export_folder)
    own = {"num_beams": 2, "max_new_tokens": 4, "length_penalty": 0.5}
    assert asked == [{"prompt": "the photo of", "batch_size": 16, **own}]


def test_a_plain_model_is_asked_as_the_paper_does(blip2ft_main, asked, opt_folder, photo_folder):
    blip2ft_main("caption", photo_folder / "photo0.jpg", "--model", opt_folder)
    assert asked == [{"prompt": "a photo of", "batch_size": 16}]


def test_options_override_what_the_adapter_brings(blip2ft_main, asked, run_folder, photo_folder):
    question = "Question: what is it? Answer:"
    options = ("--num-beams", 3, "--max-new-tokens", 7, "--length-penalty", "-1")
    line = ("caption", photo_folder / "photo0.jpg", "--adapter", run_folder, *options)
    blip2ft_main(*line, "--prompt", question, "--batch-size", 2)
    blip2ft_main(*line, "--prompt", "")
    own = {"num_beams": 3, "max_new_tokens": 7, "length_penalty": -1.0}
    assert asked[0] == {"prompt": question, "batch_size": 2, **own}
    assert asked[1]["prompt"] == ""


@pytest.mark.parametrize(
    ("words", "revision"),
    [
        ("", "main"),
        ("--revision v2", "v2"),
        ("--model {base}", None),
        ("--model {base} --revision v2", "v2"),
    ],
)
def test_a_revision_is_that_of_the_adapters_base(
    blip2ft_main,
    asked,
    run_folder,
    opt_folder,
    photo_folder,
    tmp_path,
    monkeypatch,
    words,
    revision,
):
    moved = shutil.copytree(run_folder, tmp_path / "run")
    path = moved / "adapter" / "blip2ft.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"revision": "main"}))
    revisions = []

    def read(name, revision):
        revisions.append(revision)
        return read_config(name)

    monkeypatch.setattr(blip2ft.models.load, "read_config", read)
    # the folder stands for a base on the hub
    monkeypatch.setattr(blip2ft.commands.caption, "check_revision", lambda *_: None)
    words = words.format(base=opt_folder).split()
    status, _, err = blip2ft_main(
        "caption", photo_folder / "photo0.jpg", "--adapter", moved, *words
    )
    assert status == 0, err
    assert revisions == [revision]


@pytest.mark.parametrize("native", [True, False])
def test_bf16_is_taken_where_the_gpu_computes_in_it(
    blip2ft_main, asked, opt_folder, photo_folder, monkeypatch, native
):
    dtypes = []

    def load(*_, dtype, **__):
        dtypes.append(dtype)
        raise ValueError("seen enough")

    monkeypatch.setattr(blip2ft.models.vqa, "load_vqa", load)
    monkeypatch.setattr(blip2ft.captioner, "default_device", lambda: torch.device("cuda"))
    # an older GPU emulates it, which is slower than fp32
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: native or including_emulation,
    )
    blip2ft_main("caption", photo_folder / "photo0.jpg", "--model", opt_folder)
    assert dtypes == [torch.bfloat16 if native else torch.float32]


def test_the_adapter_changes_the_answer(blip2ft_main, run_folder, opt_folder, photo_folder):
    line = ("caption", photo_folder / "photo0.jpg", "--prompt", "Question: what is it? Answer:")
    _, base, _ = blip2ft_main(*line, "--model", opt_folder, "--max-new-tokens", 6)
    status, tuned, err = blip2ft_main(*line, "--adapter", run_folder, "--max-new-tokens", 6)
    assert status == 0, err
    assert rows(base)[0]["caption"] != rows(tuned)[0]["caption"]


def test_several_adapters_are_mixed(blip2ft_main, run_folder, photo_folder, tmp_path):
    line = ("caption", photo_folder / "photo0.jpg", "--num-beams", "1", "--max-new-tokens", "6")
    tuned = blip2ft_main(*line, "--adapter", run_folder)[1]
    twin = shutil.copytree(run_folder, tmp_path / "lr=3")  # a name with an = is a name
    halves = ("--adapter", f"{run_folder}=0.5", "--adapter", f"{twin}=0.5")
    status, mixed, err = blip2ft_main(*line, *halves)
    assert status == 0, err
    assert mixed == tuned
    assert blip2ft_main(*line, "--adapter", twin)[1] == tuned
    plain = blip2ft_main(*line, "--adapter", f"{run_folder}=0")[1]
    assert plain != tuned
    twice = blip2ft_main(*line, "--adapter", run_folder, "--adapter", f"{run_folder}=2")
    assert twice[0] == 2
    assert "--adapter names a run twice" in twice[2]
    unread = blip2ft_main(*line, "--adapter", f"{run_folder}=much")
    assert "'much' behind the = is no number" in unread[2]
    for weight in ("inf", "nan"):
        endless = blip2ft_main(*line, "--adapter", f"{run_folder}={weight}")
        assert endless[0] == 2
        assert f"={weight}': a weight is a finite number, such as 0.5" in endless[2]


def test_a_base_that_moved_is_given_with_the_adapter(
    blip2ft_main, asked, run_folder, opt_folder, photo_folder, tmp_path
):
    moved = shutil.copytree(run_folder, tmp_path / "run")
    path = moved / "adapter" / "blip2ft.json"
    description = json.loads(path.read_text())
    path.write_text(json.dumps({**description, "base": str(tmp_path / "gone")}))
    line = ("caption", photo_folder / "photo0.jpg", "--adapter", moved)
    status, _, err = blip2ft_main(*line)
    assert status == 2
    assert f"was trained on {tmp_path / 'gone'}, which isn't there; say where it is now" in err
    assert blip2ft_main(*line, "--model", opt_folder)[0] == 0


@pytest.fixture
def caption_files(tmp_path):
    """Two files that go together, as arguments."""
    predictions, references = tmp_path / "p.jsonl", tmp_path / "r.jsonl"
    predictions.write_text(
        '{"image_id": 1, "caption": "a red apple on a table"}\n'
        '{"image_id": 2, "caption": "two dogs"}\n'
    )
    references.write_text(
        '{"image_id": 1, "captions": ["a red apple on a table", "an apple"]}\n'
        '{"image_id": 2, "captions": ["two dogs in the snow", "dogs"]}\n'
    )
    return "--predictions", predictions, "--references", references


def test_scores_are_json_with_the_official_names(blip2ft_main, monkeypatch, caption_files):
    for module, name in ((meteor, "meteor"), (spice, "spice")):
        monkeypatch.setattr(
            module, f"{name}_scores", lambda *_, name=name: ({name: 0.5}, {name: [0.5, 0.5]})
        )
    status, out, err = blip2ft_main("score", "caption", *caption_files)
    assert (status, err) == (0, "")
    names = ["bleu1", "bleu2", "bleu3", "bleu4", "rougeL", "cider", "meteor", "spice"]
    assert list(json.loads(out)) == names
    assert out.count("\n") == 1


def test_a_metric_that_cannot_run_is_left_out_and_said(blip2ft_main, monkeypatch, caption_files):
    def unavailable(*_):
        raise MetricUnavailable("no Java here: install it")

    monkeypatch.setattr(meteor, "meteor_scores", unavailable)
    monkeypatch.setattr(spice, "spice_scores", unavailable)
    status, out, err = blip2ft_main("score", "caption", *caption_files)
    assert status == 0
    assert list(json.loads(out)) == ["bleu1", "bleu2", "bleu3", "bleu4", "rougeL", "cider"]
    assert err == "".join(
        f"{name} is left out: no Java here: install it\n" for name in ("meteor", "spice")
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image_id": 2, "caption": ', "p.jsonl:2: not valid JSON"),
        ('{"image_id": 2}', "p.jsonl:2: no key 'caption'"),
        ('{"image_id": 2, "caption": 3}', "p.jsonl:2: 'caption' is 3"),
        ('{"caption": "two dogs"}', "p.jsonl:2: no key 'image_id'"),
        ('{"image_id": 1, "caption": "again"}', "p.jsonl:2: image_id 1 is already at"),
        ('["two dogs"]', "p.jsonl:2: "),
        ('{"image_id": "2", "caption": "two dogs"}', "'2'"),
    ],
)
def test_a_bad_line_is_named(blip2ft_main, caption_files, line, message):
    path = caption_files[1]
    path.write_text(f"{path.read_text().splitlines()[0]}\n{line}\n")
    status, out, err = blip2ft_main("score", "caption", *caption_files)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    status, _, err = blip2ft_main("score", "caption", *caption_files, "--debug")
    assert status == 2
    assert err.startswith("Traceback")
    assert message in err


def test_a_file_that_is_not_there_is_named(blip2ft_main, tmp_path, caption_files):
    line = ("score", "caption", "--predictions", tmp_path / "gone.jsonl", *caption_files[2:])
    status, _, err = blip2ft_main(*line)
    assert status == 2
    assert err.count("\n") == 1
    assert str(tmp_path / "gone.jsonl") in err


def test_captions_are_scored_against_the_folders_own_table(
    blip2ft_main, asked, monkeypatch, opt_folder, photo_folder, tmp_path
):
    for module, name in ((meteor, "meteor"), (spice, "spice")):
        monkeypatch.setattr(
            module, f"{name}_scores", lambda *_, name=name: ({name: 0.5}, {name: [0.5] * 8})
        )
    out_file = tmp_path / "captions.jsonl"
    blip2ft_main("caption", photo_folder, "--model", opt_folder, "--out", out_file)
    assert [row["image_id"] for row in rows(out_file.read_text())] == [
        f"photo{i}.jpg" for i in range(8)
    ]
    line = ("score", "caption", "--predictions", out_file, "--references")
    status, out, err = blip2ft_main(*line, photo_folder / "captions.csv")
    assert status == 0, err
    assert "cider" in json.loads(out)
    other = tmp_path / "other.csv"
    other.write_text("image,caption\nelsewhere/photo0.jpg,a cat\n")
    status, _, err = blip2ft_main(*line, other)
    assert status == 2
    assert "'photo0.jpg'" in err
    assert "'elsewhere/photo0.jpg'" in err


def test_of_a_file_the_id_is_the_path_as_given(blip2ft_main, asked, opt_folder, photo_folder):
    photo = photo_folder / "photo0.jpg"
    _, out, _ = blip2ft_main("caption", photo, "--model", opt_folder)
    assert rows(out) == [{"image": str(photo), "image_id": photo.as_posix(), "caption": "48 x 40"}]


def test_on_a_terminal_no_bar_is_among_the_answers(
    blip2ft_main, asked, opt_folder, photo_folder, monkeypatch
):
    line = ("caption", photo_folder, "--model", opt_folder)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert "caption: 100%" in blip2ft_main(*line)[2]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert "caption:" not in blip2ft_main(*line)[2]


def test_the_version_is_told(blip2ft_main):
    assert blip2ft_main("--version")[:2] == (0, f"blip2ft {blip2ft.__version__}\n")


@pytest.mark.parametrize("command", ["inspect {gone}", "caption {photo} --model {gone}"])
def test_a_missing_folder_is_told_without_asking_the_hub(
    blip2ft_main, photo_folder, tmp_path, command
):
    words = command.format(gone=tmp_path / "gone", photo=photo_folder / "photo0.jpg")
    status, _, err = blip2ft_main(*words.split())
    assert status == 2
    assert err.startswith(f"error: there is no folder {tmp_path / 'gone'}.")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "command",
    [
        "inspect {model}",
        "caption {photos} --model {model}",
        "ask {photos}/photo0.jpg what? --model {model}",
        "index {photos} --out {out} --model {model}",
    ],
)
def test_a_revision_of_a_folder_is_refused(
    blip2ft_main, opt_folder, photo_folder, tmp_path, command
):
    words = command.format(model=opt_folder, photos=photo_folder, out=tmp_path / "index")
    status, out, err = blip2ft_main(*words.split(), "--revision", "main")
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {opt_folder} is a folder, and has no revision 'main'")


def test_inspect_shows_a_model(blip2ft_main, opt_folder):
    status, out, err = blip2ft_main("inspect", opt_folder)
    assert status == 0, err
    assert f"model            {opt_folder}" in out
    assert "28 x 28 px, patches of 14" in out
    assert "queries          4" in out
    assert "language model   opt" in out
    trainable = {line.split()[0]: line.split()[-2] for line in out.splitlines()[-5:]}
    assert trainable == dict.fromkeys(("vision", "qformer", "projection", "language", "all"), "0")


def test_inspect_shows_how_a_run_trained(blip2ft_main, run_folder, opt_folder):
    status, out, err = blip2ft_main("inspect", run_folder)
    assert status == 0, err
    assert f"model            {opt_folder.resolve()}" in out
    assert f"trained weights  {run_folder / 'adapter'}" in out
    assert "prompt           'the photo of'" in out
    table = {line.split()[0]: line.split()[1:] for line in out.splitlines()[-5:]}
    assert [table[part][0] for part in ("vision", "qformer", "projection", "language")] == [
        *("frozen", "frozen", "full", "lora")
    ]
    model, _, _ = load_finetuned(run_folder)
    for part, (_, total) in count_parameters(model).items():
        assert table[part][-1] == f"{total:,}"
    assert [table[part][-2] != "0" for part in PARTS] == [False, False, True, True]
    assert blip2ft_main("inspect", run_folder / "adapter")[1] == out


def test_inspect_takes_an_export_for_a_model(blip2ft_main, export_folder):
    status, out, err = blip2ft_main("inspect", export_folder)
    assert status == 0, err
    assert f"model            {export_folder}" in out
    assert "trained weights" not in out


def test_inspect_says_what_something_else_is(blip2ft_main, tmp_path):
    status, _, err = blip2ft_main("inspect", tmp_path)
    assert status == 2
    assert "has no config.json, so it isn't a transformers model" in err
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    status, _, err = blip2ft_main("inspect", tmp_path)
    assert status == 2
    assert "is a checkpoint of type 'bert', not 'blip-2'" in err
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.yaml").touch()
    status, _, err = blip2ft_main("inspect", tmp_path)
    assert status == 2
    assert "hasn't ended" in err
    assert err.count("\n") == 1


def test_export_says_where_and_how_exact(blip2ft_main, run_folder, tmp_path):
    out_folder = tmp_path / "merged"
    status, out, err = blip2ft_main("export", run_folder, "--out", out_folder)
    assert status == 0, err
    assert out.startswith(f"{out_folder}: stock transformers loads it")
    assert (out_folder / "model.safetensors").is_file()
    status, out, err = blip2ft_main("export", run_folder, "--out", out_folder)
    assert (status, out) == (2, "")
    assert err == f"error: {out_folder} is in use and is not overwritten; choose another folder\n"


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (KeyboardInterrupt(), 130, "\nstopped\n"),
        (PermissionError(errno.EACCES, "Permission denied", "/a/b"), 2, "/a/b: not allowed to"),
        (OSError(errno.ENOSPC, "No space left on device", "/a/b"), 2, "no space left on the disk"),
    ],
)
def test_what_stops_a_command_is_said_in_one_line(
    blip2ft_main, monkeypatch, error, status, message
):
    def stopped(_):
        raise error

    monkeypatch.setattr(blip2ft.commands.inspect, "_inspect", stopped)
    found, out, err = blip2ft_main("inspect", "m")
    assert (found, out) == (status, "")
    assert message in err
    assert err.strip().count("\n") == 0
    assert "Traceback" not in err


def test_a_reader_that_has_seen_enough_is_no_error(opt_folder):
    command = f"{sys.executable} -c 'from blip2ft.cli import main; main()' inspect {opt_folder}"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | true"], capture_output=True, text=True
    )
    assert done.returncode in (0, 141)
    assert done.stderr == ""
