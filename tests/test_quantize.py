"""`--quantize`: models in fewer bits answer in every command, plain and with a run's adapter."""

import importlib.util
import io
import itertools
import json
import re
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

import blip2ft.capfilt
import blip2ft.captioner
from blip2ft.export import export_run
from blip2ft.finetuned import load_finetuned, load_mixed
from blip2ft.index import index_photos, search_photos
from blip2ft.models.adapter_set import Adapters
from blip2ft.models.adapters import attach_lora, describe_training, load_trained, save_trained
from blip2ft.models.identity import identify
from blip2ft.models.load import load_captioner, load_retriever
from blip2ft.models.parts import part_of, set_trainable
from blip2ft.photos.shards import read_maker

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("bitsandbytes") is None, reason="needs blip2ft[quantize]"
    ),
    # 8-bit products are in fp16, and bitsandbytes says so of other inputs
    pytest.mark.filterwarnings("ignore:MatMul8bitLt"),
]
KINDS = ("nf4", "int8")
PARTS = {"vision": "frozen", "qformer": "full", "projection": "full", "language": "lora"}
GREEDY = {"num_beams": 1, "max_new_tokens": 4, "length_penalty": 1.0, "batch_size": 2}
WORD = {"Linear4bit": "nf4", "Linear8bitLt": "int8"}


def make_run(run: Path, base: Path, parts=PARTS, quantize=None) -> Path:
    """What a run leaves, with random changes of what trains."""
    (run / "adapter").mkdir(parents=True)
    torch.manual_seed(3)
    model, _ = load_captioner(base, quantize=quantize)
    lora = attach_lora(model, parts, r=4)
    set_trainable(model, parts)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    description = describe_training(
        "caption",
        identify(str(base)),
        image_size=28,
        parts=parts,
        quantize=quantize or {},
        prompt="the photo of",
        generation=GREEDY,
    )
    save_trained(model, run / "adapter", lora, description)
    return run


@pytest.fixture(scope="module")
def run_folder(wide_folder, tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "plain", wide_folder)


@pytest.fixture
def models(monkeypatch):
    """The models with which the commands caption and answer."""
    found = []

    def watched(model, layout, samples, **options):
        found.append(model)
        return generate(model, layout, samples, **options)

    generate = blip2ft.captioner.generate
    monkeypatch.setattr(blip2ft.captioner, "generate", watched)
    return found


