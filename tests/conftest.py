"""Small random models and data, made once a session; no test needs a network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start

import csv
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from made_run import make_run
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BertTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessorPil,
    OPTConfig,
    PreTrainedTokenizerFast,
    T5Config,
)
from transformers.utils import logging as transformers_logging

from blip2ft.cli import main
from blip2ft.models.adapters import attach_lora, describe_training, save_trained
from blip2ft.models.identity import identify
from blip2ft.models.load import load_captioner
from blip2ft.models.parts import set_trainable
from blip2ft.models.retriever import Retriever
from blip2ft.training.signals import STOPPING

torch.set_num_threads(1)  # small tensors: threads only wait for each other
sys.path.insert(0, str(Path(__file__).parents[1] / "scripts" / "bench"))

pytest_plugins = ["browser"]

WORDS = ["a", "an", "the", "photo", "of", "cat", "dog", "apple", "red", "blue", "left", "right"]
WORDS += ["and", "on", "with", "bird", "car"]


@pytest.fixture(autouse=True)
def loud_libraries():
    """Take back what commands and recipes silence, for the tests after these."""
    verbosity = transformers_logging.get_verbosity()
    yield
    transformers_logging.set_verbosity(verbosity)
    transformers_logging.enable_progress_bar()


@pytest.fixture(autouse=True)
def handlers():
    """Take back what commands and recipes do at a signal, for the tests after these."""
    before = {number: signal.getsignal(number) for number in STOPPING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def unmetered(monkeypatch):
    """Runs of tests meter no energy: codecarbon looks at the machine for two seconds."""
    monkeypatch.setattr("blip2ft.training.resources.meter_energy", lambda *_: None)


@pytest.fixture
def blip2ft_main(capsys):
    """Call the command and return status, standard output and standard error."""

    def call(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([str(word) for word in argv])
        out, err = capsys.readouterr()
        return stopped.value.code, out, err

    return call


@pytest.fixture
def made_run(tmp_path):
    """Write the folder of a run of a task that has ended; nothing is trained. See made_run.py."""

    def make(task: str) -> Path:
        return make_run(tmp_path / "run", task)

    return make


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """OPT's kind: byte-level BPE, `</s>` in front."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *alphabet]
    merges = []
    for word in WORDS:
        left = "Ġ"
        for character in word:
            if left + character not in tokens:
                tokens.append(left + character)
                merges.append((left, character))
            left += character
    bpe = models.BPE({token: i for i, token in enumerate(tokens)}, merges, unk_token="<unk>")
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A", special_tokens=[("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="</s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """T5's kind: unigram pieces, `</s>` behind."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,?:"
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    pieces += [(letter, -6.0) for letter in letters]
    pieces += [(f"▁{word}", -2.0) for word in WORDS]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ("<pad>", "</s>", "<unk>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )


def tiny_blip2(text_config: OPTConfig | T5Config, image_token_id: int) -> Blip2Config:
    """Two layers of everything, 28 px in patches of 14, 4 queries."""
    return Blip2Config(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
            "initializer_range": 0.2,
        },
        qformer_config={
            "vocab_size": 40,
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "max_position_embeddings": 32,
            "initializer_range": 0.2,
        },
        text_config=text_config,
        num_query_tokens=4,
        image_token_index=image_token_id,
        initializer_range=0.2,
    )


def save_model(folder: Path, tokenizer: PreTrainedTokenizerFast, text_config) -> Path:
    image_processor = BlipImageProcessorPil(size={"height": 28, "width": 28})
    processor = Blip2Processor(image_processor, tokenizer, 4)
    image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    torch.manual_seed(0)
    model = Blip2ForConditionalGeneration(tiny_blip2(text_config, image_token_id))
    torch.nn.init.normal_(model.query_tokens, std=0.2)
    for name, parameter in model.named_parameters():
        if "embedding" in name and "vision" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def opt_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BLIP-2 with an OPT; its captions end with a line break."""
    tokenizer = byte_level_tokenizer()
    end = tokenizer.convert_tokens_to_ids("Ċ")
    text = OPTConfig(
        vocab_size=len(tokenizer) + 1,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=96,
        bos_token_id=2,
        eos_token_id=end,
        pad_token_id=1,
        init_std=0.2,
    )
    return save_model(tmp_path_factory.mktemp("opt"), tokenizer, text)


@pytest.fixture(scope="session")
def t5_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BLIP-2 with a T5; its captions end with `</s>`."""
    tokenizer = sentencepiece_tokenizer()
    text = T5Config(
        vocab_size=len(tokenizer) + 1,
        d_model=32,
        d_kv=16,
        d_ff=48,
        num_layers=2,
        num_heads=2,
        decoder_start_token_id=0,
        eos_token_id=1,
        pad_token_id=0,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        initializer_factor=1.0,
    )
    return save_model(tmp_path_factory.mktemp("t5"), tokenizer, text)


