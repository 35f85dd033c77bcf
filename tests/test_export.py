"""From a run to a folder that a script with nothing but transformers captions from alike."""

import errno
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import Blip2ForConditionalGeneration, Blip2Processor

from blip2ft.captioner import caption
from blip2ft.data.batches import Sample, text_layout
from blip2ft.data.images import open_image, transforms_for
from blip2ft.export import export_run
from blip2ft.finetuned import adapter_folder, load_finetuned, load_mixed
from blip2ft.models.adapters import attach_lora, describe_training, save_trained
from blip2ft.models.identity import identify
from blip2ft.models.load import end_token_id, load_captioner
from blip2ft.models.parts import PARTS, set_trainable

LORA, FULL = dict.fromkeys(PARTS, "lora"), dict.fromkeys(PARTS, "full")
SOME = {"vision": "lora", "qformer": "full", "projection": "full", "language": "frozen"}
PROMPT = "the photo of"
BEAMS = {"num_beams": 3, "max_new_tokens": 5, "length_penalty": 0.5, "batch_size": 2}

# name -> model's fixture, parts, image size, switches of LoRA, dtype of the export
RUNS = {
    "opt-lora": ("opt_folder", LORA, 28, {}, "fp32"),
    "opt-full": ("opt_folder", FULL, 28, {}, "fp32"),
    "opt-larger": ("opt_folder", SOME, 42, {"rslora": True, "init": "olora"}, "fp32"),
    "opt-bf16": ("opt_folder", LORA, 28, {}, "bf16"),
    "t5-lora": ("t5_folder", LORA, 28, {"dora": True, "init": "pissa"}, "fp32"),
    "t5-full": ("t5_folder", FULL, 28, {}, "fp32"),
}
EXACT = [name for name, (*_, dtype) in RUNS.items() if dtype == "fp32"]

# What a user without blip2ft writes; one process for all exports, since its imports take seconds.
STOCK = """
import json, logging, sys
import torch
from PIL import Image
from transformers import Blip2ForConditionalGeneration, Blip2Processor

said = []
class Listener(logging.Handler):
    def emit(self, record):
        said.append(record.getMessage())
logging.getLogger("transformers").addHandler(Listener(logging.WARNING))

prompt, images, folders = json.loads(sys.argv[1])
answers = {}
for name, folder in folders.items():
    said.clear()
    model = Blip2ForConditionalGeneration.from_pretrained(folder).eval()
    processor = Blip2Processor.from_pretrained(folder)
    answer = answers[name] = {"captions": [], "logits": [], "dtype": str(model.dtype)}
    for path in images:
        inputs = processor(images=Image.open(path), text=prompt, return_tensors="pt")
        inputs = inputs.to(model.dtype)
        ids = model.generate(**inputs, generation_config=model.generation_config)
        if not model.language_model.config.is_encoder_decoder:
            ids = ids[:, inputs["input_ids"].shape[1]:]
        answer["captions"] += processor.batch_decode(ids, skip_special_tokens=True)
        first = model.generate(
            **inputs, max_new_tokens=1, output_logits=True, return_dict_in_generate=True
        )
        answer["logits"].append(first.logits[0][0].float().tolist())
    answer["said"] = list(said)
assert "blip2ft" not in sys.modules and "peft" not in sys.modules
print(json.dumps(answers))
"""


def make_run(run: Path, base: Path, parts, *, image_size=28, quantize=None, **lora_options) -> Path:
    """The folder that a run on `base` leaves, with random changes of what trains."""
    (run / "adapter").mkdir(parents=True)
    (run / "config.yaml").write_text("output: run\n")
    torch.manual_seed(3)
    model, _ = load_captioner(base, image_size=image_size, quantize=quantize)
    lora = attach_lora(model, parts, r=4, **lora_options)
    set_trainable(model, parts)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "magnitude" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    description = describe_training(
        "caption",
        identify(str(base)),
        image_size=image_size,
        parts=parts,
        prompt=PROMPT,
        generation=BEAMS,
    )
    save_trained(model, run / "adapter", lora, description)
    return run


@pytest.fixture(scope="module")
def images(tmp_path_factory, photo_folder) -> list[Path]:
    """Plain colours and a photo."""
    folder = tmp_path_factory.mktemp("images")
    for colour in ("black", "white", "red"):
        Image.new("RGB", (30, 20), colour).save(folder / f"{colour}.png")
    return [*sorted(folder.iterdir()), photo_folder / "photo0.jpg"]


@pytest.fixture(scope="module")
def runs(request, tmp_path_factory) -> dict[str, Path]:
    made = {}
    for name, (base, parts, image_size, switches, _) in RUNS.items():
        folder = tmp_path_factory.mktemp("runs") / name
        made[name] = make_run(
            folder, request.getfixturevalue(base), parts, image_size=image_size, **switches
        )
    return made


