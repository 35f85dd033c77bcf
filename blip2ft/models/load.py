"""From a hub id or folder to a model and its processor, complete and checked."""

import logging
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    PreTrainedConfig,
)

from blip2ft.models.parts import PARTS
from blip2ft.models.resolution import resize_image_input

logger = logging.getLogger(__name__)

IMAGE_TOKEN = "<image>"


def load_captioner(
    name: str | Path,
    *,
    revision: str | None = None,
    image_size: int | None = None,
    dtype: torch.dtype = torch.float32,
    quantize: Mapping[str, str] | None = None,
) -> tuple[Blip2ForConditionalGeneration, Blip2Processor]:
    """Load a BLIP-2 that generates text, with a processor that fits it.

    name: hub id or folder in transformers' format, with an OPT, FlanT5 or any other language
      model that its config names. Weights are safetensors, or loaded with `weights_only`; code
      that a checkpoint brings along is never run.
    image_size: pixels; another size than the checkpoint's interpolates the position embeddings.
    dtype: of the weights; quantised parts aside.
    quantize: {"language": "nf4"} or "int8": parts to hold in fewer bits (needs bitsandbytes).

    What older checkpoints lack is completed, with a log line: the `<image>` token, its id in the
    config, the processor's number of query tokens.

    Raises ValueError for a missing, damaged or foreign checkpoint, and for one whose weights don't
    fit its config.
    """
    name = str(name)
    config = read_config(name, revision)
    quantization = quantization_config(quantize or {}, dtype)
    with _explained(name):
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
        image_processor = AutoImageProcessor.from_pretrained(
            name, revision=revision, trust_remote_code=False, backend="pil"
        )
        saved, _ = Blip2Processor.get_processor_dict(name, revision=revision)
        model, info = Blip2ForConditionalGeneration.from_pretrained(
            name,
            revision=revision,
            config=config,
            dtype=dtype,
            quantization_config=quantization,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
        )
    _check_weights(name, info)
    queries = saved.get("num_query_tokens")
    if queries != config.num_query_tokens:
        logger.warning(
            "the processor has num_query_tokens %s; completed with the config's %d",
            queries,
            config.num_query_tokens,
        )
    processor = Blip2Processor(image_processor, tokenizer, config.num_query_tokens)
    complete_tokens(model, processor)
    if image_size is not None:
        resize_image_input(model, image_size)
    size = model.config.vision_config.image_size
    processor.image_processor.size = {"height": size, "width": size}
    return model.eval(), processor


def complete_tokens(model: Blip2ForConditionalGeneration, processor: Blip2Processor) -> None:
    """Give model and processor what checkpoints from before transformers 4.46 lack, in place.

    The processor's constructor has added `<image>` to the tokenizer where it was missing. Its row
    is taken from the unused ones at the end of the embedding (OPT has 7, FlanT5 28); only where
    there is none, the embedding grows, and the new token is barred from being generated.
    """
    config = model.config
    token_id = processor.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    rows = model.get_input_embeddings().weight.shape[0]
    if token_id >= rows:
        model.resize_token_embeddings(token_id + 1, mean_resizing=False)
        with torch.no_grad():
            for table in (model.get_input_embeddings(), model.get_output_embeddings()):
                # the mean is a word like any other; stock's random draw differs at every load
                table.weight[rows:] = table.weight[:rows].float().mean(0).to(table.weight.dtype)
        logger.warning("the embedding grew from %d to %d rows for <image>", rows, token_id + 1)
        for owner in (model, model.language_model):
            owner.generation_config.suppress_tokens = [token_id]
    if config.image_token_index is None:
        logger.warning("the config lacks image_token_index; completed with %d", token_id)
        config.image_token_index = token_id
    if config.image_token_index != token_id:
        raise ValueError(
            f"the config says that <image> is token {config.image_token_index}, the tokenizer says "
            f"{token_id}; the two don't belong together: download the checkpoint again"
        )


