"""Whole checkpoints: the original's file to a folder in transformers' format, and back."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    BlipImageProcessorPil,
)

from blip2ft.models.build import empty_model, fill, name_end_tokens, processor_of, save_whole
from blip2ft.models.clip_vision import CLIP_ACT, is_clip
from blip2ft.models.folder import drop_image_row, read_folder
from blip2ft.models.language_source import (
    LANGUAGE,
    check_vocabulary,
    end_with_line_break,
    read_language,
)
from blip2ft.models.lavis import (
    COPIES,
    POSITION_IDS,
    biased_keys,
    check_copies,
    encoder_of,
    family_of,
    lavis_name,
    to_lavis,
    to_transformers,
)
from blip2ft.models.load import complete_tokens
from blip2ft.models.original import compare, read_original, report_differences
from blip2ft.models.original_vision import CLIP_HEAD_WIDTH, original_sizes
from blip2ft.models.retriever import Retriever
from blip2ft.models.source import explained, read_config
from blip2ft.whole import check_free, whole

logger = logging.getLogger(__name__)

_CLASSES = {
    "stage1": Retriever,
    "opt": Blip2ForConditionalGeneration,
    "t5": Blip2ForConditionalGeneration,
}
# Language models that the original's captioning models are built on, by family.
LANGUAGE_MODELS = {"opt": "facebook/opt-2.7b", "t5": "google/flan-t5-xl"}


class Conversion(NamedTuple):
    """What became of a checkpoint's tensors; names are those of the format written.

    new: weights that were drawn at random; missing: left out of the original's file.
    unused: tensors of the source that have no place, or don't fit into it.
    """

    family: str
    written: int
    new: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


def to_folder(
    checkpoint: str | Path,
    out: str | Path,
    *,
    config: str | Path,
    language_model: str | Path | None = None,
    allow_partial: bool = False,
) -> Conversion:
    """Write the original's `checkpoint` to the folder `out`, in transformers' format.

    config: folder or hub id whose config.json has the sizes; for stage 1 with the tokenizer. Those
      of CLIP's ViT-L are read off the tensors, so that any with the same Q-Former serves.
    language_model: folder or hub id of the OPT or FlanT5 of a captioning checkpoint, which the
      original keeps apart: its config and tokenizer, and its weights unless the checkpoint has any.
    allow_partial: take tensors that are missing or misshapen from a random start, and leave out
      unexpected ones; each is logged.

    Each tensor keeps its dtype. Raises ValueError for a checkpoint that isn't the original's, is
    damaged or holds code, for tensors that don't fit, and where `out` is in use; then nothing is
    left in `out`.
    """
    out = Path(out)
    check_free(out)
    original = read_original(checkpoint)
    try:
        family = family_of(original)
        is_vit_l = encoder_of(original) == "clip"
        vision = original_sizes(original) if is_vit_l else None
    except ValueError as error:
        raise ValueError(f"can't convert {checkpoint}: {error}") from None
    has_language = any(name.startswith(f"{family}_model.") for name in original)
    source = _language_source(family, config, language_model, has_language)
    settings, tokenizer = _settings(family, str(config), source, vision)
    model = empty_model(_CLASSES[family], settings)

    mapped, unused = _account(original, model, family, str(checkpoint), has_language, allow_partial)
    if source is not None and not has_language:
        mapped |= read_language(source)[1]
    new = fill(model, mapped, seed=0)
    if new:
        logger.warning(
            "%d weights start from random numbers, as transformers draws them:", len(new)
        )
        for name in new:
            logger.warning("  %s", name)
    tied = getattr(model, "all_tied_weights_keys", {})
    written = sum(name not in tied for name in model.state_dict())
    del original, mapped

    size = model.config.vision_config.image_size
    processor = processor_of(
        model, BlipImageProcessorPil(size={"height": size, "width": size}), tokenizer
    )
    if family != "stage1":
        complete_tokens(model, processor)
        name_end_tokens(model)
    save_whole(model, processor, out)
    return Conversion(family, written, new=new, unused=unused)


def to_checkpoint(
    folder: str | Path,
    out: str | Path,
    *,
    with_language_model: bool = False,
    allow_partial: bool = False,
) -> Conversion:
    """Write a model in transformers' format, the `folder`, to the file `out` as the original does.

    with_language_model: the language model's tensors too, which the original's own files leave out.
    allow_partial: leave out tensors that are missing, misshapen or unexpected; each is logged.

    Raises ValueError for a folder that is no BLIP-2 with an OPT or FlanT5 and no retriever, for
    tensors that don't fit its config, and where `out` exists; then nothing is left of `out`.
    """
    folder, out = Path(folder), Path(out)
    if out.exists():
        raise ValueError(f"{out} exists and is not overwritten; choose another file")
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; the way back starts from a model's folder")
    settings = read_config(str(folder))
    state = read_folder(folder, with_language_model)
    family = _family_of_folder(folder, settings, state)
    if family == "stage1" and with_language_model:
        raise ValueError(f"{folder} has no language model; leave --with-language-model out")
    model = empty_model(_CLASSES[family], settings)
    for name, source in getattr(model, "all_tied_weights_keys", {}).items():
        if source in state:
            state.setdefault(name, state[source])
    expected = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if with_language_model or not name.startswith(LANGUAGE)
    }
    differences = compare(state, expected)
    report_differences(str(folder), differences, allow_partial)
    unused = (*differences.unexpected, *differences.misshapen)
    state = {name: tensor for name, tensor in state.items() if name not in unused}
    if with_language_model:
        drop_image_row(state, model, settings)
    encoder = "clip" if is_clip(settings) else "eva"
    vision = settings.vision_config
    head_width = vision.hidden_size // vision.num_attention_heads
    if encoder == "clip" and (vision.hidden_act, head_width) != (CLIP_ACT, CLIP_HEAD_WIDTH):
        raise ValueError(
            f"{folder}: the image encoder has heads {head_width} wide and the activation "
            f"{vision.hidden_act}; the original's CLIP has {CLIP_HEAD_WIDTH} and {CLIP_ACT}, so it "
            "has no class for this model"
        )
    biased = biased_keys(state) if encoder == "eva" else []
    if biased:
        logger.warning(
            "the original's ViT-g has no key biases: those of %d layers are left out, which "
            "changes the attention by rounding errors only",
            len(biased),
        )
    mapped = to_lavis(state, family, settings.qformer_config.max_position_embeddings, encoder)
    with whole(out) as partial:
        torch.save({"model": mapped}, partial)
    missing = (*differences.missing, *differences.misshapen)
    return Conversion(family, len(mapped), missing=missing, unused=unused)


def _language_source(
    family: str, config: str | Path, language_model: str | Path | None, has_weights: bool
) -> str | None:
    """Where config and tokenizer of the language model come from; None where there is none."""
    if family == "stage1":
        if language_model is not None:
            raise ValueError(
                "a stage-1 checkpoint has no language model; leave --language-model out"
            )
        return None
    if language_model is None and not has_weights:
        raise ValueError(
            "a captioning checkpoint of the original carries no language model; pass it with "
            f"--language-model FOLDER_OR_ID, such as {LANGUAGE_MODELS[family]}"
        )
    return str(language_model or config)


def _settings(
    family: str, config: str, source: str | None, vision: Mapping[str, Any] | None
) -> tuple[Blip2Config, Any]:
    """The config and the tokenizer of the model to write; vision: instead of the config's own."""
    settings = read_config(config)
    if vision is not None:
        settings = Blip2Config.from_dict(settings.to_dict() | {"vision_config": vision})
    with explained(source or config):
        tokenizer = AutoTokenizer.from_pretrained(source or config, trust_remote_code=False)
        if source is not None and source != config:
            language = AutoConfig.from_pretrained(source, trust_remote_code=False).to_dict()
            # from the start: the config derives settings of its own from the language model's
            settings = Blip2Config.from_dict(settings.to_dict() | {"text_config": language})
    # a fact of the class: only stage 1 gives the Q-Former text
    settings.qformer_config.use_qformer_text_input = family == "stage1"
    text = settings.qformer_config if family == "stage1" else settings.text_config
    kind = "stage1" if family == "stage1" else text.model_type
    if kind != family:
        raise ValueError(
            f"the checkpoint belongs to a language model of type {family!r}, but {source} is of "
            f"type {kind!r}; pass one such as {LANGUAGE_MODELS[family]}"
        )
    check_vocabulary(source or config, tokenizer, text.vocab_size)
    if family == "stage1":
        start = tokenizer.bos_token_id
        if start is None or start >= text.vocab_size:
            raise ValueError(
                f"the tokenizer in {config} has no start token [DEC] among the {text.vocab_size} "
                "tokens of the embedding; add it to BERT's: "
                'tokenizer.add_special_tokens({"bos_token": "[DEC]"})'
            )
    elif family == "opt":
        end_with_line_break(str(source), tokenizer, text)
    return settings, tokenizer


