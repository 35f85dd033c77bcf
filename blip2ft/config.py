"""The settings of a run: plain frozen dataclasses, the paper's values as defaults.

Recipes read them from YAML and the command line; library functions take plain arguments and never
see these classes. Sections and tables cited are those of the BLIP-2 paper (arXiv 2301.12597).
"""

from dataclasses import dataclass, field
from typing import Literal

PartMode = Literal["frozen", "lora", "full"]
AdamWKind = Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"]
LoraInit = Literal["default", "gaussian", "orthogonal", "pissa", "pissa_niter_16", "olora"]


@dataclass(frozen=True)
class ModelConfig:
    """The checkpoint to start from and how to hold it.

    Args:
        name: Hub id or folder of a BLIP-2 checkpoint in transformers' format.
        revision: Branch, tag or commit of a hub checkpoint.
        image_size: Side of the square input in pixels; None keeps the checkpoint's. Another size
            interpolates the position embeddings (364 for captioning, appendix table 7).
        precision: How to compute. "auto" is bf16 autocast where the hardware has it, else fp32.
            Trained weights are fp32 in every case; frozen ones are kept in the compute precision.
        gradient_checkpointing: Parts that trade compute for memory, of vision, qformer, language.
    """

    name: str
    revision: str | None = None
    image_size: int | None = None
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    gradient_checkpointing: list[Literal["vision", "qformer", "language"]] = field(
        default_factory=list
    )


@dataclass(frozen=True)
class PartsConfig:
    """How each part of the model trains. The defaults are the paper's for captioning.

    Args:
        vision: The image encoder.
        qformer: The Q-Former with its query tokens.
        projection: The projection from the Q-Former into the language model.
        language: The language model.
    """

    vision: PartMode = "full"
    qformer: PartMode = "full"
    projection: PartMode = "full"
    language: PartMode = "frozen"


@dataclass(frozen=True)
class LoraConfig:
    """The adapters of the parts in mode "lora".

    Args:
        r: Rank of the update.
        alpha: The update is scaled by alpha / r, or by alpha / sqrt(r) with rslora.
        dropout: Dropout probability on the adapter's input.
        dora: Train magnitude and direction apart (arXiv 2402.09353).
        rslora: Rank-stabilised scaling (arXiv 2312.03732).
        init: Where the factors start: "default" (A random, B zero), "gaussian", "orthogonal", or
            from the weight itself: "pissa" (arXiv 2404.02948), "pissa_niter_16" (the same, nearly,
            in a fraction of the time), "olora" (arXiv 2406.01775).
    """

    r: int = 16
    alpha: int = 32
    dropout: float = 0.05
    dora: bool = False
    rslora: bool = False
    init: LoraInit = "default"


@dataclass(frozen=True)
class SourceConfig:
    """Where one split's records come from.

    Args:
        source: File, folder, glob or hub id.
        format: "auto" recognises jsonl, csv, folder, coco, karpathy, parquet, huggingface and
            webdataset.
        split: Name of the split, for formats that hold several.
        image_root: Folder that image paths are relative to; None is the source's own folder.
        image_column: Column that holds the image or its path.
        caption_column: Column that holds the caption or captions; None looks for caption,
            captions and text.
        id_column: Column of the image's id; None takes image_id where there is one.
        revision: Branch, tag or commit of a dataset on the hub.
    """

    source: str
    format: str = "auto"
    split: str | None = None
    image_root: str | None = None
    image_column: str = "image"
    caption_column: str | None = None
    id_column: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class StreamSourceConfig:
    """Shards to train on: tars as webdataset lays them out, or Parquet files.

    Args:
        source: File, folder, glob, pattern such as {000000..000123}.tar, address of these
            (https://, hf://, s3://), an index.json, or a hub id.
        weight: Share of what is drawn; all sources have one, or none. Without weights every sample
            comes once an epoch.
        format: "auto" recognises webdataset, parquet and huggingface.
        split: Name of the split, told from the files' names.
        image_column: Column that holds the image; of tars the extension, where it is unusual.
        caption_column: Column that holds the caption or captions; of tars a field of the .json, or
            an extension. None looks for caption, captions and text, and for .txt.
        repeat: Let samples come again once all were drawn; false stops a run that would need it,
            before it starts.
        revision: Branch, tag or commit of a dataset on the hub.
    """

    source: str
    weight: float | None = None
    format: str = "auto"
    split: str | None = None
    image_column: str = "image"
    caption_column: str | None = None
    repeat: bool = True
    revision: str | None = None


