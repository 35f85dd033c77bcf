"""Models for the tests of models alone."""

import shutil
from pathlib import Path

import pytest
from transformers import Blip2Config, Blip2ForConditionalGeneration


@pytest.fixture(scope="module")
def wide_folder(opt_folder, tmp_path_factory) -> Path:
    """A model of width 64: bitsandbytes packs rows in blocks of 64."""
    folder = Path(shutil.copytree(opt_folder, tmp_path_factory.mktemp("wide") / "model"))
    config = Blip2Config.from_pretrained(folder)
    for part in (config.vision_config, config.text_config):
        part.hidden_size = 64
    config.vision_config.intermediate_size = 64
    config.text_config.word_embed_proj_dim = config.text_config.ffn_dim = 64
    config.qformer_config.encoder_hidden_size = 64
    Blip2ForConditionalGeneration(config).save_pretrained(folder)
    return folder
