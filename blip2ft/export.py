"""From a run to a folder in transformers' format: merged, verified, complete."""

import json
import logging
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import Blip2ForImageTextRetrieval

from blip2ft.agreement import Answers, answers
from blip2ft.models.adapter_set import Adapters
from blip2ft.models.adapters import DESCRIPTION_FILE, load_trained, merge_lora, read_description
from blip2ft.models.hub_adapter import download_adapter, is_on_hub
from blip2ft.models.identity import check_base
from blip2ft.models.load import end_token_id, load_captioner, load_retriever
from blip2ft.models.retriever import Retriever
from blip2ft.models.source import read_config
from blip2ft.models.vqa import load_vqa
from blip2ft.whole import check_free, whole_folder

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Largest difference of a logit, as a share of the largest logit. bf16 keeps 8 bits of mantissa
# (1/256 a rounding), which grows over the depth of the model; fp32 merging moves the 6th digit.
TOLERANCES = {"fp32": 1e-4, "bf16": 5e-2}


def adapter_folder(run: str | Path) -> Path:
    """The folder of trained weights in `run`, or `run` itself where it is one.

    run: a folder, or weights on the hub, OWNER/NAME or OWNER/NAME@REVISION, which are downloaded.

    Raises ValueError for a folder without any, and says what to do for a run that hasn't ended.
    """
    if is_on_hub(run):
        return download_adapter(run)
    run = Path(run)
    for folder in (run / "adapter", run):
        if _is_adapter(folder):
            return folder
    if (run / "config.yaml").is_file():
        raise ValueError(
            f"the run {run} hasn't ended, so it has no adapter yet; go on with --resume"
        )
    raise ValueError(f"{run} is no run and no adapter folder; pass the --output of a run")


def is_run(name: str | Path) -> bool:
    """Whether a folder here has trained weights without their base, as `adapter_folder` finds."""
    return any(_is_adapter(folder) for folder in (Path(name) / "adapter", Path(name)))


def _is_adapter(folder: Path) -> bool:
    return (folder / DESCRIPTION_FILE).is_file() and not (folder / "config.json").is_file()


def load_finetuned(
    run: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    base: str | None = None,
    revision: str | None = None,
    quantize: Mapping[str, str] | None = None,
) -> tuple[Any, Any, dict[str, Any]]:
    """The base of a run with its trained weights on, unmerged.

    run: its folder, or where it was pushed to on the hub, OWNER/NAME or OWNER/NAME@REVISION.
    base: where the base model is now, if it moved; revision: of the base, where it isn't the run's.
    quantize: {"language": "nf4"} or "int8": parts to hold in fewer bits, however the run held them.
    Returns model, processor and description.

    Raises ValueError for parts to quantise that the run trained in full.
    """
    folder = adapter_folder(run)
    whose = _told(run, folder)
    model, processor, description = _load_base_of(folder, whose, dtype, base, revision, quantize)
    load_trained(model, folder)
    return model.eval(), processor, description


def load_mixed(
    runs: Mapping[Path, float] | Mapping[str, float],
    *,
    dtype: torch.dtype = torch.float32,
    base: str | None = None,
    revision: str | None = None,
    quantize: Mapping[str, str] | None = None,
) -> tuple[Adapters, Any, dict[str, Any]]:
    """The base of some runs with all their adapters on it, mixed by their weights.

    The adapters go by the names that `runs` gives them; the further arguments are those of
    `load_finetuned`. Returns the adapters, on their model, the processor, and the description of
    the first run, whose prompt and decoding are used.

    Raises ValueError for runs of different bases, classes or image sizes, and for parts to quantise
    that one of them trained in full.
    """
    folders = {str(run): adapter_folder(run) for run in runs}
    (name, first), *others = folders.items()
    for other, folder in others:
        _check_quantizable(_told(other, folder), read_description(folder), quantize or {})
    whose = _told(name, first)
    model, processor, description = _load_base_of(first, whose, dtype, base, revision, quantize)
    if revision is None and base is None:
        revision = description["revision"]
    name, stage1 = base or description["base"], description.get("stage1")
    adapters = Adapters(model.eval(), base=name, revision=revision, stage1=stage1)
    for name, folder in folders.items():
        adapters.load(folder, name)
    adapters.mix({str(run): weight for run, weight in runs.items()})
    return adapters, processor, description


def _told(run: str | Path, folder: Path) -> str:
    """How messages name trained weights: by their folder, those of the hub by their name there."""
    return str(run if is_on_hub(run) else folder)


def _load_base_of(
    folder: Path,
    whose: str,
    dtype: torch.dtype,
    base: str | None,
    revision: str | None,
    quantize: Mapping[str, str] | None,
) -> tuple[Any, Any, dict[str, Any]]:
    description = read_description(folder)
    lacking = [key for key in ("task", "base", "parts", "image_size") if key not in description]
    if lacking:
        raise ValueError(
            f"{whose}: its {DESCRIPTION_FILE} lacks {', '.join(lacking)}, so it is none that "
            "blip2ft wrote beside trained weights"
        )
    _check_quantizable(whose, description, quantize or {})
    gone = Path(description["base"])
    if base is None and gone.is_absolute() and not gone.exists():
        raise ValueError(
            f"{whose} was trained on {gone}, which isn't there; say where it is now "
            "(blip2ft export --base, blip2ft caption --adapter .. --model)"
        )
    if revision is None and base is None:
        revision = description.get("revision")
    name = base or description["base"]
    read_config(name, revision, ("blip-2", "instructblip"))  # what is no model is told as such
    check_base(whose, description, name, revision)
    options = {"revision": revision, "image_size": description["image_size"], "dtype": dtype}
    options["quantize"] = quantize
    model, processor = _load_base(name, description, options)
    return model, processor, description


