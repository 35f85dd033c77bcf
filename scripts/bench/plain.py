"""What the benchmarks measure against, and the tests compare with: plain stock transformers.

The Q-Former's passes, one call a pass with nothing shared, and models whose dropout is off, for
results that can be compared.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Blip2ForImageTextRetrieval

from blip2ft.models.qformer import multimodal_causal_mask
from blip2ft.models.retriever import Retriever


def image_features(model: Blip2ForImageTextRetrieval, image_embeds: Tensor) -> Tensor:
    """(B, S, D_image) -> (B, Q, D) of unit length."""
    states = model.qformer(
        query_embeds=model.query_tokens.expand(len(image_embeds), -1, -1),
        encoder_hidden_states=image_embeds,
        encoder_attention_mask=torch.ones(image_embeds.shape[:2], device=image_embeds.device),
    ).last_hidden_state
    return functional.normalize(model.vision_projection(states), dim=-1)


def text_features(model: Blip2ForImageTextRetrieval, ids: Tensor, mask: Tensor) -> Tensor:
    """(B, T) -> (B, D) of unit length."""
    states = model.qformer(
        query_embeds=model.embeddings(input_ids=ids), query_length=0, attention_mask=mask
    ).last_hidden_state
    return functional.normalize(model.text_projection(states[:, 0]), dim=-1)


def match(
    model: Blip2ForImageTextRetrieval, image_embeds: Tensor, ids: Tensor, mask: Tensor
) -> Tensor:
    """Matching logits (B, 2) of images with texts, row by row."""
    queries = model.query_tokens.expand(len(ids), -1, -1)
    length = queries.shape[1]
    seen = torch.cat([mask.new_ones(len(ids), length), mask], dim=1)
    states = model.qformer(
        query_embeds=model.embeddings(input_ids=ids, query_embeds=queries),
        query_length=length,
        attention_mask=seen,
        encoder_hidden_states=image_embeds,
        encoder_attention_mask=torch.ones(image_embeds.shape[:2], device=ids.device),
    ).last_hidden_state
    return model.itm_head(states[:, :length]).mean(1)


def losses(
    model: Retriever,
    image_embeds: Tensor,
    ids: Tensor,
    mask: Tensor,
    image_ids: Tensor,
    negatives: tuple[Tensor, Tensor],
) -> dict[str, Tensor]:
    """ITC, ITM and ITG of B pairs in one process, with the negative texts and images given."""
    of_images, of_texts = image_features(model, image_embeds), text_features(model, ids, mask)
    similarity = torch.einsum("iqd,td->iqt", of_images, of_texts).max(1).values
    logits = similarity / model.temperature
    targets = (image_ids[:, None] == image_ids).float()
    targets = 0.9 * targets / targets.sum(1, keepdim=True) + 0.1 / len(ids)
    itc = functional.cross_entropy(logits, targets) + functional.cross_entropy(logits.T, targets)

    texts, images = negatives
    both = match(
        model,
        torch.cat([image_embeds, image_embeds[images], image_embeds]),
        torch.cat([ids, ids, ids[texts]]),
        torch.cat([mask, mask, mask[texts]]),
    )
    matches = torch.cat([ids.new_ones(len(ids)), ids.new_zeros(2 * len(ids))])

    start = torch.full_like(ids[:, :1], model.config.qformer_config.bos_token_id)
    queries = model.query_tokens.expand(len(ids), -1, -1)
    length = queries.shape[1]
    states = model.qformer(
        query_embeds=model.embeddings(
            input_ids=torch.cat([start, ids[:, 1:]], dim=1), query_embeds=queries
        ),
        query_length=length,
        attention_mask=multimodal_causal_mask(mask, length, image_embeds.dtype),
        encoder_hidden_states=image_embeds,
        encoder_attention_mask=torch.ones(image_embeds.shape[:2], device=ids.device),
    ).last_hidden_state
    words = model.itg_head(states[:, length:-1], model.embeddings.word_embeddings.weight)
    labels = ids.masked_fill(mask == 0, -100)[:, 1:]
    itg = functional.cross_entropy(words.flatten(0, 1), labels.flatten(), label_smoothing=0.1)
    return {"itc": itc / 2, "itm": functional.cross_entropy(both, matches), "itg": itg}


def turn_off_dropout(model: nn.Module) -> None:
    """Dropout differs from pass to pass; without it, results can be compared."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout"):  # those that some keep as a number
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
