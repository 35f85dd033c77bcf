"""Captioning: the loss, the answers and their scores."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Blip2ForConditionalGeneration

from blip2ft.bars import progress_bar
from blip2ft.data.batches import IGNORE, Sample, TextLayout
from blip2ft.data.broken import Broken
from blip2ft.data.image_texts import ImageTexts, image_texts
from blip2ft.data.images import EvalTransform, TrainTransform
from blip2ft.data.loading import load_batches, load_pixels
from blip2ft.data.order import Key
from blip2ft.data.questions import Question
from blip2ft.data.records import Record
from blip2ft.data.stream import Stream
from blip2ft.metrics import score_captions
from blip2ft.models.language_loss import language_loss


@dataclass(frozen=True)
class CaptionPairs(Dataset):
    """Pairs of an image and one of its captions, as training samples: see `ImageTexts`."""

    images: ImageTexts
    prompt: str
    prefix_lm: bool
    max_words: int

    def __len__(self) -> int:
        return len(self.images)

    def length(self, key: Key) -> int:
        """Characters of a sample's caption, where they are known before it is read."""
        return self.images.length(key)

    def origin(self, key: Key) -> str:
        """See `ImageTexts`."""
        return self.images.origin(key)

    def __getitem__(self, key: Key) -> Sample | Broken:
        found = self.images[key]
        if isinstance(found, Broken):
            return found
        if not self.prefix_lm:
            return Sample(found.pixels, self.prompt, found.text)
        words = found.text.split()[: self.max_words]
        # 1: another draw than those of the augmentation, for the same sample
        rng = np.random.default_rng([self.images.seed, key.epoch, key.sample, 1])
        cut = int(rng.integers(max(1, len(words))))
        prompt = " ".join([self.prompt, *words[:cut]]).strip()
        return Sample(found.pixels, prompt, " ".join(words[cut:]))


def caption_pairs(
    source: Sequence[Record] | Stream,
    transform: TrainTransform,
    prompt: str,
    seed: int,
    *,
    prefix_lm: bool = False,
    max_words: int = 64,
    skip: bool = False,
) -> CaptionPairs:
    """The training samples of `source`: see `image_texts`.

    prefix_lm: cut each caption before any of its words, drawn evenly; what is before joins the
      prompt (section 3.2: the prefix is the encoder's, the suffix the decoder's).
    max_words: with prefix_lm, words of a caption that are used; without, its tokens are counted
      when a batch is made.
    """
    images = image_texts(source, transform, seed, skip=skip)
    return CaptionPairs(images, prompt, prefix_lm, max_words)


def caption_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Cross entropy summed over the labelled tokens of a batch from `TextLayout.collate`."""
    inputs = {key: value for key, value in batch.items() if key not in ("labels", "weights")}
    return language_loss(
        model,
        {**inputs, "use_cache": False},
        batch["labels"],
        shift="decoder_input_ids" not in batch,
        weights=batch.get("weights"),
    )


def count_labels(batch: Mapping[str, Tensor]) -> float:
    """How many tokens `caption_loss` sums over, each by its sample's weight."""
    tokens = (batch["labels"] != IGNORE).sum(1)
    return float((tokens * batch["weights"]).sum() if "weights" in batch else tokens.sum())


@torch.inference_mode()
def generate(
    model: Blip2ForConditionalGeneration,
    layout: TextLayout,
    samples: Sequence[Sample],
    *,
    num_beams: int = 5,
    max_new_tokens: int = 30,
    length_penalty: float = 1.0,
    do_sample: bool = False,
    **options: Any,
) -> list[str]:
    """Answers to a batch of samples, decoded by beam search (section 4.2: 5 beams).

    Each is what the sample alone would get: padding changes nothing. Further options go to
    transformers' `generate`.
    """
    batch = {key: v.to(model.device) for key, v in layout.collate_prompts(samples).items()}
    ids = model.generate(
        **batch,
        num_beams=num_beams,
        max_new_tokens=max_new_tokens,
        length_penalty=length_penalty,
        do_sample=do_sample,
        eos_token_id=layout.end_token_id,
        pad_token_id=layout.pad_token_id,
        # of a model in shards transformers would have processes wait for each other, token by token
        synced_gpus=False,
        **options,
    )
    if not layout.is_encoder_decoder:
        ids = ids[:, batch["input_ids"].shape[1] :]  # they begin with the prompt
    return layout.decode(ids)


def predict(
    model: Blip2ForConditionalGeneration,
    layout: TextLayout,
    transform: EvalTransform,
    records: Sequence[Record | Question],
    *,
    prompts: str | Sequence[str],
    batch_size: int = 16,
    workers: int = 0,
    accelerator: Accelerator | None = None,
    progress: bool = False,
    **options: Any,
) -> list[str]:
    """One answer a record, in the order of `records`, on every process.

    prompts: one for all, or one a record; prompts of like length share a batch. The records are
    split over the accelerator's processes, each answered once, whatever the remainder. options:
    see `generate`.
    """
    prompts = [prompts] * len(records) if isinstance(prompts, str) else list(prompts)
    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    by_length = sorted(range(len(records)), key=lambda i: len(prompts[i]))
    mine = by_length[rank::world]
    loader = load_batches(
        _Questions(records, prompts, transform),
        [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)],
        list,
        workers=workers,
    )
    model.eval()
    answers: list[tuple[int, str]] = []
    hidden = not progress or rank != 0
    bar = progress_bar(total=len(mine), desc="caption", hidden=hidden, leave=False)
    with bar, accelerator.autocast() if accelerator else nullcontext():
        for batch in loader:
            texts = generate(model, layout, [sample for _, sample in batch], **options)
            answers += zip([i for i, _ in batch], texts, strict=True)
            bar.update(len(batch))
    if world > 1:
        answers = gather_object(answers)
    return [text for _, text in sorted(answers)]


def score(records: Sequence[Record], captions: Sequence[str], *, java: bool = False) -> Any:
    """`CaptionScores` of one caption a record against the record's own captions.

    java: also METEOR and SPICE, where they can run.
    """
    predictions = {
        record.image_id: caption for record, caption in zip(records, captions, strict=True)
    }
    references = {record.image_id: list(record.captions) for record in records}
    return score_captions(predictions, references, java=java)


@dataclass(frozen=True)
class _Questions(Dataset):
    records: Sequence[Record | Question]
    prompts: Sequence[str]
    transform: EvalTransform

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[int, Sample]:
        pixels = load_pixels(self.records[index], self.transform)
        return index, Sample(pixels, self.prompts[index])