def _account(
    original: dict[str, Tensor],
    model: Any,
    family: str,
    name: str,
    has_language: bool,
    allow_partial: bool,
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """transformers' tensors of `original` and the names that aren't used; all others must fit."""
    positions = model.config.qformer_config.max_position_embeddings
    empty = {
        key: tensor
        for key, tensor in model.state_dict().items()
        if has_language or not key.startswith(LANGUAGE)
    }
    expected = to_lavis(empty, family, positions, "clip" if is_clip(model.config) else "eva")
    copies = dict(COPIES)
    for key, source in getattr(model, "all_tied_weights_keys", {}).items():
        copies[str(lavis_name(key, family))] = str(lavis_name(source, family))
    differences = compare(original, expected)
    implied = {POSITION_IDS} | {key for key, source in copies.items() if source in original}
    missing = tuple(key for key in differences.missing if key not in implied)
    differences = differences._replace(missing=missing)
    report_differences(name, differences, allow_partial, model.config)
    unused = (*differences.unexpected, *differences.misshapen)
    fitting = {key: tensor for key, tensor in original.items() if key not in unused}
    try:
        check_copies(fitting, copies)
    except ValueError as error:
        raise ValueError(f"can't convert {name}: {error}") from None
    return to_transformers(fitting, family), unused


def _family_of_folder(folder: Path, settings: Any, state: Mapping[str, Tensor]) -> str:
    if "itm_head.weight" in state:
        return "stage1"
    kind = settings.text_config.model_type
    if "language_projection.weight" not in state or kind not in LANGUAGE_MODELS:
        raise ValueError(
            f"{folder} is neither a retriever nor a captioning model with one of the original's "
            f"language models ({', '.join(LANGUAGE_MODELS)}; its config says {kind!r}), so the "
            "original has no class for it"
        )
    return kind
