"""The starts of the two pre-training stages, put together from checkpoints (paper, section 3)."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import (
    AutoTokenizer,
    BertConfig,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    BlipImageProcessorPil,
    PreTrainedConfig,
)

from blip2ft.models.bert import Bert, for_queries, read_bert, with_rows
from blip2ft.models.build import empty_model, fill, name_end_tokens, processor_of, save_whole
from blip2ft.models.language_source import check_vocabulary, end_with_line_break, read_language
from blip2ft.models.load import complete_tokens, load_retriever
from blip2ft.models.parts import count_parameters
from blip2ft.models.retriever import Retriever
from blip2ft.models.source import explained
from blip2ft.models.vision_source import VisionSource, read_vision
from blip2ft.whole import check_free

logger = logging.getLogger(__name__)

START_TOKEN = "[DEC]"  # of ITG: LAVIS models/blip2_models/blip2.py, init_tokenizer


class Assembly(NamedTuple):
    """What was put together.

    task: "retrieval" for the start of stage 1, "caption" for that of stage 2.
    new: the weights that were drawn at random.
    parameters: how many each part has.
    """

    task: str
    new: tuple[str, ...]
    parameters: dict[str, int]


def assemble(
    out: str | Path,
    *,
    vision: str | Path | None = None,
    bert: str | Path | None = None,
    stage1: str | Path | None = None,
    language: str | Path | None = None,
    num_query_tokens: int = 32,
    cross_attention_frequency: int = 2,
    feature_size: int = 256,
    seed: int = 0,
) -> Assembly:
    """Write the start of a pre-training stage to the folder `out`, in transformers' format.

    Without `language` it is that of stage 1, for `load_retriever`; with it that of stage 2, for
    `load_captioner`. Give `vision` and `bert`, or `stage1` and `language`.

    Args:
        vision: Image encoder, as `read_vision` takes it.
        bert: Hub id or folder of the BERT that the Q-Former starts from: self-attention,
            feed-forward (queries and text start as copies of one), embeddings and the head of ITG.
            Cross-attention and queries are new.
        stage1: Hub id or folder of a trained retriever, whose image encoder, queries and Q-Former
            are taken, without the Q-Former's text branch.
        language: Hub id or folder of an OPT, FlanT5 or another model that generates text.
        num_query_tokens: Queries of a new Q-Former (section 3.1: 32).
        cross_attention_frequency: Every so manieth layer of it looks at the image (section 3.1: 2).
        feature_size: Width of the features that stage 1 compares (LAVIS
            models/blip2_models/blip2_qformer.py, embed_dim: 256).
        seed: Seed of the weights that are new.

    Raises ValueError for parts that are missing, damaged or of the wrong kind, and where `out` is
    in use; then nothing is left in `out`.
    """
    check_free(Path(out))
    if (stage1 is None) == (vision is None or bert is None) or (
        stage1 is not None and (vision is not None or bert is not None)
    ):
        raise ValueError(
            "give vision and bert for a new Q-Former, or stage1 for a trained one, which brings "
            "its own image encoder"
        )
    if stage1 is not None and language is None:
        raise ValueError(
            f"stage1 {stage1} alone is a retriever already; give the language that stage 2 joins "
            "it to, such as facebook/opt-2.7b"
        )
    tensors: dict[str, Tensor]
    if stage1 is not None:
        config, tensors, image_processor = _of_stage1(str(stage1))
        tokenizer = None
    else:
        eyes, words = read_vision(str(vision)), read_bert(str(bert))
        tokenizer = _bert_tokenizer(str(bert), words.config)
        config = stage1_config(
            eyes.config,
            words.config,
            vocab_size=max(words.config.vocab_size, len(tokenizer)),
            start_token_id=tokenizer.bos_token_id,
            num_query_tokens=num_query_tokens,
            cross_attention_frequency=cross_attention_frequency,
            feature_size=feature_size,
        )
        tensors = _of_parts(eyes, words, config)
        image_processor = BlipImageProcessorPil(**eyes.image_processor)
    if language is not None:
        config, spoken, tokenizer = _with_language(config, str(language))
        tensors = {
            name: tensor for name, tensor in tensors.items() if not _reads_text(name)
        } | spoken
    stock = Retriever if language is None else Blip2ForConditionalGeneration
    model = empty_model(stock, config)
    new = fill(model, tensors, seed)
    if language is None:
        _draw_added_words(model, words.config.vocab_size, seed)
    processor = processor_of(model, image_processor, tokenizer)
    if language is not None:
        complete_tokens(model, processor)
        name_end_tokens(model)
    save_whole(model, processor, Path(out))
    parameters = {part: total for part, (_, total) in count_parameters(model).items() if total}
    return Assembly("retrieval" if language is None else "caption", new, parameters)


def stage1_config(
    vision: PreTrainedConfig,
    bert: BertConfig,
    *,
    vocab_size: int | None = None,
    start_token_id: int | None = None,
    num_query_tokens: int = 32,
    cross_attention_frequency: int = 2,
    feature_size: int = 256,
) -> Blip2Config:
    """The config of stage 1's model: an image encoder, and a Q-Former of a BERT's size.

    vocab_size, start_token_id: with [DEC]; without them it follows BERT's own vocabulary.
    """
    if num_query_tokens < 1 or cross_attention_frequency < 1 or feature_size < 1:
        raise ValueError(
            f"num_query_tokens {num_query_tokens}, cross_attention_frequency "
            f"{cross_attention_frequency} and feature_size {feature_size} must be at least 1"
        )
    start = bert.vocab_size if start_token_id is None else start_token_id
    same = (
        *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
        *("hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob"),
        *("max_position_embeddings", "initializer_range", "layer_norm_eps", "pad_token_id"),
    )
    qformer = Blip2QFormerConfig(
        **{name: getattr(bert, name) for name in same},
        vocab_size=vocab_size or start + 1,
        cross_attention_frequency=cross_attention_frequency,
        encoder_hidden_size=vision.hidden_size,
        use_qformer_text_input=True,
        bos_token_id=start,
    )
    return Blip2Config(
        vision_config=vision,
        qformer_config=qformer,
        num_query_tokens=num_query_tokens,
        image_text_hidden_size=feature_size,
    )


def _of_parts(vision: VisionSource, bert: Bert, config: Blip2Config) -> dict[str, Tensor]:
    """The tensors of stage 1's start, those that aren't new."""
    tensors = {f"vision_model.{name}": tensor for name, tensor in vision.state.items()}
    tensors |= with_rows(bert.tensors, config.qformer_config.vocab_size)
    if "itg_head.bias" not in bert.tensors:
        logger.warning("the BERT has no language-modelling head; ITG's starts from random weights")
    return tensors | for_queries(bert.tensors)


def _draw_added_words(model: Any, known: int, seed: int) -> None:
    """Draw the embeddings of tokens that BERT hasn't, as LAVIS's resize_token_embeddings does."""
    table = model.embeddings.word_embeddings.weight
    added = table.new_empty(len(table) - known, table.shape[1])
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        table[known:] = added.normal_(0, 0.02, generator=generator)


def _bert_tokenizer(name: str, config: BertConfig) -> Any:
    """BERT's tokenizer with the start token of ITG."""
    with explained(name):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    check_vocabulary(name, tokenizer, config.vocab_size)
    tokenizer.add_special_tokens({"bos_token": START_TOKEN})
    return tokenizer


