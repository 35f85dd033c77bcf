"""From a run to a folder in transformers' format: merged, verified, complete."""

import json
import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import Blip2ForImageTextRetrieval

from blip2ft.agreement import Answers, answers
from blip2ft.finetuned import adapter_folder, load_finetuned
from blip2ft.models.adapters import DESCRIPTION_FILE, merge_lora, read_description
from blip2ft.models.load import end_token_id
from blip2ft.models.retriever import Retriever
from blip2ft.whole import check_free, whole_folder

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Largest difference of a logit, as a share of the largest logit. bf16 keeps 8 bits of mantissa
# (1/256 a rounding), which grows over the depth of the model; fp32 merging moves the 6th digit.
TOLERANCES = {"fp32": 1e-4, "bf16": 5e-2}


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
        # it keeps the limit that texts were cut to last, over which stock's processor stumbles
        processor.tokenizer.backend_tokenizer.no_truncation()
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
