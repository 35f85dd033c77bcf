"""The tensors of a model's folder in transformers' format, as they are saved."""

from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from blip2ft.models.language_source import LANGUAGE
from blip2ft.models.source import explained


def read_folder(folder: Path, with_language_model: bool) -> dict[str, Tensor]:
    """The tensors in a folder's safetensors files, the language model's on demand only."""
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise ValueError(
            f"{folder} has no model.safetensors; load its model with transformers and save it"
        )
    state = {}
    with explained(str(folder)):
        for file in files:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118
                    if with_language_model or not name.startswith(LANGUAGE):
                        state[name] = tensors.get_tensor(name)
    # transformers' older versions saved this buffer
    state.pop("embeddings.position_ids", None)
    return state


def drop_image_row(state: dict[str, Tensor], model: Any, settings: Any) -> None:
    """Cut the embedding's last row where `complete_tokens` has grown it for `<image>`."""
    rows = model.get_input_embeddings().weight.shape[0]
    if settings.image_token_index != rows - 1:
        return
    for name, tensor in state.items():
        if name.endswith(("embed_tokens.weight", "shared.weight", "lm_head.weight")):
            state[name] = tensor[: rows - 1].clone()
