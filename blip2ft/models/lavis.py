"""The original's names and tensors, and transformers', both ways.

The original is LAVIS (github.com/salesforce/LAVIS, lavis/models/): `Blip2Qformer` (stage 1 and
retrieval, blip2_models/blip2_qformer.py), `Blip2OPT` (blip2_opt.py), `Blip2T5` (blip2_t5.py), all
with the Q-Former of Qformer.py, on one of two image encoders: "eva", the ViT-g of eva_vit.py, or
"clip", the ViT-L of clip_vit.py.
"""

import re
from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor

# What tells a checkpoint's family: the original's heads.
FAMILIES = {
    "stage1": ("vision_proj.", "text_proj.", "itm_head."),
    "opt": ("opt_proj.",),
    "t5": ("t5_proj.",),
}

# Ours on the right; # is a number, * is what follows. The first that fits counts.
NAMES = (
    ("query_tokens", "query_tokens"),
    ("ln_vision.*", "vision_model.post_layernorm.*"),
    ("Qformer.bert.embeddings.LayerNorm.*", "qformer.layernorm.*"),
    ("Qformer.bert.embeddings.word_embeddings.*", "embeddings.word_embeddings.*"),
    ("Qformer.bert.embeddings.position_embeddings.*", "embeddings.position_embeddings.*"),
    (
        "Qformer.bert.encoder.layer.#.attention.self.*",
        "qformer.encoder.layer.#.attention.attention.*",
    ),
    (
        "Qformer.bert.encoder.layer.#.crossattention.self.*",
        "qformer.encoder.layer.#.crossattention.attention.*",
    ),
    ("Qformer.bert.encoder.*", "qformer.encoder.*"),
)
_LAYER = "vision_model.encoder.layers.#."
ENCODER_NAMES = {
    "eva": (
        ("visual_encoder.cls_token", "vision_model.embeddings.class_embedding"),
        ("visual_encoder.pos_embed", "vision_model.embeddings.position_embedding"),
        ("visual_encoder.patch_embed.proj.*", "vision_model.embeddings.patch_embedding.*"),
        ("visual_encoder.blocks.#.norm1.*", _LAYER + "layer_norm1.*"),
        ("visual_encoder.blocks.#.norm2.*", _LAYER + "layer_norm2.*"),
        ("visual_encoder.blocks.#.mlp.*", _LAYER + "mlp.*"),
        ("visual_encoder.blocks.#.attn.qkv.weight", _LAYER + "self_attn.qkv.weight"),
        ("visual_encoder.blocks.#.attn.proj.*", _LAYER + "self_attn.projection.*"),
    ),
    "clip": (
        ("visual_encoder.class_embedding", "vision_model.embeddings.class_embedding"),
        ("visual_encoder.positional_embedding", "vision_model.embeddings.position_embedding"),
        ("visual_encoder.conv1.weight", "vision_model.embeddings.patch_embedding.weight"),
        ("visual_encoder.ln_pre.*", "vision_model.embeddings.pre_layernorm.*"),
        ("visual_encoder.transformer.resblocks.#.ln_1.*", _LAYER + "layer_norm1.*"),
        ("visual_encoder.transformer.resblocks.#.ln_2.*", _LAYER + "layer_norm2.*"),
        ("visual_encoder.transformer.resblocks.#.mlp.c_fc.*", _LAYER + "mlp.fc1.*"),
        ("visual_encoder.transformer.resblocks.#.mlp.c_proj.*", _LAYER + "mlp.fc2.*"),
        (
            "visual_encoder.transformer.resblocks.#.attn.in_proj_weight",
            _LAYER + "self_attn.qkv.weight",
        ),
        ("visual_encoder.transformer.resblocks.#.attn.in_proj_bias", _LAYER + "self_attn.qkv.bias"),
        (
            "visual_encoder.transformer.resblocks.#.attn.out_proj.*",
            _LAYER + "self_attn.projection.*",
        ),
    ),
}
FAMILY_NAMES = {
    "stage1": (
        ("temp", "temperature"),
        ("vision_proj.*", "vision_projection.*"),
        ("text_proj.*", "text_projection.*"),
        ("itm_head.*", "itm_head.*"),
        ("Qformer.cls.predictions.transform.dense.*", "itg_head.transform.*"),
        ("Qformer.cls.predictions.transform.LayerNorm.*", "itg_head.norm.*"),
        ("Qformer.cls.predictions.decoder.bias", "itg_head.bias"),
    ),
    "opt": (("opt_proj.*", "language_projection.*"), ("opt_model.*", "language_model.*")),
    "t5": (("t5_proj.*", "language_projection.*"), ("t5_model.*", "language_model.*")),
}

