"""Loading: both families, other sizes, old checkpoints completed, foreign ones refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import Blip2ForConditionalGeneration, Blip2Processor

from blip2ft.models.load import end_token_id, load_captioner


def test_loads_both_families(model_folder):
    model, processor = load_captioner(model_folder)
    assert not model.training
    assert processor.num_query_tokens == 4
    assert processor.tokenizer.convert_tokens_to_ids("<image>") == model.config.image_token_index


def test_another_image_size_is_written_into_the_checkpoint(opt_folder, tmp_path):
    model, processor = load_captioner(opt_folder, image_size=42)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = Blip2ForConditionalGeneration.from_pretrained(tmp_path).eval()
    stock = Blip2Processor.from_pretrained(tmp_path)
    assert again.config.vision_config.image_size == 42
    assert stock.image_processor.size == {"height": 42, "width": 42}
    pixels = torch.randn(1, 3, 42, 42)
    torch.testing.assert_close(again.vision_model(pixels)[0], model.vision_model(pixels)[0])
