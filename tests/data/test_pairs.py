"""Texts as the Q-Former reads them."""

import pytest
import torch

from blip2ft.data.pairs import Pair, pair_layout
from blip2ft.models.load import load_retriever


@pytest.fixture(scope="module")
def loaded(retriever_folder):
    return load_retriever(retriever_folder)


def test_texts_are_padded_to_the_longest_of_the_batch(loaded):
    layout = pair_layout(*loaded, 16)
    pairs = [
        Pair(torch.zeros(3, 4, 4), "a cat", 7),
        Pair(torch.ones(3, 4, 4), "the dog and a bird", 9),
    ]
    batch = layout.collate(pairs)
    words = [layout.tokenizer.convert_ids_to_tokens(row) for row in batch["input_ids"]]
    assert words[0] == ["[CLS]", "a", "cat", "[SEP]", "[PAD]", "[PAD]", "[PAD]"]
    assert words[1] == ["[CLS]", "the", "dog", "and", "a", "bird", "[SEP]"]
    assert batch["attention_mask"].sum(1).tolist() == [4, 7]
    assert batch["image_ids"].tolist() == [7, 9]
    assert batch["pixel_values"].shape == (2, 3, 4, 4)


def test_long_texts_are_cut_and_keep_their_end(loaded):
    layout = pair_layout(*loaded, 5)
    (row,) = layout.ids(["a red cat and a blue dog"])
    assert layout.tokenizer.convert_ids_to_tokens(row) == ["[CLS]", "a", "red", "cat", "[SEP]"]


def test_an_empty_text_is_refused(loaded):
    with pytest.raises(ValueError, match="an empty text can't be compared with images"):
        pair_layout(*loaded, 8).ids(["a cat", "  "])


def test_a_text_with_the_image_token_is_refused(loaded):
    with pytest.raises(ValueError, match=r"the text 'my <image>\.' holds the image token; take it"):
        pair_layout(*loaded, 8).ids(["a cat", "my <image>."])


@pytest.mark.parametrize("tokens", [2, 33])
def test_more_tokens_than_positions_are_refused(loaded, tokens):
    with pytest.raises(ValueError, match="the Q-Former reads texts of 3 to 32 tokens"):
        pair_layout(*loaded, tokens)
