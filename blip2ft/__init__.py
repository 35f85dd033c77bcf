"""Fine-tune BLIP-2 on your own images.

import blip2ft
model, processor = blip2ft.load_captioner("Salesforce/blip2-opt-2.7b")
print(blip2ft.caption(model, processor, ["photo.jpg"]))
"""

from importlib import import_module, metadata
from typing import Any

__version__ = metadata.version("blip2ft")

# Loaded when first used: torch and transformers take seconds, and `--help` must not.
_HOMES = {
    "Adapters": "blip2ft.models.adapter_set",
    "ask": "blip2ft.captioner",
    "attach_lora": "blip2ft.models.adapters",
    "caption": "blip2ft.captioner",
    "caption_loss": "blip2ft.tasks.caption",
    "export_run": "blip2ft.export",
    "index_photos": "blip2ft.index",
    "load_captioner": "blip2ft.models.load",
    "load_finetuned": "blip2ft.finetuned",
    "load_retriever": "blip2ft.models.load",
    "load_trained": "blip2ft.models.adapters",
    "load_vqa": "blip2ft.models.vqa",
    "merge_lora": "blip2ft.models.adapters",
    "parts_table": "blip2ft.models.parts",
    "read_questions": "blip2ft.data.questions",
    "read_records": "blip2ft.data.records",
    "score_captions": "blip2ft.metrics",
    "search_photos": "blip2ft.index",
    "set_trainable": "blip2ft.models.parts",
    "text_layout": "blip2ft.data.batches",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'blip2ft' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
