"""Make `data/tiny-blip2/`: a BLIP-2 of 2.5 million parameters that captions OpenMoji scenes.

    python scripts/make_tiny_blip2.py

It stands in for a pre-trained checkpoint wherever no gigabytes are at hand: the demo fine-tunes it
on scenes in another art style, which it captions badly at first. The making follows the paper in
small:

1. The language model learns English of the scenes' kind, and to be steered. Its prompt positions
   hold an *outline* of a scene (relation or background, the things, the place; twelve tokens), as
   blurred token embeddings, and it writes one of the scene's captions. A language model trained on
   plain text alone can't be steered by soft prompts at this size. Then it is frozen.
2. ViT, Q-Former and projection learn from composed OpenMoji scenes. Each patch is to name the
   thing it shows, which stands in for a pre-trained ViT; each projected query is to be near its
   token of the outline, which stands in for stage 1; after a while the language loss through the
   frozen language model joins in: stage 2. The first two use what only the composer knows; the
   demo's fine-tuning has the language loss alone.

Takes about 25 minutes on 2 cores. glibc hands large buffers back to the system at once and so
spends a third of the time on page faults; these variables stop it:

    MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=2147483647
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from make_scenes import (
    COLOURS,
    PLACES,
    SIDE,
    STYLES,
    SceneError,
    compose,
    compose_split,
    describe,
    draw_things,
    numbers,
)
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn import functional
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    GenerationConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

ROOT = Path(__file__).resolve().parents[1]
PROMPT = "a photo of"
IMAGE, PATCH = 64, 8  # pixels
HIDDEN, HEADS = 128, 4
QUERIES = 12
IGNORED = -100
GUIDED = 0.4  # share of the vision steps before the language loss joins in


class MakeError(Exception):
    """What is wrong and what to do about it, for the person at the terminal."""


# Words


def outline(things: list[str], relation: str | None, background: str, where: str) -> list[str]:
    """What a scene shows, as QUERIES words in fixed places; "\\n" where there is nothing to say.

    0          1 2 3        4 5 6      7 8 9     10 11
    left       dog face \\n  red apple \\n  \\n \\n \\n   \\n \\n
    blue       key \\n \\n    \\n \\n \\n   \\n \\n \\n   top left
    """
    words = [relation.split()[0] if relation else background]
    for name in [*things, *[""] * (3 - len(things))]:
        words += (name.split() + [""] * 3)[:3]
    words += ([word for word in where.split() if word in WHERE] + [""] * 2)[:2]
    return [f" {word}" if word else "\n" for word in words]


WHERE = ("top", "bottom", "left", "right", "middle")


def place_in(captions: list[str]) -> str:
    """The place with which the last caption ends, that of the first thing; or ""."""
    return next((p for row in PLACES for p in row if captions[-1].endswith(p)), "")


def example_texts() -> list[str]:
    """What the tokenizer learns its words from: every name, colour, place and wording."""
    names, places = list(numbers()), [place for row in PLACES for place in row]
    captions = [text for name in names for text in describe([name], None, "orange", places[0])]
    captions += [describe(names[:1], None, colour, places[0])[0] for colour in 2 * [*COLOURS]]
    captions += [describe(names[:1], None, "blue", place)[-1] for place in 2 * places]
    for count in (2, 3):
        for relation in ("left of", "above"):
            captions += 2 * describe(names[:count], relation, "blue", None)
    return [f"{PROMPT} {caption}\n" for caption in captions]


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE with OPT's special tokens; it spells any text, and knows the scenes' words.

    As in OPT, `</s>` begins every text, and captions end with "\\n", a token of its own.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    bos = tokenizer.token_to_id("</s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A", pair="</s> $A </s> $B", special_tokens=[("</s>", bos)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="</s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        model_max_length=128 - QUERIES,
    )


def make_processor() -> Blip2Processor:
    images = BlipImageProcessorPil(size={"height": IMAGE, "width": IMAGE})
    return Blip2Processor(images, make_tokenizer(example_texts()), num_query_tokens=QUERIES)


# The model


def make_model(processor: Blip2Processor) -> Blip2ForConditionalGeneration:
    """Random weights; stock initial values suit loading a checkpoint, not training from none."""
    tokenizer = processor.tokenizer
    size = {
        "hidden_size": HIDDEN,
        "intermediate_size": 4 * HIDDEN,
        "num_attention_heads": HEADS,
        "initializer_range": 0.02,
    }
    vision = Blip2VisionConfig(**size, num_hidden_layers=4, image_size=IMAGE, patch_size=PATCH)
    qformer = Blip2QFormerConfig(
        **size,
        num_hidden_layers=3,
        cross_attention_frequency=1,
        encoder_hidden_size=HIDDEN,
        vocab_size=len(tokenizer),
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    text = OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        word_embed_proj_dim=HIDDEN,
        ffn_dim=4 * HIDDEN,
        num_hidden_layers=4,
        num_attention_heads=HEADS,
        max_position_embeddings=128,
        dropout=0.0,
        bos_token_id=2,
        eos_token_id=tokenizer.convert_tokens_to_ids("Ċ"),
        pad_token_id=1,
    )
    config = Blip2Config(
        vision_config=vision,
        qformer_config=qformer,
        text_config=text,
        num_query_tokens=QUERIES,
        image_text_hidden_size=HIDDEN,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    model = Blip2ForConditionalGeneration(config)
    torch.nn.init.normal_(model.query_tokens, std=0.02)
    with torch.no_grad():
        model.vision_model.embeddings.position_embedding[0, 1:] = grid_code(IMAGE // PATCH)
    ending = {"bos_token_id": 2, "pad_token_id": 1, "eos_token_id": text.eos_token_id}
    model.generation_config = GenerationConfig(**ending)
    return model


def grid_code(grid: int) -> torch.Tensor:
    """Sines and cosines of row and column, grid^2 x HIDDEN: without them "left" is learned late."""
    waves = torch.arange(grid)[:, None] / 2 ** torch.linspace(0, 5, HIDDEN // 4)
    line = 0.5 * torch.cat([waves.sin(), waves.cos()], dim=1)
    rows, columns = line[:, None].expand(-1, grid, -1), line.expand(grid, -1, -1)
    return torch.cat([rows, columns], dim=-1).reshape(grid * grid, HIDDEN)


# Scenes


class Scenes(NamedTuple):
    """N composed scenes."""

    pixels: torch.Tensor  # N x IMAGE x IMAGE x 3 bytes
    outlines: torch.Tensor  # N x QUERIES token ids
    patches: torch.Tensor  # N x (IMAGE / PATCH)^2: the number of the thing there, 0 for none
    captions: list[list[list[int]]]


def compose_scenes(processor: Blip2Processor, count: int, seed: int) -> Scenes:
    """OpenMoji scenes with the pairs of the training split."""
    rng = np.random.default_rng([seed, 77])
    pixels = np.empty((count, IMAGE, IMAGE, 3), dtype=np.uint8)
    outlines, patches, captions = [], [], []
    for number in range(count):
        picture, fields = compose(draw_things("train", rng), "openmoji", rng)
        pixels[number] = picture.resize((IMAGE, IMAGE), Image.Resampling.BICUBIC)
        outlines.append(outline_ids(processor, fields))
        patches.append(patch_labels(fields))
        captions.append([caption_ids(processor, caption) for caption in fields["captions"]])
    labels = torch.from_numpy(np.stack(patches))
    return Scenes(torch.from_numpy(pixels), torch.tensor(outlines), labels, captions)


def patch_labels(fields: dict[str, Any]) -> np.ndarray:
    """The thing at the centre of each patch: its number in `things.json` from 1, 0 for none."""
    grid = IMAGE // PATCH
    centres = (np.arange(grid) + 0.5) * (SIDE / grid)
    labels = np.zeros((grid, grid), dtype=np.int64)
    for name, (x0, y0, x1, y1) in zip(fields["things"], fields["boxes"], strict=True):
        rows = (centres >= y0) & (centres < y1)
        columns = (centres >= x0) & (centres < x1)
        labels[np.ix_(rows, columns)] = numbers()[name] + 1
    return labels.flatten()


def outline_ids(processor: Blip2Processor, fields: dict[str, Any]) -> list[int]:
    where = place_in(fields["captions"])
    words = outline(fields["things"], fields["relation"], fields["background"], where)
    vocabulary = processor.tokenizer.get_vocab()
    return [vocabulary[word.replace(" ", "Ġ").replace("\n", "Ċ")] for word in words]


def caption_ids(processor: Blip2Processor, caption: str) -> list[int]:
    return processor.tokenizer(f"{PROMPT} {caption}\n")["input_ids"]


def collate(texts: list[list[int]], image_token: int, prompt: int) -> dict[str, torch.Tensor]:
    """Image tokens, `</s>`, prompt, caption, "\\n"; only caption and "\\n" are in the loss."""
    longest = max(map(len, texts))
    ids = torch.full((len(texts), QUERIES + longest), 1)
    ids[:, :QUERIES] = image_token
    labels, mask = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
    for row, text in enumerate(texts):
        end = QUERIES + len(text)
        ids[row, QUERIES:end] = torch.tensor(text)
        labels[row, QUERIES + prompt : end] = ids[row, QUERIES + prompt : end]
        mask[row, :end] = 1
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def normalise(pixels: torch.Tensor, processor: Blip2Processor) -> torch.Tensor:
    """Bytes B x H x W x 3 to what the image processor gives."""
    images = processor.image_processor
    mean, std = torch.tensor(images.image_mean), torch.tensor(images.image_std)
    return ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


def recolour(images: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    """Mix the colour channels of each image a little, so that shapes come to matter."""
    batch = images.shape[0]
    matrix = torch.eye(3) + strength[:, None, None] * torch.randn(batch, 3, 3)
    shift = strength[:, None] * torch.randn(batch, 3)
    return torch.einsum("bij,bjhw->bihw", matrix, images) + shift[:, :, None, None]


# Training


def blur(table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Embeddings of `ids`, each mixed with another token's, scaled and noisy: B x Q x D."""
    batch, length = ids.shape
    size = table.detach().std()
    other = table[torch.randint(len(table), ids.shape)]
    share = 0.45 * torch.rand(batch, length, 1) * (torch.rand(batch, length, 1) < 0.5)
    mixed = (1 - share) * table[ids] + share * other
    scale = torch.exp(0.4 * torch.randn(batch, 1, 1))
    noise = 0.8 * size * torch.rand(batch, 1, 1) * torch.randn_like(mixed)
    return scale * (mixed + noise)


