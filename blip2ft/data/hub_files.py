"""Datasets of the Hugging Face hub as the shards that they consist of."""

from pathlib import Path

from blip2ft.data.entries import unknown_split

SHARDED = ("parquet", "webdataset")


def hub_files(source: str, split: str | None, revision: str | None) -> list[str]:
    """Addresses of the Parquet or tar files of a dataset's split; none of them is fetched.

    source: "owner/name", "owner/name:config", or a folder laid out like a dataset of the hub.

    Raises ValueError where the dataset can't be found, has no such split, or is of another kind.
    """
    import datasets

    name, _, config = (source, "", "") if Path(source).exists() else source.partition(":")
    try:
        builder = datasets.load_dataset_builder(name, config or None, revision=revision)
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        raise ValueError(
            f"{source}: the dataset can't be found ({reason}). Give a hub id such as owner/name "
            "that you have access to, or a folder that is there; configs go after a colon."
        ) from error
    kind = type(builder).__module__.rpartition(".")[2]
    if kind not in SHARDED:
        raise ValueError(
            f"{source}: a dataset of the kind {kind}, which can't be read in pieces. Convert it: "
            f"blip2ft shard {source} --out FOLDER"
        )
    files = builder.config.data_files or {}
    if (split is None and len(files) > 1) or split not in (None, *files):
        raise unknown_split(source, split, list(files))
    return [str(file) for file in files[split or next(iter(files))]]