# The original's second names of one tensor, which transformers stores once.
COPIES = {
    "Qformer.cls.predictions.decoder.weight": "Qformer.bert.embeddings.word_embeddings.weight",
    "Qformer.cls.predictions.bias": "Qformer.cls.predictions.decoder.bias",
}
# A buffer of 0, 1, 2 ..., which transformers makes anew.
POSITION_IDS = "Qformer.bert.embeddings.position_ids"

# The embeddings of clip_vit.py are (D,) and (1 + G*G, D), transformers' (1, ..., D) both.
CLASS_EMBEDDING = "visual_encoder.class_embedding"
POSITION_EMBEDDING = "visual_encoder.positional_embedding"

# The ViT of eva_vit.py has biases for queries and values only, transformers' for all three.
QUERY_BIAS = "visual_encoder.blocks.{}.attn.q_bias"
VALUE_BIAS = "visual_encoder.blocks.{}.attn.v_bias"
QKV_BIAS = "vision_model.encoder.layers.{}.self_attn.qkv.bias"
_QUERY_BIAS = re.compile(r"visual_encoder\.blocks\.(\d+)\.attn\.[qv]_bias")
_QKV_BIAS = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.self_attn\.qkv\.bias")


def family_of(names: Iterable[str]) -> str:
    """Which of FAMILIES the original's checkpoint with tensors `names` is.

    Raises ValueError for other models.
    """
    names = list(names)
    found = [
        family
        for family, heads in FAMILIES.items()
        if any(name.startswith(heads) for name in names)
    ]
    if len(found) != 1:
        heads = ", ".join(head + "*" for family in FAMILIES.values() for head in family)
        raise ValueError(
            f"it fits {' and '.join(found) or 'none'} of {', '.join(FAMILIES)}, which are told by "
            f"{heads}; take a checkpoint of the original's Blip2Qformer, Blip2OPT or Blip2T5"
        )
    return found[0]


def encoder_of(names: Collection[str]) -> str | None:
    """Which image encoder the original's tensors `names` are of; None where they have none."""
    for encoder in ENCODER_NAMES:
        if any(renamed(name, ENCODER_NAMES[encoder], 0) for name in names):
            return encoder
    return None


def transformers_name(name: str, family: str) -> str | None:
    """transformers' name of the original's tensor `name`; None where it has no counterpart."""
    table = (*NAMES, *FAMILY_NAMES[family], *ENCODER_NAMES["eva"], *ENCODER_NAMES["clip"])
    return renamed(name, table, 0)


def lavis_name(name: str, family: str, encoder: str = "eva") -> str | None:
    """The original's name of transformers' tensor `name`; None where it has no counterpart."""
    return renamed(name, (*NAMES, *FAMILY_NAMES[family], *ENCODER_NAMES[encoder]), 1)


def renamed(name: str, table: Iterable[tuple[str, str]], side: int) -> str | None:
    """The other name of `name`, which stands on `side` (0 or 1) of a pair of `table`.

    # is a number, * what follows. The first that fits counts; None where none does.
    """
    for pair in table:
        pattern = re.escape(pair[side]).replace(r"\#", r"(\d+)").replace(r"\*", "(.+)")
        found = re.fullmatch(pattern, name)
        if found:
            return re.sub(r"[#*]", "{}", pair[1 - side]).format(*found.groups())
    return None