def make_optimizer(
    parameters: list[torch.nn.Parameter], rate: float, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW without decay on vectors, one cycle."""
    groups = [
        {"params": [p for p in parameters if p.squeeze().ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in parameters if p.squeeze().ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.1)
    return optimizer, schedule


def step(
    loss: torch.Tensor,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    loss.backward()
    for group in optimizer.param_groups:
        torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()


def random_text(rng: np.random.Generator) -> dict[str, Any]:
    """The fields of a scene that is never drawn: the language model needs words only."""
    things = draw_things("train", rng)
    relation = None if len(things) == 1 else str(rng.choice(["left of", "above"]))
    where = PLACES[rng.integers(3)][rng.integers(3)] if rng.random() < 0.7 else None
    background = str(rng.choice(list(COLOURS)))
    return {
        "captions": describe(things, relation, background, where),
        "things": things,
        "relation": relation,
        "background": background,
    }


def train_language(
    model: Blip2ForConditionalGeneration,
    processor: Blip2Processor,
    steps: int,
    rng: np.random.Generator,
    batch: int = 128,
) -> None:
    """Step 1 of the making: write a caption of the scene that a blurred outline tells of."""
    language, image_token = model.language_model, model.config.image_token_index
    prompt = len(processor.tokenizer(PROMPT)["input_ids"])
    table = language.get_input_embeddings().weight
    optimizer, schedule = make_optimizer(list(language.parameters()), 2e-3, steps)
    start = time.perf_counter()
    for number in range(steps):
        fields = [random_text(rng) for _ in range(batch)]
        outlines = torch.tensor([outline_ids(processor, f) for f in fields])
        texts = [caption_ids(processor, str(rng.choice(f["captions"]))) for f in fields]
        inputs = collate(texts, image_token, prompt)
        embeds = language.get_input_embeddings()(inputs.pop("input_ids"))
        embeds = torch.cat([blur(table, outlines), embeds[:, QUERIES:]], dim=1)
        loss = language(inputs_embeds=embeds, **inputs).loss
        step(loss, optimizer, schedule)
        report("language", number, steps, {"loss": loss}, start)


def train_vision(
    model: Blip2ForConditionalGeneration,
    processor: Blip2Processor,
    scenes: Scenes,
    steps: int,
    rng: np.random.Generator,
    batch: int = 64,
) -> None:
    """Step 2 of the making: everything but the language model, on OpenMoji scenes."""
    model.language_model.requires_grad_(False)
    image_token = model.config.image_token_index
    prompt = len(processor.tokenizer(PROMPT)["input_ids"])
    table = model.get_input_embeddings().weight.detach()
    patch_head = torch.nn.Linear(HIDDEN, len(numbers()) + 1)
    trained = [p for p in [*model.parameters(), *patch_head.parameters()] if p.requires_grad]
    optimizer, schedule = make_optimizer(trained, 1e-3, steps)
    start = time.perf_counter()
    for number in range(steps):
        chosen = rng.integers(len(scenes.captions), size=batch)
        outlines = scenes.outlines[chosen]
        single = outlines[:, 4] == model.config.text_config.eos_token_id  # captions tell its ground
        images = recolour(
            normalise(scenes.pixels[chosen], processor), torch.where(single, 0.05, 0.2)
        )
        seen = model.vision_model(images).last_hidden_state
        labels = scenes.patches[chosen].flatten()
        losses = {"patch": functional.cross_entropy(patch_head(seen[:, 1:]).flatten(0, 1), labels)}
        asked = model.query_tokens.expand(batch, -1, -1)
        queries = model.language_projection(
            model.qformer(query_embeds=asked, encoder_hidden_states=seen).last_hidden_state
        )
        likeness = functional.normalize(queries, dim=-1) @ functional.normalize(table, dim=-1).T
        losses["guide"] = functional.cross_entropy(16 * likeness.flatten(0, 1), outlines.flatten())
        if number >= steps * GUIDED:
            captions = [scenes.captions[i] for i in chosen]
            texts = [texts[rng.integers(len(texts))] for texts in captions]
            inputs = collate(texts, image_token, prompt)
            embeds = table[inputs.pop("input_ids")]
            embeds = torch.cat([queries, embeds[:, QUERIES:]], dim=1)
            losses["language"] = model.language_model(inputs_embeds=embeds, **inputs).loss
        step(torch.stack(list(losses.values())).sum(), optimizer, schedule)
        report("vision", number, steps, losses, start)


def report(
    what: str, number: int, steps: int, values: dict[str, torch.Tensor], start: float
) -> None:
    if (number + 1) % 100 == 0 or number + 1 == steps:
        told = "  ".join(f"{name} {value.item():.3f}" for name, value in values.items())
        print(
            f"{what} {number + 1}/{steps}  {told}  {time.perf_counter() - start:.0f} s", flush=True
        )


# Measuring and saving


@torch.no_grad()
def caption(
    model: Blip2ForConditionalGeneration, processor: Blip2Processor, pictures: Sequence[Image.Image]
) -> list[str]:
    """Captions by beam search, 5 wide, as anyone would ask the saved model for them."""
    model.eval()
    captions = []
    for first in range(0, len(pictures), 100):
        chunk = pictures[first : first + 100]
        inputs = processor(images=chunk, text=[PROMPT] * len(chunk), return_tensors="pt")
        written = model.generate(**inputs, num_beams=5, max_new_tokens=32)
        texts = processor.batch_decode(written, skip_special_tokens=True)
        captions += [text.removeprefix(PROMPT).strip() for text in texts]
    return captions


def measure(
    model: Blip2ForConditionalGeneration, processor: Blip2Processor, style: str, count: int
) -> dict[str, Any]:
    """How many of the first test scenes of seed 0 are captioned right to the letter."""
    rows = list(compose_split(style, "test", count, seed=0))
    pictures = [Image.open(io.BytesIO(row["image"]["bytes"])) for row in rows]
    captions = caption(model, processor, pictures)
    right = [text in row["captions"] for text, row in zip(captions, rows, strict=True)]
    sizes = [len(row["things"]) for row in rows]
    by_size = {
        str(size): round(
            float(np.mean([r for r, s in zip(right, sizes, strict=True) if s == size])), 3
        )
        for size in sorted(set(sizes))
    }
    return {"scenes": count, "exact": round(float(np.mean(right)), 4), "exact_by_things": by_size}


def make(
    out: Path, seed: int, language_steps: int, vision_steps: int, scenes: int, tested: int = 300
) -> dict[str, Any]:
    """Make, measure and save the model; returns the metrics."""
    if min(language_steps, vision_steps, scenes) < 1 or seed < 0:
        raise MakeError("Steps and scenes must be at least 1, the seed at least 0.")
    if out.exists() and any(out.iterdir()) and not (out / "config.json").is_file():
        raise MakeError(f"--out {out} holds something other than a model: choose another folder.")
    start = time.perf_counter()
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    processor = make_processor()
    model = make_model(processor)
    train_language(model, processor, language_steps, rng)
    composed = compose_scenes(processor, scenes, seed)
    train_vision(model, processor, composed, vision_steps, rng)
    metrics = {
        "seed": seed,
        "language_steps": language_steps,
        "vision_steps": vision_steps,
        "scenes": scenes,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        **{f"{style}_test": measure(model, processor, style, tested) for style in STYLES},
        "seconds": round(time.perf_counter() - start),
    }
    model.requires_grad_(True)
    model.save_pretrained(out)
    processor.save_pretrained(out)
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    return metrics


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "tiny-blip2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--language-steps", type=int, default=1300, help="default 1300")
    parser.add_argument("--vision-steps", type=int, default=2600, help="default 2600")
    parser.add_argument("--scenes", type=int, default=30000, help="to compose, default 30000")
    options = parser.parse_args(arguments)
    try:
        metrics = make(
            options.out, options.seed, options.language_steps, options.vision_steps, options.scenes
        )
    except KeyboardInterrupt:
        print("make_tiny_blip2: interrupted; nothing was written.", file=sys.stderr)
        return 130
    except (MakeError, SceneError, OSError) as error:
        print(f"make_tiny_blip2: {error}", file=sys.stderr)
        return 2
    print(json.dumps(metrics, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
