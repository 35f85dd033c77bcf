"""How a run trains, and how what it trained is asked."""

from dataclasses import dataclass, field
from typing import Literal

AdamWKind = Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"]


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
        max_nonfinite: Steps that may be left out because their loss or gradient isn't finite; one
            more stops the run.
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
    max_nonfinite: int = 3
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
