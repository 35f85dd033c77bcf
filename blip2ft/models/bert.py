"""A BERT as the start of a Q-Former (paper, section 3.1) and of its generation head."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional
from transformers import AutoConfig, AutoModelForMaskedLM, BertConfig

from blip2ft.models.lavis import renamed
from blip2ft.models.source import explained

# Ours on the right; # is a number, * is what follows. The first that fits counts.
NAMES = (
    ("bert.embeddings.word_embeddings.*", "embeddings.word_embeddings.*"),
    ("bert.embeddings.position_embeddings.*", "embeddings.position_embeddings.*"),
    ("bert.embeddings.LayerNorm.*", "qformer.layernorm.*"),
    ("bert.encoder.layer.#.attention.self.*", "qformer.encoder.layer.#.attention.attention.*"),
    ("bert.encoder.layer.#.*", "qformer.encoder.layer.#.*"),
    ("cls.predictions.transform.dense.*", "itg_head.transform.*"),
    ("cls.predictions.transform.LayerNorm.*", "itg_head.norm.*"),
    ("cls.predictions.bias", "itg_head.bias"),
)
WORDS, POSITIONS = "embeddings.word_embeddings.weight", "embeddings.position_embeddings.weight"
_SEGMENTS = "bert.embeddings.token_type_embeddings.weight"
_FEED_FORWARD = re.compile(r"(qformer\.encoder\.layer\.\d+\.)(intermediate|output)(\..*)")


class Bert(NamedTuple):
    """A BERT's config, and its tensors by the names that a `Retriever` has for them.

    The feed-forward of the text stands there alone, `for_queries` tells the queries' names. The
    head's are left out where the checkpoint has none.
    """

    config: BertConfig
    tensors: dict[str, Tensor]


def read_bert(name: str) -> Bert:
    """Read a BERT from a hub id or a folder; ValueError for anything else, or a damaged one.

    Of BERT's two segments a Q-Former reads the first alone and has no embedding for it: it is added
    to those of the positions, so that the text branch starts as exactly this BERT. (The original
    leaves it out: LAVIS models/blip2_models/Qformer.py, BertEmbeddings.)
    """
    with explained(name):
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        if config.model_type != "bert":
            raise ValueError(
                f"it is a {config.model_type!r}, and a Q-Former starts from a BERT, such as "
                "bert-base-uncased"
            )
        bert, info = AutoModelForMaskedLM.from_pretrained(
            name, trust_remote_code=False, output_loading_info=True
        )
    missing = {str(key) for key in info["missing_keys"]}
    lost = sorted(key for key in missing if not key.startswith("cls."))
    if lost:
        raise ValueError(
            f"{name} lacks {len(lost)} weights of a BERT, such as {lost[0]}; download it again"
        )
    found = {key: tensor.detach() for key, tensor in bert.named_parameters()}
    if any(key.startswith("cls.predictions.transform") for key in missing):
        found = {key: tensor for key, tensor in found.items() if not key.startswith("cls.")}
    tensors = {}
    for key, tensor in found.items():
        ours = renamed(key, NAMES, 0)
        if ours is not None:
            tensors[ours] = tensor
        elif key != _SEGMENTS:
            raise ValueError(f"{name}: {key!r} is no tensor of a BERT; use another checkpoint")
    tensors[POSITIONS] = tensors[POSITIONS] + found[_SEGMENTS][0]
    return Bert(config, tensors)


def for_queries(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The feed-forward of the text under the names of the queries', which starts as its copy."""
    return {
        f"{found[1]}{found[2]}_query{found[3]}": tensor.clone()
        for found, tensor in ((_FEED_FORWARD.fullmatch(key), t) for key, t in tensors.items())
        if found
    }


def with_rows(tensors: Mapping[str, Tensor], rows: int) -> dict[str, Tensor]:
    """The tensors with a vocabulary of `rows`: zeros for tokens that were added, such as [DEC]."""
    grown = dict(tensors)
    for key, pad in ((WORDS, (0, 0, 0)), ("itg_head.bias", (0,))):
        if key in tensors:
            grown[key] = functional.pad(tensors[key], (*pad, max(0, rows - len(tensors[key]))))
    return grown