@pytest.fixture(params=["opt", "t5"])
def model_folder(request: pytest.FixtureRequest) -> Path:
    """Both language-model families in turn."""
    return request.getfixturevalue(f"{request.param}_folder")


@pytest.fixture(scope="session")
def wide_folder(opt_folder, tmp_path_factory) -> Path:
    """A model of width 64: bitsandbytes packs rows in blocks of 64."""
    folder = Path(shutil.copytree(opt_folder, tmp_path_factory.mktemp("wide") / "model"))
    config = Blip2Config.from_pretrained(folder)
    for part in (config.vision_config, config.text_config):
        part.hidden_size = 64
    config.vision_config.intermediate_size = 64
    config.text_config.word_embed_proj_dim = config.text_config.ffn_dim = 64
    config.qformer_config.encoder_hidden_size = 64
    torch.manual_seed(0)
    Blip2ForConditionalGeneration(config).save_pretrained(folder)
    return folder


CAPTIONS = ("a red apple", "a blue bird on the left", "a cat and a dog", "the car with a bird")


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight noisy JPEG photos with captions.csv, as a newcomer would have them."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    with (folder / "captions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        for i in range(8):
            pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"photo{i}.jpg", quality=90)
            writer.writerow([f"photo{i}.jpg", CAPTIONS[i % 4]])
    return folder


@pytest.fixture(scope="session")
def run_folder(opt_folder, tmp_path_factory) -> Path:
    """What a short run leaves: LoRA on the language model, the projection in full."""
    run = tmp_path_factory.mktemp("run")
    settings = "output: run\ndata: {test: null}\ntrain: {best_metric: cider}\n"
    (run / "config.yaml").write_text(settings)
    model, _ = load_captioner(opt_folder)
    parts = {"vision": "frozen", "qformer": "frozen", "projection": "full", "language": "lora"}
    lora = attach_lora(model, parts, r=2)
    set_trainable(model, parts)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    description = describe_training(
        "caption",
        identify(str(opt_folder)),
        image_size=28,
        parts=parts,
        prompt="the photo of",
        generation={"num_beams": 2, "max_new_tokens": 4, "length_penalty": 0.5, "batch_size": 3},
    )
    save_trained(model, run / "adapter", lora, description)
    return run


BERT_WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "[DEC]"]


@pytest.fixture(scope="session")
def retriever_folder(tmp_path_factory) -> Path:
    """A tiny `Retriever` with a BERT tokenizer, as it is saved."""
    folder = tmp_path_factory.mktemp("retriever")
    tokenizer = BertTokenizer(
        vocab={word: i for i, word in enumerate(BERT_WORDS)}, bos_token="[DEC]"
    )
    config = tiny_blip2(OPTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1), None)
    text = config.qformer_config
    text.vocab_size, text.use_qformer_text_input = len(BERT_WORDS), True
    text.bos_token_id = tokenizer.bos_token_id
    config.image_text_hidden_size = 16
    torch.manual_seed(0)
    model = Retriever(config)
    for name, parameter in model.named_parameters():
        if "embedding" in name and "vision" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    torch.nn.init.normal_(model.query_tokens, std=0.2)
    model.save_pretrained(folder)
    image_processor = BlipImageProcessorPil(size={"height": 28, "width": 28})
    Blip2Processor(image_processor, tokenizer).save_pretrained(folder)
    return folder
