"""What fits: on the nodes that are there, and on those that a growing cluster can have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from raylets import raylets

from cggm_ray.commands.cli import main
from cggm_ray.core.errors import UsageError
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.runtime import RunConfig
from conftest import SMALL

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def grown() -> Iterator[None]:
    """A node of 2 CPUs, in a cluster that says that it can have three of 4 CPUs and one with two GPUs."""
    import ray
    from ray._raylet import GCS_AUTOSCALER_CLUSTER_CONFIG_KEY, GCS_AUTOSCALER_STATE_NAMESPACE
    from ray.core.generated.autoscaler_pb2 import ClusterConfig, NodeGroupConfig
    from ray.experimental.internal_kv import _internal_kv_put

    ray.init(address="local", num_cpus=2, log_to_driver=False)
    groups = [
        NodeGroupConfig(name="cpu", resources={"CPU": 4}, max_count=3),
        NodeGroupConfig(name="gpu", resources={"CPU": 8, "GPU": 2}, max_count=1),
    ]
    content = ClusterConfig(node_group_configs=groups).SerializeToString()
    _internal_kv_put(
        GCS_AUTOSCALER_CLUSTER_CONFIG_KEY.encode(),
        content,
        overwrite=True,
        namespace=GCS_AUTOSCALER_STATE_NAMESPACE.encode(),
    )
    yield
    ray.shutdown()


@pytest.mark.parametrize(
    ("config", "cpus"),
    [
        (RunConfig(workers="2"), 4),
        (RunConfig(workers="5"), 4),
        (RunConfig(workers="6"), 2),
        (RunConfig(workers="20"), 1),
        (RunConfig(workers="5:400"), 4),
        (RunConfig(workers="5", cpus_per_worker=4), 4),
        (RunConfig(workers="2", use_gpu=True), 4),
    ],
)
def test_nodes_that_the_cluster_can_have_count(grown: None, config: RunConfig, cpus: int) -> None:
    from cggm_ray.distributed.cluster import cpus_per_worker

    assert cpus_per_worker(config) == cpus


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            RunConfig(workers="21"),
            "workers: 21 workers with 1 CPU each do not fit; when it has grown, the cluster has nodes with [4, 4, 4, 8] CPUs",
        ),
        (RunConfig(workers="6:8", cpus_per_worker=4), "workers: 6 workers with 4 CPU each do not fit"),
        (RunConfig(workers="3", use_gpu=True), "3 workers with a GPU each; when it has grown, the cluster has 2 GPUs"),
    ],
)
def test_what_never_fits_is_said_at_once(grown: None, config: RunConfig, expected: str) -> None:
    from cggm_ray.distributed.cluster import cpus_per_worker

    with pytest.raises(UsageError) as error:
        cpus_per_worker(config)
    assert expected in str(error.value)


@pytest.mark.slow
def test_an_autoscaler_brings_the_nodes(small_pickle: Path, tmp_path: Path) -> None:
    flags = [*SMALL, "--data_path", str(small_pickle), "--storage_path", str(tmp_path)]
    # Without shards to convert, nothing else asks for nodes.
    assert main(Config(), [*flags, "--local"]) == 0
    with raylets(cpus=1, grows_by=1) as cluster:
        done = cluster.run("python", "pipelines/mosi.py", *flags, "--name", "run", "--workers", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "waiting for nodes: 2 workers with 1 CPU each do not fit; the cluster has nodes with [1] CPUs" in done.stdout
    assert (tmp_path / "run" / "summary.json").exists()