def kinds_of(model) -> dict[str, str]:
    """The parts with quantised layers, and their kind; heads aside, all of a part's or none."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    kinds = {}
    for name, module in model.named_modules():
        plain = ".lora_" in name or module is head
        if isinstance(module, torch.nn.Linear) and not plain:
            kinds.setdefault(part_of(name), set()).add(WORD.get(type(module).__name__))
    assert all(len(found) == 1 for found in kinds.values()), kinds
    return {part: kind for part, (kind,) in kinds.items() if kind}


@pytest.mark.parametrize("given", [("nf4",), ("int8",), ("language=nf4", "vision=nf4")])
def test_captions_of_a_model_in_fewer_bits(blip2ft_main, models, wide_folder, photo_folder, given):
    words = [word for part in given for word in ("--quantize", part)]
    line = ("caption", photo_folder, "--model", wide_folder, "--num-beams", 2)
    status, out, err = blip2ft_main(*line, "--max-new-tokens", 3, *words)
    assert status == 0, err
    assert len(out.splitlines()) == 8
    expected = {"language": given[0].rpartition("=")[2]}
    expected |= {"vision": "nf4"} if len(given) == 2 else {}
    assert kinds_of(models[0]) == expected


@pytest.mark.parametrize(("dtype", "computed"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_products_of_4_bits_are_in_the_dtype_of_the_rest(
    blip2ft_main, models, wide_folder, photo_folder, dtype, computed
):
    photo = photo_folder / "photo0.jpg"
    line = ("caption", photo, "--model", wide_folder, "--quantize", "nf4", "--dtype", dtype)
    assert blip2ft_main(*line, "--num-beams", 1, "--max-new-tokens", 2)[0] == 0
    layer = models[0].language_model.model.decoder.layers[0].fc1
    assert layer.compute_dtype == computed
    assert layer(torch.ones(1, 64, dtype=computed)).dtype == computed
    assert layer.weight.quant_state.nested  # double quantisation


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_answers_on_a_base_in_fewer_bits(
    blip2ft_main, models, run_folder, photo_folder, kind
):
    line = ("caption", photo_folder, "--adapter", run_folder, "--quantize", kind)
    status, _, err = blip2ft_main(*line)
    assert status == 0, err
    (model,) = {id(model): model for model in models}.values()
    assert kinds_of(model) == {"language": kind}
    plain, _, _ = load_finetuned(run_folder)
    tuned = dict(plain.named_parameters())
    for name, parameter in model.named_parameters():
        if part_of(name) in ("qformer", "projection") or ".lora_" in name:
            assert torch.equal(parameter, tuned[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_mix_on_a_base_in_fewer_bits(run_folder, wide_folder, tmp_path, kind):
    other = make_run(tmp_path / "other", wide_folder)
    adapters, _, _ = load_mixed({run_folder: 0.5, other: 0.5}, quantize={"language": kind})
    alone, _, _ = load_finetuned(run_folder, quantize={"language": kind})
    assert kinds_of(adapters.model) == {"language": kind}
    name = "language_model.model.decoder.layers.1.fc2"
    hidden = torch.randn(2, 3, 64)
    mixed, own = (m.get_submodule(name)(hidden) for m in (adapters.model, alone))
    torch.testing.assert_close(mixed, own, rtol=1e-4, atol=1e-4)  # the two are twins
    base = alone.get_submodule(name).get_base_layer()(hidden)
    assert not torch.allclose(own, base, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_questions_are_answered_in_fewer_bits(blip2ft_main, models, t5_folder, photo_folder, kind):
    photo = photo_folder / "photo0.jpg"
    line = ("ask", photo, "a cat", "--model", t5_folder, "--quantize", kind, "--max-new-tokens", 3)
    status, _, err = blip2ft_main(*line)
    assert status == 0, err
    layers = {
        name.rpartition(".")[2]: WORD.get(type(module).__name__)
        for name, module in models[0].language_model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    # transformers keeps wo as it is, which overflows in fp16
    assert (layers["wo"], layers["lm_head"]) == (None, None)
    assert {kind for name, kind in layers.items() if name not in ("wo", "lm_head")} == {kind}


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_keeps_to_the_bits_that_it_was_made_with(
    blip2ft_main, retriever_folder, photo_folder, tmp_path, kind
):
    out = tmp_path / "index"
    line = ("index", photo_folder, "--model", retriever_folder, "--out", out)
    status, _, err = blip2ft_main(*line, "--quantize", f"vision={kind}")
    assert status == 0, err
    assert read_maker(out).quantize == {"vision": kind}
    status, found, err = blip2ft_main("search", out, "a red apple", "--top", 3)
    assert status == 0, err
    assert len(found.splitlines()) == 4
    photo = photo_folder / "photo3.jpg"
    best = search_photos(out, image=photo, top=1)[0]
    assert (Path(best.path).name, round(best.score, 2)) == ("photo3.jpg", 1.0)
    other = "vision=nf4" if kind == "int8" else "vision=int8"
    # of words, the features are the same in any bits
    status, _, err = blip2ft_main("search", out, "a red apple", "--quantize", other)
    assert status == 0, err
    status, _, err = blip2ft_main(*line, "--quantize", other)
    assert status == 2
    said = f"{out} was made with vision in {kind}, not with {other.replace('=', ' in ')}, and"
    assert said in err
    status, _, err = blip2ft_main("search", out, "--image", photo, "--quantize", other)
    assert status == 2
    assert said in err


def test_capfilt_quantises_what_each_of_its_models_has(
    blip2ft_main, wide_folder, retriever_folder, tmp_path, monkeypatch
):
    found = []

    def stop(made):
        found.append(made)
        raise ValueError("seen")

    monkeypatch.setattr(blip2ft.capfilt, "begin", lambda out, made, sizes: stop(made))
    monkeypatch.setattr(blip2ft.capfilt, "digest", lambda model: kinds_of(model))
    image = io.BytesIO()
    Image.new("RGB", (28, 28)).save(image, "PNG")
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for suffix, data in (("png", image.getvalue()), ("txt", b"a dog")):
            info = tarfile.TarInfo(f"0.{suffix}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    line = ("capfilt", tmp_path / "0.tar", "--out", tmp_path / "out", "--captioner", wide_folder)
    line += ("--scorer", retriever_folder, "--quantize", "int8", "--quantize", "vision=int8")
    assert blip2ft_main(*line)[2] == "error: seen\n"
    assert found[0]["captioner_weights"] == {"language": "int8", "vision": "int8"}
    assert found[0]["scorer_weights"] == {"vision": "int8"}
    assert found[0]["quantize"] == {"language": "int8", "vision": "int8"}


def test_a_retriever_has_no_language_model_to_quantise(
    blip2ft_main, retriever_folder, photo_folder, tmp_path
):
    line = ("index", photo_folder, "--model", retriever_folder, "--out", tmp_path / "index")
    status, _, err = blip2ft_main(*line, "--quantize", "nf4")
    assert status == 2
    assert "compares images and texts and has no language model; what can be quantised" in err
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nf5",), r"--quantize: 'nf5': allowed are nf4 and int8, or with a part language=nf4"),
        (("qformer=nf4",), r"'qformer=nf4': allowed are nf4 and int8, or with a part"),
        (("nf4", "language=int8"), r"--quantize names a part twice; give it once, with one kind"),
        (("nf4", "vision=int8"), r"quantize has language in nf4 and vision in int8: allowed are"),
    ],
    ids=["kind", "part", "twice", "mixed"],
)
def test_what_cannot_be_quantised_is_one_line(blip2ft_main, wide_folder, photo_folder, words, said):
    given = [word for part in words for word in ("--quantize", part)]
    status, out, err = blip2ft_main("caption", photo_folder, "--model", wide_folder, *given)
    assert (status, out) == (2, "")
    assert re.search(said, err)
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("quantize", "said"),
    [
        ({"qformer": "nf4"}, r"quantize names 'qformer', but only language and vision can be"),
        ({"projection": "int8"}, r"quantize names 'projection', but only language and vision"),
        ({"vison": "nf4"}, r"quantize names an unknown part 'vison': .* mean 'vision'\?"),
    ],
    ids=["qformer", "projection", "unknown"],
)
def test_no_loader_quantises_what_must_not_be(wide_folder, quantize, said):
    with pytest.raises(ValueError, match=said):
        load_captioner(wide_folder, quantize=quantize)


def test_a_part_that_was_trained_in_full_cannot_be_put_on_a_quantised_one(
    run_folder, wide_folder, tmp_path
):
    run = make_run(tmp_path / "full", wide_folder, {**PARTS, "language": "full"})
    said = r"trained language in full, .* export the run, and quantise what is exported"
    with pytest.raises(ValueError, match=said):
        load_finetuned(run, quantize={"language": "nf4"})
    with pytest.raises(ValueError, match=said):
        load_mixed({run_folder: 0.5, run: 0.5}, quantize={"language": "nf4"})
    load_finetuned(run, quantize={"vision": "nf4"})


@pytest.mark.parametrize("kind", KINDS)
def test_no_loader_of_adapters_puts_full_weights_on_quantised_ones(wide_folder, tmp_path, kind):
    run = make_run(tmp_path / "full", wide_folder, {**PARTS, "language": "full"})
    model, _ = load_captioner(wide_folder, quantize={"language": kind})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    said = r"trained.safetensors has language_model.*where that is quantised; export the run"
    with pytest.raises(ValueError, match=said):
        load_trained(model, run / "adapter")
    with pytest.raises(ValueError, match=said):
        Adapters(model, base=str(wide_folder)).load(run / "adapter", "full")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_says_how_far_the_quantised_model_was(blip2ft_main, wide_folder, tmp_path, kind):
    run = make_run(tmp_path / "run", wide_folder, quantize={"language": kind})
    status, out, err = blip2ft_main("export", run, "--out", tmp_path / "out")
    assert status == 0, err
    first, second = out.splitlines()
    assert first.endswith("; 4 of 4 sample captions are the same")
    said = r"the quantised model with which the run .* at most (\S+) in fp32; \d of 4 sample cap"
    assert 1e-3 < float(re.match(said, second)[1]) < 10
    saved = json.loads((tmp_path / "out" / "blip2ft.json").read_text())
    assert saved["quantize"] == {"language": kind}


def test_a_run_of_before_says_nothing_of_quantising(run_folder, tmp_path, monkeypatch):
    description = run_folder / "adapter" / "blip2ft.json"
    kept = description.read_text()
    old = {key: value for key, value in json.loads(kept).items() if key != "quantize"}
    description.write_text(json.dumps(old))
    try:
        report = export_run(run_folder, tmp_path / "out")
    finally:
        description.write_text(kept)
    assert report.keys() == {"max_difference", "largest_logit", "captions", "same_captions"}


def test_without_bitsandbytes_a_quantised_run_is_exported_all_the_same(
    wide_folder, tmp_path, monkeypatch, caplog
):
    run = make_run(tmp_path / "run", wide_folder, quantize={"language": "nf4"})
    monkeypatch.setattr(blip2ft.export, "find_spec", lambda name: None)
    report = export_run(run, tmp_path / "out")
    assert report["max_difference"] < 1e-3
    assert "quantised_difference" not in report
    assert "isn't known: that needs pip install" in caplog.text


def test_captions_that_differ_stop_an_export(run_folder, tmp_path, monkeypatch):
    made = itertools.cycle((["a", "b", "c", "d"], ["a", "b", "x", "d"]))
    monkeypatch.setattr(blip2ft.agreement, "generate", lambda *_, **options: next(made))
    said = r"captions 1 of 4 sample images otherwise than the unmerged .* give --tolerance 0.0001:"
    with pytest.raises(ValueError, match=said):
        export_run(run_folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    report = export_run(run_folder, tmp_path / "out", tolerance=1e-4)
    assert (report["captions"], report["same_captions"]) == (4, 3)


def test_features_of_an_index_in_fewer_bits_are_near_the_others(
    retriever_folder, photo_folder, tmp_path
):
    for name, quantize in (("plain", None), ("near", {"vision": "int8"})):
        index_photos(photo_folder, tmp_path / name, model=retriever_folder, quantize=quantize)
    plain, near = (
        {m.path: m.score for m in search_photos(tmp_path / name, "a red apple", rerank=0)}
        for name in ("plain", "near")
    )
    assert plain.keys() == near.keys()
    assert 0 < max(abs(plain[path] - near[path]) for path in plain) < 0.1
    with pytest.raises(ValueError, match=r"no language model; what can be quantised of it is vis"):
        load_retriever(retriever_folder, quantize={"language": "int8"})
