"""Assemble the start of `data/tiny-retriever/`: a retriever that has learned nothing of texts yet.

    python scripts/make_tiny_retriever.py OUT

Image encoder, queries and Q-Former are those of `data/tiny-blip2/`; the Q-Former's text branch
starts as a copy of its query branch, embeddings and heads from random weights.
make_tiny_retriever.sh trains it from here with the retrieval recipe.
"""

import argparse
from pathlib import Path

import torch
from make_tiny_blip2 import HIDDEN, IMAGE, example_texts
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizer, Blip2ForConditionalGeneration, Blip2Processor
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from blip2ft.models.retriever import Retriever

ROOT = Path(__file__).resolve().parents[1]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def make_tokenizer() -> BertTokenizer:
    """A WordPiece that knows the scenes' words whole, with BLIP-2's start token [DEC]."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=1000, special_tokens=SPECIAL, show_progress=False
    )
    tokenizer.train_from_iterator(sorted(example_texts()), trainer)
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    return BertTokenizer(
        vocab={word: i for i, word in enumerate([*vocabulary, "[DEC]"])}, bos_token="[DEC]"
    )


def assemble(base: Blip2ForConditionalGeneration, tokenizer: BertTokenizer) -> Retriever:
    """The retriever that shares its image side with `base`."""
    config = base.config
    text = config.qformer_config
    text.use_qformer_text_input, text.vocab_size = True, len(tokenizer)
    text.max_position_embeddings, text.bos_token_id = 48, tokenizer.bos_token_id
    config.image_text_hidden_size, config.image_token_index = HIDDEN // 2, None
    torch.manual_seed(0)
    model = Retriever(config)
    missing, _ = model.load_state_dict(base.state_dict(), strict=False)
    for layer in model.qformer.encoder.layer:
        layer.intermediate.load_state_dict(layer.intermediate_query.state_dict())
        layer.output.load_state_dict(layer.output_query.state_dict())
    new = {name.split(".")[0] for name in missing} - {"qformer"}
    print("new:", ", ".join(sorted(new)))
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    out = parser.parse_args().out
    base = Blip2ForConditionalGeneration.from_pretrained(ROOT / "data" / "tiny-blip2")
    tokenizer = make_tokenizer()
    assemble(base, tokenizer).save_pretrained(out)
    images = BlipImageProcessorPil(size={"height": IMAGE, "width": IMAGE})
    Blip2Processor(images, tokenizer).save_pretrained(out)


if __name__ == "__main__":
    main()
