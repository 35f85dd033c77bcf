"""The model that a run will train, as its recipe builds it, on the meta device."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from accelerate.utils.operations import convert_outputs_to_fp32
from torch import nn
from transformers import (
    AutoConfig,
    Blip2ForConditionalGeneration,
    InstructBlipForConditionalGeneration,
    PreTrainedConfig,
)

from blip2ft.features.level import QUERIES
from blip2ft.features.serve import serve_features
from blip2ft.models.adapters import attach_lora
from blip2ft.models.clip_vision import class_for
from blip2ft.models.kernels import choose_attention
from blip2ft.models.lora_init import frozen_starts
from blip2ft.models.parts import (
    PARTS,
    check_parts,
    checkpoint_gradients,
    modules_of,
    part_of,
    set_train_mode,
    set_trainable,
)
from blip2ft.models.resolution import resize_image_input
from blip2ft.models.retriever import Retriever
from blip2ft.models.source import is_retriever, read_config
from blip2ft.models.vqa import instruct_config
from blip2ft.plan.packed import PackedLinear, pack
from blip2ft.training.adamw import average_bytes
from blip2ft.training.processes import DTYPES, frozen_dtype

BERT = (30_523, 512)  # words, with [DEC], and positions


@dataclass(frozen=True)
class Setup:
    """What of a run's settings shapes its model.

    config: the checkpoint's, of the model that is trained. precision: fp32, bf16 or fp16. level: of
    the features that it goes on from (see features/level.py), None for images; features_dtype: in
    which they come. Other fields: as the recipes' settings.
    """

    task: str
    config: PreTrainedConfig
    precision: str
    image_size: int | None
    checkpointing: tuple[str, ...]
    parts: Mapping[str, str]
    lora: Mapping[str, Any]
    quantize: Mapping[str, str]
    objectives: Mapping[str, float] = field(default_factory=dict)
    optimizer: str = "adamw"
    attention: Mapping[str, str] = field(default_factory=dict)
    level: str | None = None
    features_dtype: torch.dtype = torch.float32

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.precision]

    @property
    def pixels(self) -> int:
        return self.image_size or self.config.vision_config.image_size

    @property
    def features_shape(self) -> tuple[int, int]:
        """(S, D) of one image at `level`."""
        if self.level == QUERIES:
            return self.config.num_query_tokens, self.config.text_config.hidden_size
        vision = self.config.vision_config
        return (self.pixels // vision.patch_size) ** 2 + 1, vision.hidden_size


def read_model_config(task: str, settings: Mapping[str, Any], notes: list[str]) -> PreTrainedConfig:
    """The config of the model that `settings` train; what had to be assumed is added to `notes`."""
    name, revision = settings["model"]["name"], settings["model"]["revision"]
    types = ("blip-2", "instructblip") if task == "vqa" else ("blip-2",)
    config = read_config(name, revision, types)
    if is_retriever(config) != (task == "retrieval"):
        has = "no language model" if is_retriever(config) else "a language model to generate text"
        raise ValueError(
            f"{name} has {has}, so it isn't what a {task} run starts from; pass --task, or another "
            "model.name"
        )
    if task == "vqa" and settings["question_in_qformer"] and config.model_type == "blip-2":
        config = instruct_config(config, *_text_branch(settings["stage1"], notes))
    if task == "retrieval" and config.qformer_config.bos_token_id is None:
        config.qformer_config.bos_token_id = config.qformer_config.vocab_size - 1
    if getattr(config, "image_token_index", None) is None and task != "retrieval":
        config.image_token_index = config.text_config.vocab_size - 1
    return config


def _text_branch(stage1: str | None, notes: list[str]) -> tuple[int, int]:
    if stage1 is None:
        raise ValueError(
            "question_in_qformer needs stage1, a checkpoint to take the text branch from; set it, "
            "or question_in_qformer to false"
        )
    try:
        source = AutoConfig.from_pretrained(stage1, trust_remote_code=False)
    except (OSError, ValueError):
        notes.append(f"the config of {stage1} can't be read; BERT's {BERT[0]:,} words are assumed")
        return BERT
    text = getattr(source, "qformer_config", source)
    return text.vocab_size, text.max_position_embeddings


def build(setup: Setup) -> Any:
    """The model in train mode, without values, as `accelerate` prepares it.

    Raises ValueError for parts that can't train or be quantised so, or that the model hasn't.
    """
    check_parts(setup.parts, setup.quantize)
    asked = "no" if setup.precision == "fp32" else setup.precision
    accelerator: Any = SimpleNamespace(mixed_precision=asked)
    frozen = frozen_dtype(accelerator, setup.config)
    kind: Any = Retriever if setup.task == "retrieval" else Blip2ForConditionalGeneration
    if setup.config.model_type == "instructblip":
        kind = InstructBlipForConditionalGeneration
    config = deepcopy(setup.config)  # which is the checkpoint's: size and attention are set in it
    with torch.device("meta"):
        model = class_for(kind, config)(config)
        if setup.task == "retrieval":
            model.objectives = dict(setup.objectives)
        if setup.image_size is not None:
            resize_image_input(model, setup.image_size)
        if setup.level is not None:
            serve_features(model, setup.level)
            if "vision" not in setup.quantize:  # see set_tower_aside
                model.vision_model.encoder.layers = nn.ModuleList()
        head = getattr(model, "get_output_embeddings", lambda: None)()
        for part, bits in setup.quantize.items():
            modules = modules_of(model, part)
            if not modules:
                raise ValueError(
                    f"quantize names {part!r}, but a {type(model).__name__} has no such part; "
                    "leave it out"
                )
            for module in modules:
                pack(module, bits, head, model._keep_in_fp32_modules)
        attach_lora(model, setup.parts, **setup.lora)
        choose_attention(model, setup.attention)
    set_trainable(model, setup.parts, frozen)
    for _, parameter in getattr(model, "unused_parameters", lambda: ())():
        parameter.requires_grad_(False)
    checkpoint_gradients(model, setup.checkpointing)
    set_train_mode(model)
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("no parameter trains; set a part to full or lora")
    if setup.precision != "fp32":
        model.forward = convert_outputs_to_fp32(model.forward)
    return model


@dataclass(frozen=True)
class PartWeights:
    """Parameters of a part and their bytes.

    trained, frozen: parameters. starts: of the frozen ones those that are saved with what trains,
    where a LoRA starts from the weights. size: bytes of all. dtypes: of which they are. averages:
    bytes of AdamW's two on the GPU, and `paged` of those in pages, which wait on the host if need
    be.
    """

    trained: int
    frozen: int
    starts: int
    size: int
    dtypes: tuple[str, ...]
    averages: int
    paged: int


def weigh(model: nn.Module, optimizer: str = "adamw") -> dict[str, PartWeights]:
    """The weights of each part that the model has, as the run holds them on a GPU.

    optimizer: the kind of AdamW.
    """
    packed = {id(m.weight): m for m in model.modules() if isinstance(m, PackedLinear)}
    trained, frozen, size = Counter[str](), Counter[str](), Counter[str]()
    dtypes = defaultdict[str, set[str]](set)
    for name, parameter in model.named_parameters():
        part, module = part_of(name), packed.get(id(parameter))
        (trained if parameter.requires_grad else frozen)[part] += parameter.numel()
        size[part] += parameter.nbytes if module is None else module.packed_bytes()
        dtypes[part].add(str(parameter.dtype)[6:] if module is None else module.kind)
    for name, buffer in model.named_buffers():
        size[part_of(name)] += buffer.nbytes
    starts = Counter[str]()
    for name, start in frozen_starts(model).items():
        starts[part_of(name)] += start.numel()
    averages, paged = Counter[str](), Counter[str]()
    for name, held, in_pages in average_bytes(optimizer, model):
        averages[part_of(name)] += held
        paged[part_of(name)] += in_pages
    return {
        part: PartWeights(
            trained[part],
            frozen[part],
            starts[part],
            size[part],
            tuple(sorted(dtypes[part])),
            averages[part],
            paged[part],
        )
        for part in PARTS
        if part in dtypes
    }
