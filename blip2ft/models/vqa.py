"""A BLIP-2 whose Q-Former reads the question, as a stock InstructBLIP.

The two are one network: InstructBLIP's Q-Former has a text branch (embeddings, feed-forward) beside
BLIP-2's queries, and the norm before its first layer goes by another name. With the question's
attention mask all zeros no query sees it, and both give the same answers.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
)

from blip2ft.models.clip_vision import class_for
from blip2ft.models.load import complete_tokens, load_captioner, read_text_source
from blip2ft.models.resolution import resize_image_input
from blip2ft.models.source import (
    check_weights,
    explained,
    is_retriever,
    leave_unpacked,
    quantization_config,
    read_config,
)

# What of the Q-Former reads text, by its InstructBLIP name.
TEXT_BRANCH = (
    r"qformer\.embeddings\.(word|position)_embeddings\.|"
    r"qformer\.encoder\.layer\.\d+\.(intermediate|output)\."
)

# InstructBLIP's names of BLIP-2's weights, where they differ.
RENAMES = {r"^qformer\.layernorm\.": "qformer.embeddings.layernorm."}


def load_vqa(
    name: str | Path,
    *,
    stage1: str | Path | None = None,
    question_in_qformer: bool = True,
    revision: str | None = None,
    image_size: int | None = None,
    dtype: torch.dtype = torch.float32,
    quantize: Mapping[str, str] | None = None,
    compute_dtype: torch.dtype | None = None,
) -> tuple[
    Blip2ForConditionalGeneration | InstructBlipForConditionalGeneration,
    Blip2Processor | InstructBlipProcessor,
]:
    """Load a model that answers questions about images.

    name: hub id or folder of a BLIP-2 that generates text, or of an InstructBLIP, taken as it is.
    stage1: hub id or folder of what a BLIP-2's Q-Former takes its text branch and tokenizer from: a
      retrieval checkpoint such as Salesforce/blip2-itm-vit-g, or a BERT of the same width.
    question_in_qformer: False gives the question to the language model alone, in BLIP-2's own
      class; a checkpoint of an InstructBLIP can't be taken so.
    Further arguments: see `load_captioner`.

    Raises ValueError for a missing, damaged or foreign checkpoint, and for a stage1 that is missing
    or doesn't fit.
    """
    name = str(name)
    config = read_config(name, revision, ("blip-2", "instructblip"))
    is_instruct = config.model_type == "instructblip"
    if not question_in_qformer:
        if is_instruct:
            raise ValueError(
                f"{name} is an InstructBLIP, whose Q-Former reads the question; set "
                "question_in_qformer to true, or start from a BLIP-2"
            )
        return load_captioner(
            name,
            revision=revision,
            image_size=image_size,
            dtype=dtype,
            quantize=quantize,
            compute_dtype=compute_dtype,
        )
    if is_retriever(config):
        raise ValueError(
            f"{name} is a retrieval checkpoint without a language model, so it can't answer; start "
            "from one such as Salesforce/blip2-opt-2.7b, and pass this one as stage1"
        )
    if not is_instruct and stage1 is None:
        raise ValueError(
            f"{name} has no text branch in its Q-Former; pass stage1, a checkpoint to take it "
            "from, such as Salesforce/blip2-itm-vit-g or bert-base-uncased, or set "
            "question_in_qformer to false"
        )
    if is_instruct and stage1 is not None:
        raise ValueError(
            f"{name} is an InstructBLIP with a text branch of its own; leave stage1 out"
        )
    branch: dict[str, Tensor] = {}
    if not is_instruct:
        branch = _read_text_branch(str(stage1), config)
        config = instruct_config(config, len(branch[_WORDS]), len(branch[_POSITIONS]))
    quantization = quantization_config(quantize or {}, compute_dtype or dtype)
    with explained(name):
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
        image_processor = AutoImageProcessor.from_pretrained(
            name, revision=revision, trust_remote_code=False, backend="pil"
        )
        question_source = {"subfolder": "qformer_tokenizer"} if is_instruct else {}
        question_tokenizer = AutoTokenizer.from_pretrained(
            name if is_instruct else str(stage1),
            revision=revision if is_instruct else None,
            trust_remote_code=False,
            **question_source,
        )
        model, info = class_for(InstructBlipForConditionalGeneration, config).from_pretrained(
            name,
            revision=revision,
            config=config,
            dtype=dtype,
            quantization_config=quantization,
            key_mapping=None if is_instruct else RENAMES,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
        )
    if not is_instruct:
        # the model remembers how it was renamed, and would be saved under BLIP-2's names again
        del model._weight_conversions
    check_weights(name, info, optional="$^" if is_instruct else TEXT_BRANCH)
    leave_unpacked(model)
    with torch.no_grad():
        for parameter, tensor in branch.items():
            model.get_parameter(parameter).copy_(tensor)
    processor = InstructBlipProcessor(
        image_processor, tokenizer, question_tokenizer, config.num_query_tokens
    )
    complete_tokens(model, processor)
    if image_size is not None:
        resize_image_input(model, image_size)
    size = model.config.vision_config.image_size
    processor.image_processor.size = {"height": size, "width": size}
    return model.eval(), processor


def instruct_config(config: Blip2Config, vocabulary: int, positions: int) -> InstructBlipConfig:
    """The config of the InstructBLIP that is `config` with a text branch."""
    vision, qformer = config.vision_config.to_dict(), config.qformer_config.to_dict()
    for part in (vision, qformer):
        part.pop("model_type")
    qformer.pop("use_qformer_text_input")
    qformer |= {"vocab_size": vocabulary, "max_position_embeddings": positions}
    return InstructBlipConfig(
        vision_config=vision,
        qformer_config=qformer,
        text_config=config.text_config,
        num_query_tokens=config.num_query_tokens,
        image_token_index=config.image_token_index,
    )


_WORDS = "qformer.embeddings.word_embeddings.weight"
_POSITIONS = "qformer.embeddings.position_embeddings.weight"


def _read_text_branch(name: str, config: Blip2Config) -> dict[str, Tensor]:
    """Embeddings and text feed-forward of a retrieval checkpoint or a BERT, by name.

    Those of a BERT are as stage 1 starts with them (paper, section 3.1): the feed-forward of layer
    i for the Q-Former's layer i, and, as `read_bert` says, the positions with BERT's first segment,
    so that a text is embedded exactly as by that BERT, before the norm, which queries share.

    Raises ValueError where shapes or numbers of layers differ.
    """
    theirs, tensors = read_text_source(name)
    for what in ("num_hidden_layers", "hidden_size", "intermediate_size"):
        here, there = getattr(config.qformer_config, what), getattr(theirs, what)
        if here != there:
            raise ValueError(
                f"stage1 {name} doesn't fit: its {what} is {there}, the Q-Former's is {here}; use "
                "one of the same size"
            )
    named = {f"qformer.{key.removeprefix('qformer.')}": tensor for key, tensor in tensors.items()}
    return {key: tensor for key, tensor in named.items() if re.match(TEXT_BRANCH, key)}
