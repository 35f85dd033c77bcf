"""From a hub id or folder to a model and its processor, complete and checked."""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    PreTrainedConfig,
)

from blip2ft.models.bert import read_bert, with_rows
from blip2ft.models.clip_vision import class_for
from blip2ft.models.resolution import resize_image_input
from blip2ft.models.retriever import HEADS, OBJECTIVES, Retriever
from blip2ft.models.source import (
    check_weights,
    explained,
    is_retriever,
    leave_unpacked,
    quantization_config,
    read_config,
)

logger = logging.getLogger(__name__)

IMAGE_TOKEN = "<image>"
OWN_WEIGHTS = r"temperature$|itg_head\."  # of a retriever, which stock's has no place for


def load_captioner(
    name: str | Path,
    *,
    revision: str | None = None,
    image_size: int | None = None,
    dtype: torch.dtype = torch.float32,
    quantize: Mapping[str, str] | None = None,
    compute_dtype: torch.dtype | None = None,
) -> tuple[Blip2ForConditionalGeneration, Blip2Processor]:
    """Load a BLIP-2 that generates text, with a processor that fits it.

    name: hub id or folder in transformers' format, with an OPT, FlanT5 or any other language
      model that its config names. Weights are safetensors, or loaded with `weights_only`; code
      that a checkpoint brings along is never run.
    image_size: pixels; another size than the checkpoint's interpolates the position embeddings.
    dtype: of the weights; quantised parts aside.
    quantize: {"language": "nf4"} or "int8": parts to hold in fewer bits (needs bitsandbytes).
    compute_dtype: what 4-bit weights are multiplied in; None is dtype. Under bf16 autocast it has
      to be bf16, or those products are fp32 in time and memory.

    What older checkpoints lack is completed, with a log line: the `<image>` token, its id in the
    config, the processor's number of query tokens.

    Raises ValueError for a missing, damaged or foreign checkpoint, and for one whose weights don't
    fit its config.
    """
    name = str(name)
    config = read_config(name, revision)
    if is_retriever(config):
        raise ValueError(
            f"{name} is a retrieval checkpoint without a language model, so it can't caption; "
            "start from one such as Salesforce/blip2-opt-2.7b"
        )
    quantization = quantization_config(quantize or {}, compute_dtype or dtype)
    with explained(name):
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
        image_processor = AutoImageProcessor.from_pretrained(
            name, revision=revision, trust_remote_code=False, backend="pil"
        )
        saved, _ = Blip2Processor.get_processor_dict(name, revision=revision)
        model, info = class_for(Blip2ForConditionalGeneration, config).from_pretrained(
            name,
            revision=revision,
            config=config,
            dtype=dtype,
            quantization_config=quantization,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
        )
    check_weights(name, info)
    leave_unpacked(model)
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


