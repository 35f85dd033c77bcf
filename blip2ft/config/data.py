"""What a run learns from and is evaluated on."""

from dataclasses import dataclass, field
from typing import Literal

from blip2ft.filters.rules import Rules


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
        allow: "outside" for image paths that leave the folder they start from (image_root, or the
            folder of the file that names them), "remote" for addresses such as https://. Links
            inside that folder need neither, wherever they lead.
    """

    source: str
    format: str = "auto"
    split: str | None = None
    image_root: str | None = None
    image_column: str = "image"
    caption_column: str | None = None
    id_column: str | None = None
    revision: str | None = None
    allow: list[Literal["outside", "remote"]] = field(default_factory=list)


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
        on_bad_image: "stop" a run at a training image that can't be read, or "skip" it: it's left
            out and named in the run's broken.jsonl. Evaluation images have to be good. Of a
            stream, max_broken says it.
        max_bad_images: With "skip", the share of samples above which the run stops; for chance, 3
            standard deviations and 3 samples more.
        filters: Harmful words and personal data in what is learned from.
        workers: Processes that load images, per training process.
    """

    validation: SourceConfig
    train: SourceConfig | None = None
    stream: StreamConfig | None = None
    test: SourceConfig | None = None
    crop_scale: tuple[float, float] | None = (0.5, 1.0)
    flip: bool = True
    max_target_tokens: int = 64
    on_bad_image: Literal["stop", "skip"] = "stop"
    max_bad_images: float = 0.01
    filters: Rules = field(default_factory=Rules)
    workers: int = 4


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
        allow: "outside" for image paths that leave the folder they start from (image_root, or the
            folder of the file that names them), "remote" for addresses such as https://. Links
            inside that folder need neither, wherever they lead.
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
    allow: list[Literal["outside", "remote"]] = field(default_factory=list)


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
        on_bad_image: "stop" a run at a training image that can't be read, or "skip" it: it's left
            out and named in the run's broken.jsonl. Evaluation images have to be good.
        max_bad_images: With "skip", the share of samples above which the run stops; for chance, 3
            standard deviations and 3 samples more.
        filters: Harmful words and personal data in what is learned from.
        workers: Processes that load images, per training process.
    """

    train: list[QuestionSourceConfig]
    validation: QuestionSourceConfig
    test: QuestionSourceConfig | None = None
    answers: Literal["sample", "all"] = "sample"
    crop_scale: tuple[float, float] | None = (0.5, 1.0)
    flip: bool = False
    max_target_tokens: int = 16
    on_bad_image: Literal["stop", "skip"] = "stop"
    max_bad_images: float = 0.01
    filters: Rules = field(default_factory=Rules)
    workers: int = 4