def to_transformers(state: Mapping[str, Tensor], family: str) -> dict[str, Tensor]:
    """transformers' tensors from the original's, bit for bit; only biases of qkv are new memory.

    The biases of the keys, which the original hasn't, are zeros. A query's bias without its
    value's, or the reverse, gives none.

    The second names of COPIES and the positions of POSITION_IDS are left out, `check_copies` says
    whether anything is lost by that. Raises ValueError for a tensor of no known name.
    """
    mapped = {}
    for name, tensor in state.items():
        bias = _QUERY_BIAS.fullmatch(name)
        if bias:
            query, value = (state.get(part.format(bias[1])) for part in (QUERY_BIAS, VALUE_BIAS))
            if query is not None and value is not None:
                together = torch.cat([query, torch.zeros_like(query), value])
                mapped[QKV_BIAS.format(bias[1])] = together
        elif name not in COPIES and name != POSITION_IDS:
            if name in (CLASS_EMBEDDING, POSITION_EMBEDDING):
                tensor = tensor.reshape(1, -1, tensor.shape[-1])
            mapped[_known(transformers_name(name, family), name, family)] = tensor
    return mapped


def to_lavis(
    state: Mapping[str, Tensor], family: str, positions: int, encoder: str = "eva"
) -> dict[str, Tensor]:
    """The original's tensors from transformers', bit for bit, with the second names that it has.

    positions: the Q-Former's `max_position_embeddings`, the length of a buffer of the original.

    The key biases of "eva" are left out: `biased_keys` says where they aren't zeros. Raises
    ValueError for a tensor of no known name.
    """
    mapped: dict[str, Tensor] = {}
    for name, tensor in state.items():
        bias = _QKV_BIAS.fullmatch(name) if encoder == "eva" else None
        if bias:
            query, _, value = tensor.chunk(3)
            # copies: a view would be saved with all of what it views
            mapped[QUERY_BIAS.format(bias[1])] = query.clone()
            mapped[VALUE_BIAS.format(bias[1])] = value.clone()
        else:
            mapped[_known(lavis_name(name, family, encoder), name, family)] = tensor
    for name, places in ((CLASS_EMBEDDING, -1), (POSITION_EMBEDDING, 1)):
        if name in mapped:
            mapped[name] = mapped[name].flatten(0, places)
    mapped |= {name: mapped[source] for name, source in COPIES.items() if source in mapped}
    mapped[POSITION_IDS] = torch.arange(positions).unsqueeze(0)
    return mapped


def biased_keys(state: Mapping[str, Tensor]) -> list[str]:
    """transformers' tensors whose key biases, which the original's ViT-g hasn't, aren't all zeros.

    They change nothing but rounding: one adds the same number to all scores of a query, which the
    softmax takes away. Training moves them by rounding errors all the same.
    """
    return [n for n, t in state.items() if _QKV_BIAS.fullmatch(n) and t.chunk(3)[1].any()]


def check_copies(state: Mapping[str, Tensor], copies: Mapping[str, str]) -> None:
    """Raise ValueError where the original's `state` holds two versions of one tensor.

    copies: the second name of a tensor -> its first, such as COPIES.
    """
    for name, source in copies.items():
        if name in state and source in state and not torch.equal(state[name], state[source]):
            raise ValueError(
                f"{name} and {source} are one tensor in the original, but differ here; the "
                "checkpoint is damaged, or of a changed model"
            )
    positions = state.get(POSITION_IDS)
    if positions is not None and positions.flatten().tolist() != list(range(positions.numel())):
        raise ValueError(
            f"{POSITION_IDS} isn't 0, 1, 2 ... as in the original; the checkpoint is damaged, or "
            "of a changed model"
        )


def _known(new: str | None, name: str, family: str) -> str:
    if new is None:
        raise ValueError(f"{name!r} is no tensor of {family} checkpoints; leave it out")
    return new
