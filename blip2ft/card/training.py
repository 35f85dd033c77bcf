"""How the model was trained: data, settings, time and sizes."""

from collections.abc import Iterator, Mapping
from typing import Any

from blip2ft.card.facts import Facts
from blip2ft.card.markdown import bullets, code, plain, shown_source, table
from blip2ft.card.words import part_name
from blip2ft.counted import counted
from blip2ft.features.size import told_size
from blip2ft.filters.rules import is_idle
from blip2ft.report.facts import span
from blip2ft.training.broken import FILE as BROKEN
from blip2ft.training.filtered import FILE as FILTERED
from blip2ft.training.nonfinite import FILE as NONFINITE
from blip2ft.training.stored import list_checkpoints

PRECISIONS = {
    "fp32": "fp32",
    "bf16": "bf16 mixed precision: trained weights are kept in fp32",
    "fp16": "fp16 mixed precision: trained weights are kept in fp32",
}
SETTINGS = "Every setting is in `run/config.yaml` of the repository that it was pushed to."


def training_data(facts: Facts) -> str:
    """Counts, which are the run's; source, licence and people, which a person tells."""
    lines = [
        f"**Read from:** {', '.join(plain(shown_source(one)) for one in _sources(facts))}",
        f"**Size:** {_size(facts)}",
        f"**Filters:** {_filters(facts)}",
        f"**Where they come from:** {facts.inline('data_source')}",
        f"**Licence or permission:** {facts.inline('data_license')}",
        f"**People in them:** {facts.inline('data_people')}",
    ]
    return bullets(lines)


def preprocessing(facts: Facts) -> str:
    """What becomes of an image and a text before the model sees them."""
    data, size = facts.settings["data"], facts.trained["image_size"]
    crop = data.get("crop_scale")
    image = f"Images are resized to {size} x {size} px."
    varied = [f"a random crop of {crop[0]:g} to {crop[1]:g} of the area is taken"] if crop else []
    varied += ["half of them are flipped left to right"] if data.get("flip") else []
    if varied:
        image += f" Before that, in training alone, {' and '.join(varied)}."
    tokens = data.get("max_target_tokens")
    if facts.task == "retrieval":
        cut = facts.trained.get("max_text_tokens", tokens)
        return f"{image} Texts are cut to {counted(cut, 'token')}."
    what = "Answers" if facts.task == "vqa" else "Captions"
    prompt = code(facts.trained["prompt"]) if facts.trained["prompt"] else "no prompt"
    return f"{image} {what} follow {prompt} and are cut to {counted(tokens, 'token')}."


def hyperparameters(facts: Facts) -> str:
    precision = facts.resources.get("precision")
    regime = PRECISIONS.get(precision or "", "not recorded by the version that trained it")
    if quantized := facts.trained.get("quantize"):
        held = ", ".join(
            f"{part_name(facts.task, part)} in {kind}" for part, kind in quantized.items()
        )
        regime += f"; held in fewer bits while it trained: {held}"
    rows = [[name, text] for name, text in _hyperparameters(facts)]
    return f"- **Training regime:** {regime}\n\n{table(['setting', 'value'], rows)}\n\n{SETTINGS}"


def speeds(facts: Facts) -> str:
    """Time, throughput, memory and sizes, as the run measured them."""
    found = facts.resources
    lines = []
    if seconds := found.get("seconds"):
        lines.append(
            f"**Time:** {span(seconds['total'])} in all, of which {span(seconds['training'])} in "
            f"training steps and {span(seconds['evaluating'])} in evaluations"
            + (f", over {counted(found['starts'], 'start')}" if found.get("starts", 1) > 1 else "")
        )
    if found.get("samples_per_second"):
        lines.append(
            f"**Throughput:** {found['samples_per_second']:,.1f} samples a second in training "
            f"steps, {found['samples']:,} in all"
        )
    peaks = {
        kind: max(each)
        for kind, each in (found.get("peak_memory") or {}).items()
        if each and None not in each
    }
    if peaks:
        told = ", ".join(f"{told_size(peak)} of the {kind}" for kind, peak in peaks.items())
        lines.append(f"**Most memory of a process:** {told}")
    sizes = ", ".join(f"{code(name)} {told_size(size)}" for name, size in facts.weights.items())
    lines.append(f"**Size of the weights:** {sizes}")
    if checkpoints := list_checkpoints(facts.run.folder / "checkpoints"):
        size = sum(file.stat().st_size for file in checkpoints[-1].iterdir())
        lines.append(f"**Size of a checkpoint to resume from:** {told_size(size)}, not given away")
    lines += _left_out(facts)
    if not found:
        lines.insert(0, "Its time wasn't recorded by the version that trained it.")
    return bullets(lines)


