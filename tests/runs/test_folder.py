"""Whether a run may continue with a configuration, also one that an earlier version wrote."""

from __future__ import annotations

from cggm_ray.data.datasets.brats.brats import BratsOptions
from cggm_ray.data.settings import DataConfig
from cggm_ray.engine.configuration import Config
from cggm_ray.runs.folder import differences


def test_a_run_of_an_earlier_version_may_continue() -> None:
    """`backbone` was an option of the dataset, and `labels` did not exist."""
    config = Config(data=DataConfig(dataset="brats"), options=BratsOptions()).replace({"backbone": "resnet18"})
    found = config.to_dict()
    found["options"]["backbone"] = found.pop("deeplab")["backbone"]
    del found["options"]["labels"]
    assert differences(config, found) == []
    assert differences(config.replace({"backbone": "resnet50"}), found) == ["backbone: was 'resnet18', now 'resnet50'"]
    assert differences(config.replace({"labels": "brats2024"}), found) == ["labels: was 'auto', now 'brats2024'"]