@dataclass(frozen=True)
class StreamConfig:
    """Training data in shards, too large to be listed (section 3.4: 129 M images).

    Args:
        sources: What is mixed.
        shuffle: Samples in the shards that are read at once, at least.
        max_broken: Largest share of samples that can't be read; they are left out and logged in
            the run's broken.jsonl. More stops the run.
        cache: Folder for shards that aren't local and for unpacked Parquet files; None is
            blip2ft's own in ~/.cache.
        cache_gb: Most that is kept there, in GB.
    """

    sources: list[StreamSourceConfig]
    shuffle: int = 10_000
    max_broken: float = 0.01
    cache: str | None = None
    cache_gb: float = 50.0


@dataclass(frozen=True)
class DataConfig:
    """The three splits and how training images are varied.

    Args:
        validation: What to evaluate on while training, and to choose the best checkpoint by.
        train: What to learn from.
        stream: What to learn from instead, where it lies in shards: for pre-training.
        test: What to evaluate on before and after; None takes the validation split.
        crop_scale: Range of the random crop's share of the image's area (appendix); None resizes
            the whole image.
        flip: Flip half of the training images left to right. Turn it off where captions say left
            or right.
        max_target_tokens: Longer captions are cut to so many tokens.
        workers: Processes that load images, per training process.
    """

    validation: SourceConfig
    train: SourceConfig | None = None
    stream: StreamConfig | None = None
    test: SourceConfig | None = None
    crop_scale: tuple[float, float] | None = (0.5, 1.0)
    flip: bool = True
    max_target_tokens: int = 64
    workers: int = 4


@dataclass(frozen=True)
class CacheConfig:
    """What a frozen image encoder computes, kept on disk; see blip2ft/features/.

    Args:
        folder: Where to keep it; None computes it in every step. Images that aren't augmented
            (data.crop_scale null, data.flip false) are then encoded once, before the first step.
        dtype: How to keep it. Under bf16 computing, "bf16" loses nothing; "fp32" keeps fp32 runs
            exact; "int8" takes 0.53 of bf16, with an error of up to 1/254 of the largest of 64
            channels.
    """

    folder: str | None = None
    dtype: Literal["bf16", "fp32", "int8"] = "bf16"


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its schedule: linear warm-up, then a cosine that moves every step.

    Args:
        kind: "adamw" is torch's. "adamw_8bit" keeps its averages in 8 bits, those of embeddings and
            vectors in 32; "paged_adamw" moves them to the host's memory where the GPU's runs out;
            "paged_adamw_8bit" does both (bitsandbytes; pages on CUDA alone).
        lr: Peak learning rate (appendix table 7).
        min_lr: Rate at the end of the cosine.
        warmup_steps: Steps from 0 to the peak.
        betas: AdamW's averaging coefficients.
        weight_decay: On matrices only; norms and biases have none.
        vision_layer_decay: Each ViT block's rate is this times the next one's (OPT-6.7B: 0.95).
        lora_lr_ratio: lora_B learns at so many times the rate of lora_A (LoRA+, arXiv 2402.12354,
            which takes 16; lower lr with it).
        max_grad_norm: Clip the gradient's norm; None doesn't clip.
    """

    kind: AdamWKind = "adamw"
    lr: float = 1e-5
    min_lr: float = 0.0
    warmup_steps: int = 1000
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.05
    vision_layer_decay: float = 1.0
    lora_lr_ratio: float = 1.0
    max_grad_norm: float | None = 1.0


@dataclass(frozen=True)
class TrainConfig:
    """The length of the run, its batches and its milestones.

    Args:
        epochs: Passes over every pair of image and caption (appendix table 7).
        max_steps: Stop after so many optimizer steps, whatever the epochs say; a stream goes on
            until then, for as many epochs as it takes.
        batch_size: Pairs in one optimizer step, over all processes and accumulation.
        micro_batch_size: Pairs that one process holds at once; what is missing to batch_size is
            accumulated.
        evaluate_every: Steps between evaluations on the validation split; None: once an epoch.
        checkpoint_every: Steps between further checkpoints; one is saved before each evaluation.
        keep_checkpoints: How many of the newest checkpoints to keep, beside the best.
        best_metric: The metric that the best checkpoint has most of.
        log_every: Steps between two lines of the loss log.
        log_with: Experiment trackers known to Accelerate, such as tensorboard or wandb.
        resume: Go on from the newest checkpoint in the run's folder.
        preflight: Check a few samples before the first step, and stop with what is wrong.
    """

    epochs: int = 5
    max_steps: int | None = None
    batch_size: int = 256
    micro_batch_size: int = 16
    evaluate_every: int | None = None
    checkpoint_every: int | None = None
    keep_checkpoints: int = 2
    best_metric: str = "cider"
    log_every: int = 10
    log_with: list[str] = field(default_factory=list)
    resume: bool = False
    preflight: bool = True


@dataclass(frozen=True)
class GenerationConfig:
    """How captions are decoded.

    Args:
        num_beams: Beams of the search (section 4.2: 5).
        max_new_tokens: Longest answer. Image tokens and prompt are not counted.
        length_penalty: Exponent on the length that beam scores are divided by.
        batch_size: Images decoded at once by one process.
    """

    num_beams: int = 5
    max_new_tokens: int = 30
    length_penalty: float = 1.0
    batch_size: int = 16


@dataclass(frozen=True)
class CaptionConfig:
    """A captioning run (paper, section 4.2 and appendix table 7).

    Args:
        output: The run's folder. One that is in use is never overwritten.
        model: The checkpoint to start from.
        data: The three splits.
        parts: How each part trains.
        lora: The adapters of parts in mode "lora".
        quantize: Parts to hold in fewer bits, such as {"language": "nf4"}; frozen or lora only.
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
    quantize: dict[str, Literal["nf4", "int8"]] = field(default_factory=dict)
    cache: CacheConfig = field(default_factory=CacheConfig)
    prompt: str = "a photo of"
    prefix_lm: bool = False
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    seed: int = 42


