"""The language model of a BLIP-2 to be: its weights, its vocabulary and how its captions end."""

from typing import Any

from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
)

from blip2ft.models.source import check_weights, explained

LANGUAGE = "language_model."  # before the names of its tensors in a BLIP-2


def read_language(name: str) -> tuple[PreTrainedConfig, dict[str, Tensor]]:
    """The config of a language model, and its tensors by the names that a BLIP-2 has for them.

    Tensors keep their dtype. Raises ValueError for a checkpoint that is missing, damaged, or that
    doesn't generate text from text.
    """
    with explained(name):
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        written = [*(config.architectures or ())]
        generates = any(a.endswith(("ForCausalLM", "ForConditionalGeneration")) for a in written)
        if not generates or hasattr(config, "vision_config"):
            raise ValueError(
                f"it is a {config.model_type!r} of class {', '.join(written) or 'unknown'}, and a "
                "model that generates text from text is needed, such as facebook/opt-2.7b or "
                "google/flan-t5-xl"
            )
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        model, info = kind.from_pretrained(
            name, dtype="auto", trust_remote_code=False, output_loading_info=True
        )
    check_weights(name, info)
    return config, {LANGUAGE + key: tensor for key, tensor in model.state_dict().items()}


def check_vocabulary(name: str, tokenizer: Any, rows: int) -> None:
    """Raise ValueError where a tokenizer doesn't fit an embedding of `rows`.

    Where a folder has no tokenizer, AutoTokenizer makes up one of a few tokens; one more than the
    embedding has is `<image>`, for which a row is added.
    """
    if not rows // 2 < len(tokenizer) <= rows + 1:
        raise ValueError(
            f"{name} has no tokenizer, or another model's: it knows {len(tokenizer)} tokens, the "
            f"embedding {rows}; add the files of the right one"
        )


def end_with_line_break(name: str, tokenizer: Any, config: PreTrainedConfig) -> None:
    """Let an OPT's captions end with a line break, as LAVIS models/blip2_models/blip2_opt.py does.

    Raises ValueError for a tokenizer that has no token for it.
    """
    ends = tokenizer("\n", add_special_tokens=False)["input_ids"]
    if len(ends) != 1:
        raise ValueError(
            f'the tokenizer of {name} splits the line break "\\n", which ends captions, into '
            f"{len(ends)} tokens; pass OPT's own, such as facebook/opt-2.7b"
        )
    config.eos_token_id = ends[0]