@pytest.fixture(scope="module")
def exports(runs, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exports")
    for name, run in runs.items():
        report = export_run(run, folder / name, dtype=RUNS[name][-1])
        allowed = 1e-4 if name in EXACT else 5e-2
        assert report["max_difference"] <= allowed * report["largest_logit"]
    return {name: folder / name for name in runs}


@pytest.fixture(scope="module")
def stock(exports, images) -> dict:
    """What stock transformers says of each export; its warnings are errors."""
    question = [PROMPT, [str(i) for i in images], {n: str(f) for n, f in exports.items()}]
    command = [sys.executable, "-W", "error", "-c", STOCK, json.dumps(question)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def first_logits(model, processor, images) -> torch.Tensor:
    """Logits of the first answered token of each image, (B, V)."""
    _, transform = transforms_for(processor.image_processor)
    samples = [Sample(transform(open_image(path)), PROMPT) for path in images]
    batch = text_layout(model, processor, 1).collate_prompts(samples)
    options = {"output_logits": True, "return_dict_in_generate": True}
    return model.generate(**batch, max_new_tokens=1, **options).logits[0]


@pytest.mark.parametrize("name", EXACT)
def test_stock_transformers_captions_as_the_run_does(runs, stock, images, name):
    model, processor, description = load_finetuned(runs[name])
    asked = {key: BEAMS[key] for key in ("num_beams", "max_new_tokens", "length_penalty")}
    captions = caption(model, processor, images, prompt=description["prompt"], **asked)
    assert [text.strip() for text in stock[name]["captions"]] == captions
    logits = torch.tensor(stock[name]["logits"])
    scale = logits.abs().max().item()
    expected = first_logits(model, processor, images)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4 * scale)
    # it is the images and the training that make these logits
    assert (expected[0] - expected[1]).abs().max() > 1e-2 * scale
    base = load_captioner(description["base"], image_size=description["image_size"])
    assert (first_logits(*base, images) - expected).abs().max() > 1e-2 * scale


@pytest.mark.parametrize("name", list(RUNS))
def test_nothing_is_said_when_an_export_is_loaded(stock, name):
    assert stock[name]["said"] == []


def test_a_bf16_export_is_bf16(runs, exports, stock, images):
    assert stock["opt-bf16"]["dtype"] == "torch.bfloat16"
    with safe_open(exports["opt-bf16"] / "model.safetensors", "pt") as file:
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.bfloat16}  # noqa: SIM118
    model, processor, _ = load_finetuned(runs["opt-bf16"])
    exact = first_logits(model, processor, images)
    difference = (torch.tensor(stock["opt-bf16"]["logits"]) - exact).abs().max()
    assert 0 < difference < 5e-2 * exact.abs().max()


@pytest.mark.parametrize("name", list(RUNS))
def test_an_export_holds_stock_names_and_all_files(exports, name):
    with safe_open(exports[name] / "model.safetensors", "pt") as file:
        assert not [key for key in file.keys() if "lora" in key or "base_layer" in key]  # noqa: SIM118
    files = {path.name for path in exports[name].iterdir()}
    assert files >= {"config.json", "generation_config.json", "tokenizer.json", "blip2ft.json"}
    assert not [file for file in files if "adapter" in file or "trained" in file]
    assert not list(exports[name].parent.glob(".partial-*"))


@pytest.mark.parametrize("name", ["opt-lora", "t5-lora"])
def test_the_generation_config_decodes_as_the_run_did(request, exports, name):
    written = json.loads((exports[name] / "generation_config.json").read_text())
    model, _ = load_captioner(request.getfixturevalue(RUNS[name][0]))
    assert written["eos_token_id"] == end_token_id(model)
    assert written["pad_token_id"] == model.config.text_config.pad_token_id
    assert {key: written[key] for key in ("num_beams", "max_new_tokens", "length_penalty")} == {
        key: BEAMS[key] for key in ("num_beams", "max_new_tokens", "length_penalty")
    }


def test_another_image_size_stays(exports):
    config = json.loads((exports["opt-larger"] / "config.json").read_text())
    assert config["vision_config"]["image_size"] == 42
    processor = Blip2Processor.from_pretrained(exports["opt-larger"])
    assert processor.image_processor.size == {"height": 42, "width": 42}
    assert processor.num_query_tokens == 4


def test_an_export_holds_no_path_and_nothing_of_the_adapter(exports, opt_folder):
    for folder in exports.values():
        texts = [path.read_text() for path in folder.iterdir() if path.suffix == ".json"]
        assert len(texts) > 3
        assert not [text for text in texts if str(opt_folder.parent) in text]
    notes = json.loads((exports["opt-lora"] / "blip2ft.json").read_text())
    assert notes["base"] == opt_folder.name
    assert not {"lora", "parts", "image_size"} & notes.keys()