def _of_stage1(name: str) -> tuple[Blip2Config, dict[str, Tensor], Any]:
    """Config, tensors and image processor of a trained retriever."""
    model, processor = load_retriever(name)
    taken = ("vision_model.", "qformer.", "query_tokens")
    tensors = {key: t for key, t in model.state_dict().items() if key.startswith(taken)}
    return model.config, tensors, processor.image_processor


def _reads_text(name: str) -> bool:
    """Whether a tensor of stage 1's model is needed for texts alone, or to compare."""
    if name.startswith(("vision_model.", "query_tokens", "qformer.layernorm.")):
        return False
    parts = name.split(".", 4)
    in_layer = name.startswith("qformer.encoder.layer.") and parts[4:]
    return not in_layer or parts[4].startswith(("intermediate.", "output."))


def _with_language(config: Blip2Config, name: str) -> tuple[Blip2Config, dict[str, Tensor], Any]:
    """The config of stage 2's model, the language model's tensors, and its tokenizer."""
    text, tensors = read_language(name)
    with explained(name):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    check_vocabulary(name, tokenizer, text.vocab_size)
    if text.model_type == "opt":
        end_with_line_break(name, tokenizer, text)
    # from the start: the config derives settings of its own from the language model's
    qformer = config.qformer_config.to_dict() | {"use_qformer_text_input": False}
    joined = Blip2Config.from_dict(
        config.to_dict()
        | {"text_config": text.to_dict(), "qformer_config": qformer, "architectures": None}
    )
    return joined, tensors, tokenizer
