"""From prompts, targets and pixels to a batch: image tokens, prompt, labels, padding."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    Blip2ForConditionalGeneration,
    Blip2Processor,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
)

from blip2ft.models.load import end_token_id

IGNORE = -100  # the label that PyTorch's cross entropy leaves out


@dataclass(frozen=True, slots=True)
class Sample:
    """One image with its text, ready for a batch.

    pixel_values: (3, H, W) float, normalised; or kept features (S, D), see blip2ft/features/.
    prompt: what the language model is given; "" for none.
    target: what it shall answer; None when it is to be asked.
    weight: what its tokens count in the loss.
    """

    pixel_values: Tensor
    prompt: str
    target: str | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class TextLayout:
    """How a language model of BLIP-2 is given image tokens, prompt and target.

    Decoder-only models (OPT) read one sequence, with Q image tokens in front even of the start
    token, as BLIP-2 was trained:

        input_ids  <image> x Q  </s>  a  photo of  a  dog  \\n  <pad>
        labels     -    ...  -    -   -    -   -   a  dog  \\n   -

    Encoder-decoder models (FlanT5) read image tokens and prompt in the encoder, and learn the
    target in the decoder:

        input_ids          <image> x Q  a  photo of  </s>
        decoder_input_ids  <pad>  a    dog
        labels             a     dog  </s>

    A Q-Former that reads text (InstructBLIP) is given the prompt too, in its own vocabulary, as
    qformer_input_ids (B, L) and qformer_attention_mask.

    "-" is -100. The end token is the language model's own. Stock's collators and labels do none
    of this: see transformers #34223 and #23024.
    """

    tokenizer: Any
    image_token_id: int
    num_query_tokens: int
    end_token_id: int
    pad_token_id: int
    decoder_start_token_id: int | None = None  # None: a decoder-only model
    max_target_tokens: int = 64
    max_positions: int | None = None  # None: any length
    qformer_tokenizer: Any = None  # None: the Q-Former reads no text
    qformer_positions: int = 0

    @property
    def is_encoder_decoder(self) -> bool:
        return self.decoder_start_token_id is not None

    def prompt_ids(self, prompt: str) -> list[int]:
        """Prompt and the tokenizer's own special tokens, without image tokens."""
        return self.tokenizer(prompt)["input_ids"]

    def target_ids(self, prompt: str, target: str) -> list[int]:
        """The tokens that follow `prompt_ids(prompt)`, ending with the end token.

        A target over `max_target_tokens` is cut and then has no end token, since it doesn't end
        there. Raises ValueError for an empty one.
        """
        target = target.strip()
        if not target:
            raise ValueError("an empty target text can't be learned; drop the record")
        head = self.prompt_ids(prompt)
        if self.is_encoder_decoder:
            ids = self.tokenizer(target, add_special_tokens=False)["input_ids"]
        else:
            joined = f"{prompt} {target}" if prompt else target
            ids = self.tokenizer(joined)["input_ids"]
            # the tokens must continue the very prompt that is given when asking; a tokenizer
            # that merges over the seam gets the target tokenised on its own
            if ids[: len(head)] == head:
                ids = ids[len(head) :]
            else:
                ids = self.tokenizer(f" {target}", add_special_tokens=False)["input_ids"]
        if len(ids) >= self.max_target_tokens:
            return ids[: self.max_target_tokens]
        return [*ids, self.end_token_id]

    def collate(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """A training batch: pixel_values (B, 3, H, W), input_ids, attention_mask, labels (B, T),
        int64; with decoder_input_ids and decoder_attention_mask (B, L) for encoder-decoders, and
        weights (B,) float where a sample's isn't 1.

        Padded on the right, to the longest of the batch. Raises ValueError for a missing target,
        for text that holds an image token, and for text that the positions can't hold.
        """
        inputs, labels = [], []
        for sample in samples:
            if sample.target is None:
                raise ValueError("a training batch needs a target text for every sample")
            head = self._image_tokens() + self.prompt_ids(sample.prompt)
            target = self.target_ids(sample.prompt, sample.target)
            if self.is_encoder_decoder:
                inputs.append(head)
                labels.append(target)
            else:
                inputs.append(head + target)
                labels.append([IGNORE] * len(head) + target)
        batch = self._inputs(samples, inputs, padding_side="right")
        batch["labels"] = _pad(labels, IGNORE, "right")
        if any(sample.weight != 1 for sample in samples):
            batch["weights"] = torch.tensor([sample.weight for sample in samples])
        if self.decoder_start_token_id is not None:
            shifted = [[self.decoder_start_token_id, *ids[:-1]] for ids in labels]
            batch["decoder_input_ids"] = _pad(shifted, self.pad_token_id, "right")
            batch["decoder_attention_mask"] = (batch["labels"] != IGNORE).long()
        return batch

    def collate_prompts(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """A batch to generate from: pixel_values, input_ids, attention_mask.

        Decoder-only models are padded on the left, so that every answer follows its prompt; the
        position of a token comes from the attention mask, so padding changes no answer.
        """
        inputs = [self._image_tokens() + self.prompt_ids(sample.prompt) for sample in samples]
        side = "right" if self.is_encoder_decoder else "left"
        return self._inputs(samples, inputs, padding_side=side)

    def decode(self, ids: Tensor) -> list[str]:
        """Generated token ids (B, T) as texts, without special tokens and outer white space."""
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def _image_tokens(self) -> list[int]:
        return [self.image_token_id] * self.num_query_tokens

    def _inputs(
        self, samples: Sequence[Sample], ids: Sequence[list[int]], padding_side: str
    ) -> dict[str, Tensor]:
        for sample, row in zip(samples, ids, strict=True):
            if row.count(self.image_token_id) != self.num_query_tokens:
                text = f"{sample.prompt} {sample.target or ''}".strip()
                raise ValueError(
                    f"the text {text!r} holds the image token; take it out: the image's own "
                    f"{self.num_query_tokens} are put in front"
                )
            if self.max_positions is not None and len(row) > self.max_positions:
                raise ValueError(
                    f"{len(row)} tokens don't fit the language model's {self.max_positions} "
                    f"positions; shorten the prompt {sample.prompt!r}"
                )
        # the mask comes from the lengths: some tokenizers pad with the end token
        ones = [[1] * len(row) for row in ids]
        batch = {
            "pixel_values": torch.stack([sample.pixel_values for sample in samples]),
            "input_ids": _pad(ids, self.pad_token_id, padding_side),
            "attention_mask": _pad(ones, 0, padding_side),
        }
        if self.qformer_tokenizer is not None:
            read = self.qformer_tokenizer([sample.prompt for sample in samples])["input_ids"]
            for sample, row in zip(samples, read, strict=True):
                if len(row) > self.qformer_positions:
                    raise ValueError(
                        f"{len(row)} tokens don't fit the Q-Former's {self.qformer_positions} text "
                        f"positions; shorten {sample.prompt!r}"
                    )
            batch["qformer_input_ids"] = _pad(read, self.qformer_tokenizer.pad_token_id, "right")
            batch["qformer_attention_mask"] = _pad([[1] * len(row) for row in read], 0, "right")
        return batch


def text_layout(
    model: Blip2ForConditionalGeneration | InstructBlipForConditionalGeneration,
    processor: Blip2Processor | InstructBlipProcessor,
    max_target_tokens: int = 64,
) -> TextLayout:
    """The layout for a model and its processor, as `load_captioner` or `load_vqa` returns them.

    Raises ValueError where the language model's positions can't hold image tokens and target.
    """
    tokenizer, text = processor.tokenizer, model.config.text_config
    end = end_token_id(model)
    positions = getattr(text, "max_position_embeddings", None)
    if positions is not None and model.config.num_query_tokens + max_target_tokens >= positions:
        raise ValueError(
            f"max_target_tokens {max_target_tokens} and {model.config.num_query_tokens} image "
            f"tokens don't fit the language model's {positions} positions; lower max_target_tokens"
        )
    question_tokenizer = getattr(processor, "qformer_tokenizer", None)
    start = None
    if not model.config.use_decoder_only_language_model:
        start = text.decoder_start_token_id
        start = tokenizer.pad_token_id if start is None else start
    return TextLayout(
        tokenizer=tokenizer,
        image_token_id=model.config.image_token_index,
        num_query_tokens=model.config.num_query_tokens,
        end_token_id=end,
        pad_token_id=end if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        decoder_start_token_id=start,
        max_target_tokens=max_target_tokens,
        max_positions=positions,
        qformer_tokenizer=question_tokenizer,
        qformer_positions=getattr(model.config.qformer_config, "max_position_embeddings", 0),
    )


def _pad(rows: Sequence[list[int]], value: int, side: str) -> Tensor:
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=value, padding_side=side)
