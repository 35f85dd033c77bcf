"""A run of each task."""

from dataclasses import dataclass, field

from blip2ft.config.data import DataConfig, VqaDataConfig
from blip2ft.config.model import CacheConfig, LoraConfig, ModelConfig, PartsConfig
from blip2ft.config.training import (
    GenerationConfig,
    ObjectivesConfig,
    OptimizerConfig,
    SearchConfig,
    TrainConfig,
)


@dataclass(frozen=True)
class CaptionConfig:
    """A captioning run (paper, section 4.2 and appendix table 7).

    Args:
        output: The run's folder. One that is in use is never overwritten.
        model: The checkpoint to start from.
        data: The three splits.
        parts: How each part trains.
        lora: The adapters of parts in mode "lora".
        quantize: Parts to hold in fewer bits, such as {"language": "nf4"}: language or vision,
            frozen or lora, in "nf4" or "int8", both in the same.
        cache: Keep what a frozen image encoder computes.
        prompt: Text that the caption goes on from, in training, evaluation and export alike.
        prefix_lm: Cut each training caption at random: the model reads the first words behind the
            prompt and writes the rest (section 3.2; for encoder-decoders such as FlanT5).
        optimizer: AdamW and its schedule.
        train: Length, batches and milestones.
        generation: How captions are decoded.
        seed: Seed of all that is random.
    """

    output: str
    model: ModelConfig
    data: DataConfig
    parts: PartsConfig = field(default_factory=PartsConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    quantize: dict[str, str] = field(default_factory=dict)
    cache: CacheConfig = field(default_factory=CacheConfig)
    prompt: str = "a photo of"
    prefix_lm: bool = False
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    seed: int = 42


@dataclass(frozen=True)
class RetrievalConfig:
    """A retrieval run (paper, section 4.4 and appendix table 9).

    Args:
        output: The run's folder. One that is in use is never overwritten.
        model: The checkpoint to start from.
        data: The three splits.
        itg_head: Hub id or folder of a BERT, to start the head of ITG from, where the checkpoint
            has none; None starts it from random weights.
        objectives: The weights of the three losses.
        parts: How each part trains; the heads belong to projection. There is no language model.
        lora: The adapters of parts in mode "lora".
        quantize: The part to hold in fewer bits, frozen or lora: {"vision": "nf4"} or "int8".
        cache: Keep what a frozen image encoder computes.
        optimizer: AdamW and its schedule.
        train: Length, batches and milestones.
        search: How the evaluation searches.
        evaluate_only: Evaluate the model as it is on the test split, and train nothing.
        seed: Seed of all that is random.
    """

    output: str
    model: ModelConfig
    data: DataConfig
    itg_head: str | None = None
    objectives: ObjectivesConfig = field(default_factory=ObjectivesConfig)
    parts: PartsConfig = field(default_factory=PartsConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    quantize: dict[str, str] = field(default_factory=dict)
    cache: CacheConfig = field(default_factory=CacheConfig)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(vision_layer_decay=0.95)
    )
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(batch_size=224, best_metric="mean_recall")
    )
    search: SearchConfig = field(default_factory=SearchConfig)
    evaluate_only: bool = False
    seed: int = 42


@dataclass(frozen=True)
class VqaConfig:
    """A run of visual question answering (paper, section 4.3 and appendix table 8).

    Args:
        output: The run's folder. One that is in use is never overwritten.
        model: The checkpoint to start from.
        data: The three splits.
        question_in_qformer: Give the question to the Q-Former too, so that the queries look where
            it points; the result is an InstructBLIP. Off, it stays a BLIP-2.
        stage1: Hub id or folder of a retrieval checkpoint or a BERT, to take the Q-Former's text
            branch from.
        parts: How each part trains.
        lora: The adapters of parts in mode "lora".
        quantize: Parts to hold in fewer bits, such as {"language": "nf4"}: language or vision,
            frozen or lora, in "nf4" or "int8", both in the same.
        cache: Keep what a frozen image encoder computes.
        prompt: What a question becomes, for both readers, in training, evaluation and export alike.
        candidates: File with an answer a line to choose from by likelihood; None lets the model
            write. Questions with choices of their own are always answered by one of them.
        optimizer: AdamW and its schedule.
        train: Length, batches and milestones.
        generation: How answers are decoded.
        evaluate_only: Evaluate the model as it is on the test split, and train nothing.
        seed: Seed of all that is random.
    """

    output: str
    model: ModelConfig
    data: VqaDataConfig
    question_in_qformer: bool = True
    stage1: str | None = None
    parts: PartsConfig = field(default_factory=PartsConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    quantize: dict[str, str] = field(default_factory=dict)
    cache: CacheConfig = field(default_factory=CacheConfig)
    prompt: str = "Question: {} Answer:"
    candidates: str | None = None
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(vision_layer_decay=0.95)
    )
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(batch_size=128, best_metric="accuracy")
    )
    generation: GenerationConfig = field(
        default_factory=lambda: GenerationConfig(max_new_tokens=10, length_penalty=-1.0)
    )
    evaluate_only: bool = False
    seed: int = 42