def test_an_export_can_be_fine_tuned_again(exports, tmp_path, images):
    run = make_run(tmp_path / "second", exports["opt-lora"], SOME)
    export_run(run, tmp_path / "out")
    model, processor = load_captioner(tmp_path / "out")
    tuned, _, _ = load_finetuned(run)
    torch.testing.assert_close(
        first_logits(model, processor, images),
        first_logits(tuned, processor, images),
        rtol=1e-4,
        atol=1e-4,
    )


def test_greedy_decoding_is_written_without_settings_of_beams(opt_folder, tmp_path):
    run = make_run(tmp_path / "run", opt_folder, SOME)
    path = run / "adapter" / "blip2ft.json"
    description = json.loads(path.read_text())
    description["generation"]["num_beams"] = 1
    path.write_text(json.dumps(description))
    export_run(run, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert written["num_beams"] == 1
    assert "length_penalty" not in written


@pytest.mark.parametrize("there", [False, True])
def test_a_difference_above_the_tolerance_leaves_nothing(runs, tmp_path, there):
    out = tmp_path / "out"
    if there:
        out.mkdir()
    with pytest.raises(ValueError, match=r"differs .* allowed is 0 of .* Try --dtype fp32"):
        export_run(runs["opt-lora"], out, dtype="bf16", tolerance=0)
    assert list(tmp_path.iterdir()) == ([out] if there else [])
    assert not there or not list(out.iterdir())


def test_an_export_that_fails_on_the_way_leaves_nothing(runs, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Blip2Processor, "save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        export_run(runs["opt-lora"], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_folder_in_use_is_not_touched(runs, tmp_path):
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    file.write_text("mine")
    for out in (folder, file):
        with pytest.raises(ValueError, match=f"{out} is in use and is not overwritten"):
            export_run(runs["opt-lora"], out)
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]
    assert file.read_text() == "mine"


def test_an_empty_or_a_deep_folder_will_do(runs, tmp_path):
    for out in (tmp_path / "empty", tmp_path / "a" / "b" / "c"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        export_run(str(runs["opt-lora"]), str(out))
        assert (out / "config.json").is_file()


def test_an_unknown_dtype_is_refused(runs, tmp_path):
    with pytest.raises(ValueError, match="dtype is 'fp16': allowed are fp32, bf16"):
        export_run(runs["opt-lora"], tmp_path / "out", dtype="fp16")


def test_a_run_and_its_adapter_folder_are_the_same(runs):
    run = runs["opt-lora"]
    assert adapter_folder(run) == adapter_folder(run / "adapter") == run / "adapter"


def test_a_run_that_has_not_ended_says_so(tmp_path):
    (tmp_path / "config.yaml").touch()
    with pytest.raises(ValueError, match=r"hasn't ended, .* --resume"):
        export_run(tmp_path, tmp_path / "out")


def test_something_else_is_no_run(tmp_path, opt_folder, exports):
    for folder in (tmp_path / "nowhere", tmp_path, opt_folder, exports["opt-lora"]):
        with pytest.raises(ValueError, match="is no run and no adapter folder"):
            export_run(folder, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_base_that_moved_can_be_named(runs, opt_folder, tmp_path):
    run = make_run(tmp_path / "run", opt_folder, SOME)
    path = run / "adapter" / "blip2ft.json"
    path.write_text(path.read_text().replace(str(opt_folder.resolve()), "/gone"))
    with pytest.raises(ValueError, match="was trained on /gone, which isn't there"):
        export_run(run, tmp_path / "out")
    export_run(run, tmp_path / "out", base=str(opt_folder))
    assert (tmp_path / "out" / "config.json").is_file()


def test_another_base_of_the_same_shape_is_refused(run_folder, opt_folder, tmp_path):
    other = Blip2ForConditionalGeneration.from_pretrained(opt_folder)
    with torch.no_grad():
        for parameter in other.language_model.parameters():
            parameter += 0.01
    shutil.copytree(opt_folder, tmp_path / "other")
    other.save_pretrained(tmp_path / "other")
    for load in (load_finetuned, lambda run, base: load_mixed({run: 0.5}, base=base)):
        with pytest.raises(ValueError, match=r"run.* was trained on .*, and .*other is another"):
            load(run_folder, base=str(tmp_path / "other"))
    with pytest.raises(ValueError, match=r"other is another: the weights differ"):
        export_run(run_folder, tmp_path / "out", base=str(tmp_path / "other"))
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs blip2ft[quantize]"
)
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_run_on_a_quantised_base_is_merged_into_the_unquantised_one(
    opt_folder, images, tmp_path, kind
):
    parts = {**SOME, "vision": "frozen", "language": "lora"}
    run = make_run(tmp_path / "run", opt_folder, parts, quantize={"language": kind})
    export_run(run, tmp_path / "out")
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float32}  # noqa: SIM118
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    model, processor = load_captioner(tmp_path / "out")
    tuned, _, _ = load_finetuned(run)
    torch.testing.assert_close(
        first_logits(model, processor, images),
        first_logits(tuned, processor, images),
        rtol=0,
        atol=1e-3,
    )