@dataclass(frozen=True)
class ObjectivesConfig:
    """The weights of the three losses of stage 1 (section 3.1); one of 0 isn't computed.

    Args:
        itc: Image-text contrastive.
        itm: Image-text matching.
        itg: Image-grounded text generation.
        cache_itc: Compute ITC over the whole batch, also where it is accumulated from micro-batches
            (GradCache); costs one more forward pass. Off, ITC compares within a micro-batch and
            the processes. ITM's negatives come from those in either case.
    """

    itc: float = 1.0
    itm: float = 1.0
    itg: float = 1.0
    cache_itc: bool = False


@dataclass(frozen=True)
class SearchConfig:
    """How the evaluation searches.

    Args:
        candidates: So many of the most similar are ranked (section 4.4: 128).
        rerank: Rank them by similarity plus matching logit, else by similarity alone.
        batch_size: Images or texts encoded at once by one process.
        pairs_at_once: Texts matched with an image at once.
    """

    candidates: int = 128
    rerank: bool = True
    batch_size: int = 16
    pairs_at_once: int = 256


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
        quantize: Parts to hold in fewer bits, such as {"vision": "nf4"}; frozen or lora only.
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
    quantize: dict[str, Literal["nf4", "int8"]] = field(default_factory=dict)
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
class QuestionSourceConfig:
    """Where questions and answers come from.

    Args:
        source: File, glob of Parquet files or hub id.
        annotations: The file with the answers, for VQAv2 and OK-VQA.
        images: A source of images that the questions name by id, such as a Parquet file.
        format: "auto" recognises vqav2 (OK-VQA too), visual_genome, aokvqa, gqa, jsonl, csv,
            parquet and huggingface.
        split: Name of the split, for formats that hold several.
        image_root: Folder that image paths are relative to, or that has COCO's folders in it.
        image_column: Column that holds the image or its path.
        question_column: Column of the question; None takes question.
        answer_column: Column of the answers; None takes answers, answer or direct_answers.
        id_column: Column of the question's id; None takes question_id.
        require_answers: Refuse questions without an answer; false for the test sets of servers.
        revision: Branch, tag or commit of a dataset on the hub.
    """

    source: str
    annotations: str | None = None
    images: str | None = None
    format: str = "auto"
    split: str | None = None
    image_root: str | None = None
    image_column: str = "image"
    question_column: str | None = None
    answer_column: str | None = None
    id_column: str | None = None
    require_answers: bool = True
    revision: str | None = None


@dataclass(frozen=True)
class VqaDataConfig:
    """The three splits of questions, and how training images are varied.

    Args:
        train: What to learn from; several sources are mixed (section 4.3: VQAv2 train and val,
            Visual Genome).
        validation: What to evaluate on while training, and to choose the best checkpoint by.
        test: What to evaluate on before and after; None takes the validation split.
        answers: "sample" draws one of a question's answers each epoch, as often as annotators gave
            it; "all" trains on each different one, weighed by its share.
        crop_scale: Range of the random crop's share of the image's area; None resizes the whole.
        flip: Flip half of the training images; questions on left and right forbid it.
        max_target_tokens: Longer answers are cut to so many tokens.
        workers: Processes that load images, per training process.
    """

    train: list[QuestionSourceConfig]
    validation: QuestionSourceConfig
    test: QuestionSourceConfig | None = None
    answers: Literal["sample", "all"] = "sample"
    crop_scale: tuple[float, float] | None = (0.5, 1.0)
    flip: bool = False
    max_target_tokens: int = 16
    workers: int = 4


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
        quantize: Parts to hold in fewer bits, such as {"language": "nf4"}; frozen or lora only.
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
    quantize: dict[str, Literal["nf4", "int8"]] = field(default_factory=dict)
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
