"""Passes through a stock Q-Former that share what depends on the image alone.

Cross-attention keys and values are linear in the image's features, so every pass over an image can
use the same ones: at 364 px (677 tokens of 1408) they cost 17.6 GFLOP an image, six times what the
queries cost. The layers are stock transformers' modules, called one by one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.blip_2.modeling_blip_2 import (
    Blip2QFormerLayer,
    Blip2QFormerModel,
    eager_attention_forward,
)

# Added to the scores of what may not be seen. Finite, and far below any score in every dtype; a
# bool mask would be wrong under eager attention, which adds it.
HIDDEN = -10_000.0


@dataclass(frozen=True)
class ImageKeys:
    """Cross-attention keys and values of N images.

    layers: for each layer of the Q-Former keys and values, each (N, heads, S, head size); None for
    layers without cross-attention.
    """

    layers: tuple[tuple[Tensor, Tensor] | None, ...]

    def select(self, images: Tensor) -> "ImageKeys":
        """Those of the images (M,) int64, which may repeat."""
        return ImageKeys(tuple(kv and (kv[0][images], kv[1][images]) for kv in self.layers))

    def join(self, other: "ImageKeys") -> "ImageKeys":
        """Ours, then the other's."""
        pairs = zip(self.layers, other.layers, strict=True)
        return ImageKeys(
            tuple(a and b and (torch.cat([a[0], b[0]]), torch.cat([a[1], b[1]])) for a, b in pairs)
        )


def project_images(qformer: Blip2QFormerModel, image_embeds: Tensor) -> ImageKeys:
    """Keys and values of image features (N, S, D_image), once for all passes over them."""
    image_embeds = image_embeds.to(qformer.layernorm.weight.dtype)
    return ImageKeys(tuple(_project(layer, image_embeds) for layer in qformer.encoder.layer))


def _project(layer: Blip2QFormerLayer, image_embeds: Tensor) -> tuple[Tensor, Tensor] | None:
    if not layer.has_cross_attention:
        return None
    attention = layer.crossattention.attention
    # not -1 for the heads: of no images it would be ambiguous
    heads, size = attention.num_attention_heads, attention.attention_head_size
    shape = (*image_embeds.shape[:2], heads, size)
    keys, values = attention.key(image_embeds), attention.value(image_embeds)
    return keys.view(shape).transpose(1, 2), values.view(shape).transpose(1, 2)


def run_qformer(
    qformer: Blip2QFormerModel,
    embeds: Tensor,
    *,
    mask: Tensor | None = None,
    images: Sequence[tuple[ImageKeys, int]] = (),
    query_length: int = 0,
    only_queries: bool = False,
) -> Tensor:
    """The last hidden states (R, L, D) of `embeds` (R, L, D), as `qformer(...)` would give them.

    mask: additive, broadcastable to (R, heads, L, L); None sees everything.
    images: whom the first `query_length` positions look at: (keys of N images, rows each). Their
      rows follow each other: [(ours, 2), (others, 1)] are rows 0, 1 of our first image, rows 2, 3
      of the second ..., then one row for each of the others.
    only_queries: give the states of the queries alone (R, query_length, D).
    """
    hidden = qformer.dropout(qformer.layernorm(embeds.to(qformer.layernorm.weight.dtype)))
    for i, layer in enumerate(qformer.encoder.layer):
        seen = [(kv, rows) for keys, rows in images if (kv := keys.layers[i]) is not None]
        run = partial(_run_layer, layer, mask=mask, seen=seen, query_length=query_length)
        if only_queries and layer is qformer.encoder.layer[-1]:
            run = partial(run, only_queries=True)
        if layer.gradient_checkpointing and layer.training and torch.is_grad_enabled():
            hidden = layer._gradient_checkpointing_func(run, hidden)
        else:
            hidden = run(hidden)
    return hidden


def _run_layer(
    layer: Blip2QFormerLayer,
    hidden: Tensor,
    *,
    mask: Tensor | None,
    seen: Sequence[tuple[tuple[Tensor, Tensor], int]],
    query_length: int,
    only_queries: bool = False,
) -> Tensor:
    attended = layer.attention(hidden_states=hidden, attention_mask=mask)
    if not query_length:
        return layer.feed_forward_chunk(attended)
    queries, text = attended[:, :query_length], attended[:, query_length:]
    if layer.has_cross_attention:
        queries = layer.crossattention.output(_look_at_images(layer, queries, seen), queries)
    queries = layer.feed_forward_chunk_query(queries)
    if only_queries or not text.shape[1]:
        return queries
    return torch.cat([queries, layer.feed_forward_chunk(text)], dim=1)


def _look_at_images(
    layer: Blip2QFormerLayer,
    queries: Tensor,
    seen: Sequence[tuple[tuple[Tensor, Tensor], int]],
) -> Tensor:
    """Cross-attention of queries (R, Q, D), all rows of one image in one product."""
    attention = layer.crossattention.attention
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(
        attention.config._attn_implementation, eager_attention_forward
    )
    length, size = queries.shape[1], attention.attention_head_size
    projected = attention.query(queries)
    outputs, start = [], 0
    for (keys, values), rows in seen:
        images = keys.shape[0]
        mine = projected[start : start + images * rows]
        mine = mine.reshape(images, rows * length, -1, size).transpose(1, 2)
        output, _ = attend(
            attention,
            mine,
            keys,
            values,
            None,
            dropout=attention.attention_dropout if attention.training else 0.0,
            scaling=attention.scaling,
        )
        outputs.append(output.reshape(images * rows, length, -1))
        start += images * rows
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def bidirectional_mask(attention_mask: Tensor, query_length: int, dtype: torch.dtype) -> Tensor:
    """All rows see queries and text, none sees padding. (B, T) of 0 and 1 -> (B, 1, 1, Q + T)."""
    text = (1 - attention_mask.to(dtype)) * HIDDEN
    queries = text.new_zeros(len(text), query_length)
    return torch.cat([queries, text], dim=1)[:, None, None]


def multimodal_causal_mask(attention_mask: Tensor, query_length: int, dtype: torch.dtype) -> Tensor:
    """Queries see queries only; text sees all queries and the text up to itself.

    (B, T) of 0 and 1 -> (B, 1, Q + T, Q + T). Q = 2 queries and T = 3 tokens, the last of which is
    padding; rows look at columns:

           q q  t t -
        q  x x  . . .
        q  x x  . . .
        t  x x  x . .
        t  x x  x x .
        -  x x  x x .

    Query rows come out as without any text. Figure 2 of the paper; LAVIS models/blip2_models/
    Qformer.py, get_extended_attention_mask.
    """
    length = attention_mask.shape[1]
    causal = torch.ones(length, length, device=attention_mask.device).tril()
    visible = attention_mask.new_zeros(
        len(attention_mask), query_length + length, query_length + length, dtype=dtype
    )
    visible[:, :, :query_length] = 1
    visible[:, query_length:, query_length:] = causal * attention_mask[:, None]
    return ((1 - visible) * HIDDEN)[:, None]
