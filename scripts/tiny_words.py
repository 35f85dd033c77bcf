"""The words of the embedded models: tokenizers, and the outline that steers a language model."""

from __future__ import annotations

from typing import Any

import numpy as np
from scene_captions import describe
from scene_layout import PLACES
from scene_pictures import COLOURS
from scene_things import draw_things, numbers
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import BertTokenizer, PreTrainedTokenizerFast

PROMPT = "a photo of"
OUTLINE = 12  # tokens of an outline, and queries of the model
WHERE = ("top", "bottom", "left", "right", "middle")


def outline(things: list[str], relation: str | None, background: str, where: str) -> list[str]:
    """What a scene shows, as OUTLINE words in fixed places; "\\n" where there is nothing to say.

    0          1 2 3        4 5 6      7 8 9     10 11
    left       dog face \\n  red apple \\n  \\n \\n \\n   \\n \\n
    blue       key \\n \\n    \\n \\n \\n   \\n \\n \\n   top left
    """
    words = [relation.split()[0] if relation else background]
    for name in [*things, *[""] * (3 - len(things))]:
        words += (name.split() + [""] * 3)[:3]
    words += ([word for word in where.split() if word in WHERE] + [""] * 2)[:2]
    return [f" {word}" if word else "\n" for word in words]


def where_alone(fields: dict[str, Any]) -> str:
    """The place of a scene's single thing, with which its last caption ends; "" where none is."""
    return next((p for row in PLACES for p in row if fields["captions"][-1].endswith(p)), "")


def outline_ids(tokenizer: PreTrainedTokenizerFast, fields: dict[str, Any]) -> list[int]:
    """The outline of a scene as tokens."""
    where = where_alone(fields)
    words = outline(fields["things"], fields["relation"], fields["background"], where)
    vocabulary = tokenizer.get_vocab()
    return [vocabulary[word.replace(" ", "Ġ").replace("\n", "Ċ")] for word in words]


def random_text(rng: np.random.Generator) -> dict[str, Any]:
    """The fields of a scene that is never drawn: captions and what they tell of."""
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


def example_texts() -> list[str]:
    """What a tokenizer learns its words from: every name, colour, place and wording."""
    names, places = list(numbers()), [place for row in PLACES for place in row]
    captions = [text for name in names for text in describe([name], None, "orange", places[0])]
    captions += [describe(names[:1], None, colour, places[0])[0] for colour in 2 * [*COLOURS]]
    captions += [describe(names[:1], None, "blue", place)[-1] for place in 2 * places]
    for count in (2, 3):
        for relation in ("left of", "above"):
            captions += 2 * describe(names[:count], relation, "blue", None)
    return [f"{PROMPT} {caption}\n" for caption in captions]


def language_tokenizer(special: list[str], template: str, **names: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE that spells any text and knows the scenes' words whole.

    special: the special tokens, from id 0; template: where they stand around a text $A; names: what
    they are, as bos_token="</s>".
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(example_texts(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("</s>", special.index("</s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=128 - OUTLINE, unk_token="<unk>", **names
    )


def bert_tokenizer() -> BertTokenizer:
    """A WordPiece that knows the scenes' words whole."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=1000,
        special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(sorted(example_texts()), trainer)
    vocabulary = tokenizer.get_vocab()
    words = sorted(vocabulary, key=vocabulary.__getitem__)
    return BertTokenizer(vocab={word: number for number, word in enumerate(words)})
