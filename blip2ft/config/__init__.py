"""The settings of a run: plain frozen dataclasses, the paper's values as defaults.

Recipes read them from YAML and the command line; library functions take plain arguments and never
see these classes. Sections and tables cited are those of the BLIP-2 paper (arXiv 2301.12597).
"""

from blip2ft.config.data import (
    DataConfig,
    QuestionSourceConfig,
    SourceConfig,
    StreamConfig,
    StreamSourceConfig,
    VqaDataConfig,
)
from blip2ft.config.model import (
    CacheConfig,
    LoraConfig,
    ModelConfig,
    PartsConfig,
)
from blip2ft.config.tasks import (
    CaptionConfig,
    RetrievalConfig,
    VqaConfig,
)
from blip2ft.config.training import (
    GenerationConfig,
    ObjectivesConfig,
    OptimizerConfig,
    SearchConfig,
    TrainConfig,
)

__all__ = [
    "CacheConfig",
    "CaptionConfig",
    "DataConfig",
    "GenerationConfig",
    "LoraConfig",
    "ModelConfig",
    "ObjectivesConfig",
    "OptimizerConfig",
    "PartsConfig",
    "QuestionSourceConfig",
    "RetrievalConfig",
    "SearchConfig",
    "SourceConfig",
    "StreamConfig",
    "StreamSourceConfig",
    "TrainConfig",
    "VqaConfig",
    "VqaDataConfig",
]