def _check_quantizable(
    whose: str, description: Mapping[str, Any], quantize: Mapping[str, str]
) -> None:
    for part in quantize:
        if description["parts"].get(part) == "full":
            raise ValueError(
                f"{whose} trained {part} in full, and its weights can't be put on a quantised "
                f"{part}; export the run, and quantise what is exported"
            )


def _load_base(name: str, description: dict[str, Any], options: dict[str, Any]) -> tuple[Any, Any]:
    """The model that a run of any task started from."""
    if description["task"] == "retrieval":
        return load_retriever(name, objectives=description["objectives"], **options)
    if description["task"] == "vqa":
        options |= {key: description[key] for key in ("stage1", "question_in_qformer")}
        return load_vqa(name, **options)
    return load_captioner(name, **options)


def export_run(
    run: str | Path,
    out: str | Path,
    *,
    dtype: str = "fp32",
    base: str | None = None,
    tolerance: float | None = None,
) -> dict[str, float]:
    """Merge a run into `out`: model, processor and generation config of stock classes.

    The merge is computed in fp32 over the unquantised base, then written in `dtype` ("fp32" or
    "bf16"). The written folder is loaded again by stock transformers (on CLIP's image encoder, for
    which stock has no class, by ours), and its logits and captions on sample inputs are compared
    with those of the unmerged model in fp32. Returns {"max_difference", "largest_logit",
    "captions", "same_captions"}; of a run on a quantised base, how far the model was with which it
    trained, too, computed in fp32: {"quantised_difference", "quantised_same_captions"}, if
    bitsandbytes is there.

    tolerance: largest difference of a logit, as a share of the largest logit; None is that of
      `TOLERANCES`, and then captions in fp32 have to be the same, too.

    Raises ValueError where `out` is in use, and where the merged model differs by more than that;
    then nothing is left in `out`.
    """
    out = Path(out)
    check_free(out)
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}: allowed are {', '.join(DTYPES)}")
    trained = _answers_in_training(run, base)
    model, processor, description = load_finetuned(run, base=base)
    task, stock = description["task"], type(model)
    if stock is Retriever:
        stock = Blip2ForImageTextRetrieval
    unmerged = answers(model, processor, description)
    merge_lora(model)
    if task != "retrieval":
        _complete_generation_config(model, description)

    with whole_folder(out) as partial:
        model.to(DTYPES[dtype]).save_pretrained(partial)
        processor.save_pretrained(partial)
        # of the adapter alone
        gone = ("parts", "image_size", "lora")
        kept = {key: value for key, value in description.items() if key not in gone}
        kept["base"] = base or kept["base"]
        for source in ("base", "stage1"):  # whoever gets the model has no such folder
            if kept.get(source) and Path(kept[source]).exists():
                kept[source] = Path(kept[source]).resolve().name
        (partial / DESCRIPTION_FILE).write_text(json.dumps(kept, indent=2) + "\n")
        del model
        merged = stock.from_pretrained(partial, dtype=torch.float32)
        written = answers(merged.eval(), processor, description)
        difference, largest = written.difference(unmerged), unmerged.largest
        count, same = len(unmerged.captions), written.same_captions(unmerged)
        allowed = TOLERANCES[dtype] if tolerance is None else tolerance
        if not difference <= allowed * largest:
            raise ValueError(
                f"the merged model differs from the unmerged one: logits by {difference:.3g}, "
                f"allowed is {allowed:g} of the largest, {largest:.3g}; nothing was exported. "
                "Try --dtype fp32"
            )
        if dtype == "fp32" and tolerance is None and same < count:
            raise ValueError(
                f"the merged model captions {count - same} of {count} sample images otherwise than "
                f"the unmerged one, though its logits differ by {difference:.3g} at most, of "
                f"{largest:.3g}; nothing was exported. If two words were near a tie, give "
                f"--tolerance {allowed:g}: with a tolerance of your own, captions only get counted"
            )
    report = {"max_difference": difference, "largest_logit": largest}
    report |= {"captions": count, "same_captions": same}
    if trained is not None:
        report["quantised_difference"] = trained.difference(unmerged)
        report["quantised_same_captions"] = trained.same_captions(unmerged)
    return report


def _answers_in_training(run: str | Path, base: str | None) -> Answers | None:
    """What a run's model answers on the quantised base in fp32; None where it wasn't quantised."""
    quantize = read_description(adapter_folder(run)).get("quantize")
    if not quantize:
        return None
    if find_spec("bitsandbytes") is None:
        logger.warning(
            "how far the quantised model was with which the run trained isn't known: that needs "
            'pip install "blip2ft[quantize]"'
        )
        return None
    return answers(*load_finetuned(run, base=base, quantize=quantize))


def _complete_generation_config(model: Any, description: dict[str, Any]) -> None:
    config = model.generation_config
    end = end_token_id(model)
    # stock's generate asks the language model, whose settings come from text_config
    model.config.text_config.eos_token_id = end
    config.eos_token_id = end
    config.pad_token_id = model.config.text_config.pad_token_id
    config.bos_token_id = getattr(model.config.text_config, "bos_token_id", None)
    generation = description["generation"]
    config.num_beams = generation["num_beams"]
    config.max_new_tokens = generation["max_new_tokens"]
    if generation["num_beams"] > 1:
        config.length_penalty = generation["length_penalty"]
