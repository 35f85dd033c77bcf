"""The image-text model: features, matching and the three objectives of stage 1."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Blip2Config, Blip2ForImageTextRetrieval
from transformers import initialization as init
from transformers.utils import ModelOutput

from blip2ft.gather import Shares, share_batch
from blip2ft.losses import matching, text_generation
from blip2ft.models.in_batch import (
    ItcGradients,
    Negatives,
    contrastive_loss,
    draw_negatives,
    same_image,
    similarity_logits,
)
from blip2ft.models.itg_head import GenerationHead
from blip2ft.models.qformer import (
    ImageKeys,
    bidirectional_mask,
    multimodal_causal_mask,
    project_images,
    run_qformer,
)

TEMPERATURE = 0.07  # LAVIS models/blip2_models/blip2_qformer.py, __init__
OBJECTIVES = ("itc", "itm", "itg")
# What only one objective uses, beside the embeddings and the Q-Former.
HEADS = {
    "itc": ("vision_projection", "text_projection", "temperature"),
    "itm": ("itm_head",),
    "itg": ("itg_head",),
}


@dataclass
class RetrieverOutput(ModelOutput):
    """The losses of a batch, means over the pairs of all processes; None for one left out.

    Under DDP, which averages gradients, each process holds its share times the number of
    processes: the average over the processes is the loss.

    pairs: pairs of all processes over the number of processes, (), to weigh batches by.
    image_features: (B, Q, D), text_features: (B, D), of unit length, this process's.
    """

    loss: Tensor | None = None
    itc: Tensor | None = None
    itm: Tensor | None = None
    itg: Tensor | None = None
    pairs: Tensor | None = None
    image_features: Tensor | None = None
    text_features: Tensor | None = None


class Retriever(Blip2ForImageTextRetrieval):
    """Stock `Blip2ForImageTextRetrieval` that can train: with ITC, ITM and ITG losses.

    It adds the temperature of ITC and the head of ITG. Both are saved with the model; stock
    transformers loads the rest and leaves them out.

    objectives: the weight of each loss; one that isn't named isn't computed.
    """

    # the class that the config names
    ARCHITECTURE = Blip2ForImageTextRetrieval.__name__

    def __init__(self, config: Blip2Config) -> None:
        super().__init__(config)
        text = config.qformer_config
        self.temperature = nn.Parameter(torch.full((), TEMPERATURE))
        self.itg_head = GenerationHead(
            text.hidden_size, text.vocab_size, text.hidden_act, text.layer_norm_eps
        )
        self.objectives: Mapping[str, float] = dict.fromkeys(OBJECTIVES, 1.0)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Retriever):
            init.normal_(module.query_tokens, std=0.02)  # equal queries would stay equal
            if hasattr(module, "temperature"):  # stock's constructor comes here before it is made
                init.constant_(module.temperature, TEMPERATURE)
        elif isinstance(module, GenerationHead):
            init.zeros_(module.bias)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As stock's, with ARCHITECTURE named in the config."""
        super().save_pretrained(save_directory, *args, **kwargs)
        path = Path(save_directory) / "config.json"
        config = json.loads(path.read_text())
        config["architectures"] = [self.ARCHITECTURE]
        path.write_text(json.dumps(config, indent=2) + "\n")

    def forward(
        self,
        pixel_values: Tensor | None,
        input_ids: Tensor,
        attention_mask: Tensor,
        image_ids: Tensor | None = None,
        *,
        image_embeds: Tensor | None = None,
        itc_gradients: ItcGradients | None = None,
        features_only: bool = False,
        **stock: Any,
    ) -> Any:
        """The losses of B pairs of an image and its text.

        Args:
            pixel_values: (B, 3, H, W), normalised.
            input_ids: (B, T) int64, `[CLS] text [SEP]`, padded on the right, without image tokens.
            attention_mask: (B, T), 0 at padding.
            image_ids: (B,) int64; pairs of one id share an image, so they are each other's
                positives in ITC and never each other's negatives in ITM. None: all differ.
            image_embeds: (B, S, D) features of the image encoder, instead of pixel_values.
            itc_gradients: ITC's part of a larger batch, instead of ITC over this one.
            features_only: Compute the features and no loss.
            stock: `use_image_text_matching_head` and the like: the stock forward then answers.

        Every process must call, with any number of pairs: ITC compares, and ITM draws its
        negatives from, all of them. Raises ValueError where no start token of ITG is set.
        """
        if stock:
            return super().forward(pixel_values, input_ids, attention_mask, **stock)
        if image_embeds is None:
            image_embeds = self.vision_model(pixel_values).last_hidden_state
        assert image_embeds is not None
        images = project_images(self.qformer, image_embeds)
        query_states, text_states = self._run_queries(images, input_ids, attention_mask)
        image_features = self.project_queries(query_states)
        text_features = self.encode_texts(input_ids, attention_mask)
        output = RetrieverOutput(image_features=image_features, text_features=text_features)
        if features_only:
            return output

        shares = share_batch(len(input_ids), input_ids.shape[1], input_ids.device)
        same = same_image(shares, image_ids, input_ids.device)
        if itc_gradients is not None:
            output.itc = itc_gradients.loss(image_features, text_features, self.temperature)
        if self._wants("itm") or (self._wants("itc") and itc_gradients is None):
            logits = similarity_logits(shares, image_features, text_features, self.temperature)
            if output.itc is None and self._wants("itc"):
                output.itc = contrastive_loss(shares, same, *logits)
            if self._wants("itm"):
                drawn = draw_negatives(shares, same, *logits)
                keys = self._keys_of(shares, images, image_embeds, drawn.images)
                output.itm = self._itm(shares, same, images, keys, drawn, input_ids, attention_mask)
        if self._wants("itg"):
            output.itg = self._itg(shares, text_states, input_ids, attention_mask)
        output.pairs = same.new_tensor(shares.total / len(shares.sizes), dtype=torch.float32)
        losses = (getattr(output, name) * w for name, w in self.objectives.items() if w)
        output.loss = sum(losses, start=image_features.new_zeros(()))
        return output

    def encode_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Features of texts (B, T): (B, D) of unit length, from the first token."""
        embeds = self.embeddings(input_ids=input_ids)
        mask = bidirectional_mask(attention_mask, 0, embeds.dtype)
        states = run_qformer(self.qformer, embeds, mask=mask)[:, 0]
        return functional.normalize(self.text_projection(states), dim=-1)

    def encode_images(self, images: ImageKeys) -> Tensor:
        """Features of N images from their keys and values: (N, Q, D) of unit length."""
        count = next(kv[0].shape[0] for kv in images.layers if kv is not None)
        embeds = self.query_tokens.expand(count, -1, -1)
        length = embeds.shape[1]
        states = run_qformer(self.qformer, embeds, images=[(images, 1)], query_length=length)
        return self.project_queries(states)

    def project_queries(self, states: Tensor) -> Tensor:
        """Query states (N, Q, D) to features of unit length."""
        return functional.normalize(self.vision_projection(states), dim=-1)

    def match(
        self, images: Sequence[tuple[ImageKeys, int]], input_ids: Tensor, attention_mask: Tensor
    ) -> Tensor:
        """Matching logits (R, 2) in fp32 of texts (R, T) with images; class 1 is "matches".

        images: whose rows are which, as for `run_qformer`.
        """
        queries = self.query_tokens.expand(len(input_ids), -1, -1)
        embeds = self.embeddings(input_ids=input_ids, query_embeds=queries)
        length = queries.shape[1]
        mask = bidirectional_mask(attention_mask, length, embeds.dtype)
        states = run_qformer(
            self.qformer, embeds, mask=mask, images=images, query_length=length, only_queries=True
        )
        return self.itm_head(states).float().mean(1)

    def unused_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What the objectives leave without gradient, such as other objectives' heads; DDP would
        wait for it."""
        unused = [h for name, heads in HEADS.items() if not self._wants(name) for h in heads]
        last = f"qformer.encoder.layer.{len(self.qformer.encoder.layer) - 1}."
        if not (self._wants("itc") or self._wants("itg")):
            # no text's last state is looked at
            unused += [last + part for part in ("intermediate.", "output.")]
        return ((n, p) for n, p in self.named_parameters() if n.startswith(tuple(unused)))

    def _wants(self, objective: str) -> bool:
        return bool(self.objectives.get(objective))

    def _run_queries(
        self, images: ImageKeys, input_ids: Tensor, attention_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """States of the queries, for ITC, and in the same pass of the text to generate, for ITG.

        No query sees any text, so theirs are those of a pass without.
        """
        queries = self.query_tokens.expand(len(input_ids), -1, -1)
        length, mask = queries.shape[1], None
        embeds = queries
        if self._wants("itg"):
            start = getattr(self.config.qformer_config, "bos_token_id", None)
            if start is None:
                raise ValueError(
                    "ITG needs a start token, and the config names none: set "
                    "qformer_config.bos_token_id to the id of [DEC] (load_retriever does)"
                )
            started = torch.cat([torch.full_like(input_ids[:, :1], start), input_ids[:, 1:]], 1)
            embeds = self.embeddings(input_ids=started, query_embeds=queries)
            mask = multimodal_causal_mask(attention_mask, length, embeds.dtype)
        states = run_qformer(
            self.qformer, embeds, mask=mask, images=[(images, 1)], query_length=length
        )
        return states[:, :length], states[:, length:]

    def _keys_of(
        self, shares: Shares, images: ImageKeys, image_embeds: Tensor, wanted: Tensor
    ) -> ImageKeys:
        """Keys and values of images (B,) that are numbered over all processes."""
        places = wanted - shares.offset
        if len(shares.sizes) > 1:
            foreign = (places < 0) | (places >= len(image_embeds))
            # projected, and joined, even where none is foreign: in the backward pass too, every
            # process must take part in the exchange
            everyone = shares.gather(image_embeds)
            images = images.join(project_images(self.qformer, everyone[wanted[foreign]]))
            places[foreign] = len(image_embeds) + torch.arange(
                len(wanted[foreign]), device=wanted.device
            )
        return images.select(places)

    def _itm(
        self,
        shares: Shares,
        same: Tensor,
        images: ImageKeys,
        negative_images: ImageKeys,
        negatives: Negatives,
        input_ids: Tensor,
        attention_mask: Tensor,
    ) -> Tensor:
        """Each image with its text and a negative one, and each text with a negative image.

        Pairs for which there is no negative, as in a batch of one image, are matched with their
        own alone.
        """
        missing = shares.width - input_ids.shape[1]
        ids = functional.pad(input_ids, (0, missing))
        mask = functional.pad(attention_mask, (0, missing))
        texts = shares.gather(ids)[negatives.texts], shares.gather(mask)[negatives.texts]
        ids = torch.cat([torch.stack([ids, texts[0]], 1).flatten(0, 1), ids])
        mask = torch.cat([torch.stack([mask, texts[1]], 1).flatten(0, 1), mask])
        width = int(mask.sum(1).max())
        logits = self.match([(images, 2), (negative_images, 1)], ids[:, :width], mask[:, :width])

        has_negative = (~same).any(1).float()
        ours = has_negative[shares.offset :][: len(input_ids)]
        matches = torch.cat(
            [torch.stack([ours.new_ones(len(ours)), 0 * ours], 1).flatten(), 0 * ours]
        )
        weights = torch.cat([torch.stack([torch.ones_like(ours), ours], 1).flatten(), ours])
        rows = shares.total + 2 * has_negative.sum()
        return matching(logits, matches.long(), weights) * (len(shares.sizes) / rows)

    def _itg(
        self, shares: Shares, states: Tensor, input_ids: Tensor, attention_mask: Tensor
    ) -> Tensor:
        """Every token from the queries and the tokens before it."""
        rows = attention_mask[:, 1:].bool()
        logits = self.itg_head(states[:, :-1][rows], self.embeddings.word_embeddings.weight)
        loss = text_generation(logits, input_ids[:, 1:][rows])
        tokens = shares.gather(rows.sum(1)).sum().clamp(min=1)
        return loss * (len(shares.sizes) / tokens)
