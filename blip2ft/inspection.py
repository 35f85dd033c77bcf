"""What a model or a run is made of, without loading its weights."""

from dataclasses import dataclass
from pathlib import Path

from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import (
    AutoConfig,
    Blip2ForConditionalGeneration,
    InstructBlipForConditionalGeneration,
    PreTrainedConfig,
)

from blip2ft.finetuned import adapter_folder
from blip2ft.hub import check_revision
from blip2ft.models.adapters import DESCRIPTION_FILE, LORA_FILE, attach_lora, read_description
from blip2ft.models.build import empty_model
from blip2ft.models.hub_adapter import holds_adapter
from blip2ft.models.parts import PARTS, parts_table, set_trainable
from blip2ft.models.retriever import Retriever
from blip2ft.models.source import is_retriever, read_config
from blip2ft.models.vqa import instruct_config


@dataclass(frozen=True)
class Inspected:
    """A model without its weights: lines on what matters to its use, and how its parts train."""

    model: nn.Module
    parts: dict[str, str]
    lines: tuple[str, ...]


def describe(name: str, *, revision: str | None = None) -> str:
    """The parts table of a hub id, a folder or a run, and what else matters to its use.

    Raises ValueError as `inspect` does.
    """
    found = inspect(name, revision=revision)
    return "\n".join([*found.lines, "", parts_table(found.model, found.parts)])


def inspect(name: str, *, revision: str | None = None) -> Inspected:
    """The model of a hub id, a folder or a run, on the meta device.

    Raises ValueError for what is none of these, and for a revision of a folder.
    """
    check_revision(name, revision)
    folder, parts, lines = None, dict.fromkeys(PARTS, "frozen"), []
    path = Path(name)
    if (path / "config.yaml").is_file() or (path / DESCRIPTION_FILE).is_file():
        folder = None if (path / "config.json").is_file() else adapter_folder(path)
    elif holds_adapter(name, revision):
        folder = adapter_folder(f"{name}@{revision}" if revision else name)
    if folder is not None:
        description = read_description(folder)
        whose = folder if path.is_dir() else name
        name, revision = description["base"], description["revision"]
        parts = description["parts"]
        lines = [f"trained weights  {whose}", f"task             {description['task']}"]
        if "prompt" in description:
            lines.append(f"prompt           {description['prompt']!r}")
        if quantize := description.get("quantize"):
            told = ", ".join(f"{part} in {kind}" for part, kind in quantize.items())
            lines.append(f"in fewer bits    {told}, while it trained")
    config = read_config(name, revision, ("blip-2", "instructblip"))
    if folder is not None:
        config.vision_config.image_size = description["image_size"]
        if description.get("stage1") is not None:  # the text branch is not the base's
            source = AutoConfig.from_pretrained(description["stage1"])
            text = getattr(source, "qformer_config", source)
            config = instruct_config(config, text.vocab_size, text.max_position_embeddings)
    model = empty_model(_stock_class(config), config)
    if folder is not None:
        if description.get("lora") is not None:
            attach_lora(model, parts, **description["lora"])
        elif (folder / LORA_FILE).is_file():  # not a recipe's: what it started from isn't told
            inject_adapter_in_model(
                LoraConfig.from_pretrained(str(folder)), model, low_cpu_mem_usage=True
            )
        set_trainable(model, parts)
    else:
        model.requires_grad_(False)
    size = config.vision_config.image_size
    language = [f"language model   {config.text_config.model_type}"]
    if is_retriever(config):
        language = []
    patches = config.vision_config.patch_size
    lines = [
        f"model            {name}",
        *lines,
        f"image            {size} x {size} px, patches of {patches}",
        f"queries          {config.num_query_tokens}",
        *language,
    ]
    return Inspected(model, parts, tuple(lines))


def _stock_class(config: PreTrainedConfig) -> type:
    if config.model_type == "instructblip":
        return InstructBlipForConditionalGeneration
    return Retriever if is_retriever(config) else Blip2ForConditionalGeneration