def load_retriever(
    name: str | Path,
    *,
    revision: str | None = None,
    image_size: int | None = None,
    dtype: torch.dtype = torch.float32,
    quantize: Mapping[str, str] | None = None,
    compute_dtype: torch.dtype | None = None,
    objectives: Mapping[str, float] | None = None,
    itg_head: str | Path | None = None,
) -> tuple[Retriever, Blip2Processor]:
    """Load a BLIP-2 that compares images and texts, with the losses that stock's class lacks.

    name: hub id or folder of a `Blip2ForImageTextRetrieval`, such as Salesforce/blip2-itm-vit-g,
      or of a `Retriever` saved before.
    objectives: weights of the losses itc, itm and itg; those left out aren't computed.
    itg_head: hub id or folder of a BERT or a retriever to take the head of ITG from, where the
      checkpoint has none; without it, the head starts from random weights, with a log line.
    Further arguments: see `load_captioner`.

    Raises ValueError for a missing, damaged or foreign checkpoint, for one whose weights don't
    fit its config, for an itg_head without a head or with another's, and for unknown objectives.
    """
    name = str(name)
    objectives = dict.fromkeys(OBJECTIVES, 1.0) if objectives is None else dict(objectives)
    _check_objectives(objectives)
    config = read_config(name, revision)
    if not is_retriever(config):
        raise ValueError(
            f"{name} is a checkpoint that generates text and compares none; for retrieval start "
            "from one such as Salesforce/blip2-itm-vit-g"
        )
    if "language" in (quantize or {}):
        raise ValueError(
            f"quantize names 'language', but {name} compares images and texts and has no language "
            "model; what can be quantised of it is vision"
        )
    quantization = quantization_config(quantize or {}, compute_dtype or dtype)
    with explained(name):
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
        image_processor = AutoImageProcessor.from_pretrained(
            name, revision=revision, trust_remote_code=False, backend="pil"
        )
        model, info = class_for(Retriever, config).from_pretrained(
            name,
            revision=revision,
            config=config,
            dtype=dtype,
            quantization_config=quantization,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
        )
    check_weights(name, info, optional=OWN_WEIGHTS)
    leave_unpacked(model)
    model.objectives = objectives
    text = model.config.qformer_config
    if getattr(text, "bos_token_id", None) is None:
        text.bos_token_id = tokenizer.bos_token_id
    if objectives.get("itg"):
        if text.bos_token_id is None or not text.bos_token_id < text.vocab_size:
            raise ValueError(
                f"{name}: the tokenizer has no start token for ITG ([DEC]) among the "
                f"{text.vocab_size} tokens of the embedding; leave itg out of the objectives, or "
                "use a checkpoint that has one"
            )
        if "itg_head.bias" in info["missing_keys"]:
            if itg_head is None:
                logger.warning("%s has no ITG head; it starts from random weights", name)
            else:
                _load_itg_head(model, str(itg_head))
    processor = Blip2Processor(image_processor, tokenizer)
    if config.image_token_index is not None:  # stock then expects image tokens before the text
        processor.num_query_tokens = config.num_query_tokens
    if image_size is not None:
        resize_image_input(model, image_size)
    size = model.config.vision_config.image_size
    processor.image_processor.size = {"height": size, "width": size}
    return model.eval(), processor


def _check_objectives(objectives: Mapping[str, float]) -> None:
    for objective, weight in objectives.items():
        if objective not in HEADS or weight < 0:
            raise ValueError(
                f"objectives have {objective!r} with weight {weight}: allowed are "
                f"{', '.join(OBJECTIVES)}, with weights of at least 0"
            )
    if not any(objectives.values()):
        raise ValueError("no objective has a weight above 0, so nothing would train")


@torch.no_grad()
def _load_itg_head(model: Retriever, name: str) -> None:
    """Copy the head of ITG from a BERT with its language-modelling head, or from a retriever."""
    _, tensors = read_text_source(name)
    own = {f"itg_head.{part}": tensor for part, tensor in model.itg_head.named_parameters()}
    if not own.keys() <= tensors.keys():
        raise ValueError(
            f"{name} has no language-modelling head, so there is none to take for ITG; use a BERT "
            "that has one, such as bert-base-uncased, or leave itg_head out for random weights"
        )
    found = with_rows({key: tensors[key] for key in own}, len(model.itg_head.bias))
    for key, parameter in own.items():
        if found[key].shape != parameter.shape:
            raise ValueError(
                f"the ITG head of {name} doesn't fit: {key.removeprefix('itg_head.')} is "
                f"{tuple(found[key].shape)}, the model needs {tuple(parameter.shape)}; use a BERT "
                "of the same width and vocabulary"
            )
        parameter.copy_(found[key])


def read_text_source(name: str) -> tuple[PreTrainedConfig, dict[str, Tensor]]:
    """Config and tensors of what reads text, a BERT or a retriever's Q-Former.

    name: hub id or folder. The tensors, of a BERT as of a retriever, go by a retriever's names (see
    `read_bert`); the head of ITG is left out where there is none.

    Raises ValueError for anything else, and for a damaged one.
    """
    with explained(name):
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        if config.model_type != "bert" and not is_retriever(config):
            raise ValueError(
                f"it is a {config.model_type!r}, neither a retrieval checkpoint nor a BERT"
            )
    if not is_retriever(config):
        return read_bert(name)
    with explained(name):
        model, info = class_for(Retriever, config).from_pretrained(
            name, output_loading_info=True, ignore_mismatched_sizes=True
        )
    check_weights(name, info, optional=OWN_WEIGHTS)
    tensors = {k: t for k, t in model.state_dict().items() if k not in info["missing_keys"]}
    return config.qformer_config, tensors


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