def _sources(facts: Facts) -> list[str]:
    """What the settings name as training data."""
    data = facts.settings["data"]
    train: Any = data.get("train") or (data.get("stream") or {}).get("sources") or []
    return [one["source"] for one in (train if isinstance(train, list) else [train])]


def _size(facts: Facts) -> str:
    found = facts.learned
    if "shards" in found:
        return (
            f"{counted(found['samples'], 'image')} with captions, in "
            f"{counted(found['shards'], 'shard')}"
        )
    if not found:
        return "not recorded by the version that trained it"
    what = "question" if facts.task == "vqa" else "caption"
    told = f"{counted(found['images'], 'image')} with {counted(found['texts'], what)}"
    told += f", {found['distinct_texts']:,} of them different"
    words = found.get("words_per_text")
    return f"{told}, of {words:.1f} words on average" if words else told


def _filters(facts: Facts) -> str:
    """What was looked for in the texts, and what was found."""
    rules = facts.settings["data"].get("filters") or {}
    if is_idle(rules):
        return "none: the texts weren't looked through for harmful words or personal data"
    what = {"harmful": "harmful words", "personal": "personal data"}
    told = [f"{what[name]}: {rules[name]}" for name in what if rules.get(name, "keep") != "keep"]
    touched = counted(len(facts.run.asides[FILTERED]), "text")
    return f"{', '.join(told)}; {touched} dropped or masked. Such filters miss much"


def _left_out(facts: Facts) -> list[str]:
    """Steps and samples that the run had to do without."""
    return [
        f"**Left out:** {counted(len(rows), noun)} {which}"
        for name, noun, which in (
            (NONFINITE, "step", "whose loss or gradient wasn't finite"),
            (BROKEN, "training sample", "that couldn't be read"),
        )
        if (rows := facts.run.asides[name])
    ]


def _hyperparameters(facts: Facts) -> Iterator[tuple[str, str]]:
    settings, resources = facts.settings, facts.resources
    train, optimizer = settings["train"], settings["optimizer"]
    if lora := facts.trained.get("lora"):
        yield "LoRA", _lora(lora)
    steps = resources.get("steps") or (facts.run.log[-1]["step"] if facts.run.log else None)
    samples = resources.get("samples")
    told = counted(steps, "step") if steps else "not recorded"
    yield "length", f"{told}, {samples:,} samples" if samples else told
    if facts.run.best is not None:
        split = "validation split"
        yield "weights kept", f"those of step {facts.run.best:,}, the best on the {split}"
    processes = resources.get("processes")
    on = f" on {counted(processes, 'process')}" if processes else ""
    yield (
        "batch",
        f"{train['batch_size']}, in micro-batches of {train['micro_batch_size']}{on}",
    )
    betas = ", ".join(f"{beta:g}" for beta in optimizer["betas"])
    yield "optimizer", f"{optimizer['kind'].replace('_', ' ')}, betas {betas}"
    yield "learning rate", _rate(optimizer)
    yield "weight decay", f"{optimizer['weight_decay']:g}"
    if optimizer["vision_layer_decay"] != 1:
        yield "layer-wise decay of the image encoder", f"{optimizer['vision_layer_decay']:g}"
    clip = optimizer["max_grad_norm"]
    yield "gradient norm", "not clipped" if clip is None else f"clipped at {clip:g}"
    yield "seed", str(settings["seed"])


def _rate(optimizer: Mapping[str, Any]) -> str:
    told = f"{optimizer['lr']:g} after {counted(optimizer['warmup_steps'], 'step')} of warm-up"
    told += f", then a cosine to {optimizer['min_lr']:g}"
    ratio = optimizer["lora_lr_ratio"]
    return f"{told}; lora B learns at {ratio:g} times of it" if ratio != 1 else told


def _lora(lora: Mapping[str, Any]) -> str:
    kind = "DoRA" if lora.get("dora") else "LoRA"
    scaled = "alpha / sqrt(r)" if lora.get("rslora") else "alpha / r"
    return (
        f"{kind}, r {lora['r']}, alpha {lora['alpha']} (scaled by {scaled}), dropout "
        f"{lora['dropout']:g}, start {lora.get('init', 'default')}"
    )
