"""The section of the configuration for the source of the samples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cggm_ray.config.fields import at_least, option


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Settings of the source of the samples."""

    dataset: str = option("mosi", "name of the dataset")
    data_path: str | None = option(
        None,
        "raw data: a file, a folder or a URL; without it a demonstration set is generated",
        resume=True,
        path=True,
        url=True,
    )
    modalities: tuple[str, ...] | None = option(None, "comma-separated modalities to use; default all")
    shard_path: str | None = option(
        None, "folder or URL for the converted data; default STORAGE_PATH/shards", resume=True, path=True, url=True
    )
    memory_budget: int = option(
        4096, "MiB of samples that a worker may hold; a larger set is streamed from its shards", resume=True
    )
    window: int = option(
        0,
        "shards whose samples are shuffled together, so that a set in a bucket or on disk is read by whole shards; 0 shuffles "
        "the whole split",
    )
    verify: bool = option(False, "compare all shards with their checksums before training", resume=True)

    def __post_init__(self) -> None:
        at_least(self, "memory_budget", 1)
        at_least(self, "window", 0)


@dataclass(frozen=True, kw_only=True)
class DatasetOptions:
    """Base class of the options of a single dataset, whose fields are made by `option`."""


@dataclass(frozen=True, kw_only=True)
class DatasetSettings:
    """Settings of a run that a dataset receives.

    Attributes:
        options: the dataset's own section of the configuration.
        data: the section that all datasets share.
        shard_root: folder of all converted sets.
        seed: of the run.
        no_cuda: stay on the CPU even where a GPU is there.
    """

    options: DatasetOptions
    data: DataConfig
    shard_root: Path
    seed: int
    no_cuda: bool