def end_token_id(model: Blip2ForConditionalGeneration) -> int:
    """The token that ends an answer: "\\n" for OPT checkpoints of BLIP-2, `</s>` for FlanT5.

    `generate` asks the language model, whose settings come from `text_config`; the outer
    `generation_config` is asked where that says nothing. Of several, the first counts.
    """
    for ids in (
        model.config.text_config.eos_token_id,
        model.generation_config.eos_token_id,
    ):
        if isinstance(ids, int):
            return ids
        if ids:
            return int(ids[0])
    raise ValueError("the checkpoint names no end token; set eos_token_id in its text_config")


def quantization_config(quantize: Mapping[str, str], dtype: torch.dtype) -> Any:
    """The BitsAndBytesConfig that quantises exactly the parts in `quantize`; None for none.

    NF4 with double quantisation (QLoRA, arXiv 2305.14314, section 3) or LLM.int8. All other parts
    and the output head are named as skipped, because bitsandbytes quantises every Linear it isn't
    told to leave alone.
    """
    if not quantize:
        return None
    kinds = set(quantize.values())
    if len(kinds) > 1 or not kinds <= {"nf4", "int8"}:
        raise ValueError(f"quantize has {sorted(kinds)}: allowed is one of nf4, int8 for all parts")
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise ValueError('quantising needs bitsandbytes: pip install "blip2ft[quantize]"') from None
    from transformers import BitsAndBytesConfig

    skipped = [name for part, names in PARTS.items() if part not in quantize for name in names]
    skipped += ["lm_head", "language_model.lm_head"]
    if kinds == {"int8"}:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=skipped,
    )


def read_config(name: str, revision: str | None = None) -> PreTrainedConfig:
    """The config of a BLIP-2 that generates text; ValueError for anything else."""
    folder = Path(name)
    if folder.is_dir() and not (folder / "config.json").is_file():
        hint = ""
        if (folder / "blip2ft.json").is_file() or (folder / "adapter_config.json").is_file():
            hint = "; it holds trained weights only: pass it as the adapter, or export the run"
        elif (folder / "config.yaml").is_file():
            hint = f"; it is a run: blip2ft export {name} --out FOLDER makes a model of it"
        raise ValueError(f"{name} has no config.json, so it isn't a transformers model{hint}")
    with _explained(name):
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    if config.model_type != "blip-2":
        raise ValueError(
            f"{name} is a checkpoint of type {config.model_type!r}, not 'blip-2'; "
            "start from one such as Salesforce/blip2-opt-2.7b"
        )
    if "Blip2ForImageTextRetrieval" in (config.architectures or ()):
        raise ValueError(
            f"{name} is a retrieval checkpoint without a language model, so it can't caption; "
            "start from one such as Salesforce/blip2-opt-2.7b"
        )
    return config


def _check_weights(name: str, info: Mapping[str, Any]) -> None:
    """Refuse weights that don't fit, which transformers would fill with random numbers."""
    for what in ("missing_keys", "mismatched_keys"):
        found = sorted(str(key) for key in info.get(what, ()))
        if found:
            raise ValueError(
                f"{name}: {len(found)} weights are {what.split('_')[0]} in the checkpoint, "
                f"such as {', '.join(found[:3])}; it is incomplete or its config is another's"
            )


class _explained:
    """Turn what a missing or damaged checkpoint raises into a ValueError that names it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        reason = (str(error).strip().splitlines() or [""])[0].rstrip(" .:")
        hint = None
        if isinstance(error, UnpicklingError):
            reason = "its weights are damaged, or a pickle with code in it, which was not run"
            hint = "use a checkpoint with model.safetensors"
        elif isinstance(error, SafetensorError):
            reason = f"its weights are damaged ({reason})"
            hint = "download or export it again"
        elif isinstance(error, OSError) and error.errno is None:
            if Path(self.name).is_dir():
                hint = "download or export it again"
            else:
                reason = f"it is no folder here, and the hub gave no such model ({reason})"
                hint = "check the spelling, the network, or HF_HUB_OFFLINE"
        elif isinstance(error, ValueError):
            hint = "start from one such as Salesforce/blip2-opt-2.7b"
        if hint is not None:
            raise ValueError(f"can't load {self.name!r}: {reason}; {hint}") from error
