"""Searches whose trials have two workers each, on several raylets: a node dies, a person presses Ctrl-C, nothing is left."""

from __future__ import annotations

import csv
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from raylets import Raylets, own_lines, raylets
from waiting import wait_for

from cggm_ray.engine.tracking import read_metrics
from conftest import SMALL, small_set, write_pickle

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def cluster() -> Iterator[Raylets]:
    """A node for the drivers, and two with room for a trial each."""
    with raylets(cpus=1, RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="30") as found:
        for count in (2, 3):
            found.add_node(cpus=2)
            found.wait_for_nodes(count)
        yield found


def argv(storage: Path, name: str, epochs: int) -> list[str]:
    pickle = write_pickle(storage / "small.pkl", small_set())
    file = storage / f"{name}.yaml"
    scheduler = {"name": "asha", "max_epochs": epochs, "grace_period": 1, "reduction_factor": 2}
    # Two rates that learn, and two that lose every comparison.
    space = {"lr": {"grid": [5e-3, 1e-2, 1e-9, 2e-9]}}
    file.write_text(yaml.safe_dump({"scheduler": scheduler, "space": space}))
    places = ["--data_path", str(pickle), "--storage_path", str(storage), "--name", name, "--tune", str(file)]
    return ["python", "pipelines/mosi.py", *SMALL, *places, "--workers", "2"]


def placement_groups(cluster: Raylets) -> list[str]:
    """States of those that hold anything."""
    listed = cluster.run("ray", "list", "placement-groups", "--address", cluster.jobs, "--format", "json")
    return [group["state"] for group in json.loads(listed.stdout or "[]") if group["state"] != "REMOVED"]


def trained(folder: Path) -> int:
    return sum(len(read_metrics(path.parent)) for path in folder.glob("trials/*/trial.json"))


@pytest.mark.slow
def test_a_node_dies_under_a_search(cluster: Raylets, tmp_path: Path) -> None:
    folder, log = tmp_path / "search", tmp_path / "driver.log"
    driver = cluster.start(*argv(tmp_path, "search", 8), log=log)
    try:
        wait_for(lambda: trained(folder) >= 2, "no trial trains", by=driver)
        cluster.remove_node(cluster.nodes[2])
        assert driver.wait() == 0, log.read_text()
    finally:
        driver.kill()
        driver.wait()
    with (folder / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows] == [f"trial-00{number}" for number in range(4)]
    assert {row["status"] for row in rows} == {"finished", "stopped"}
    for row in rows:
        assert int(row["epochs"]) == len(read_metrics(folder / "trials" / row["trial"]))
    assert json.loads((folder / "summary.json").read_text())["trial"] in ("trial-000", "trial-001")
    wait_for(lambda: not cluster.working(), "workers are left")
    wait_for(lambda: not placement_groups(cluster), "placement groups are left")


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_running(cluster: Raylets, tmp_path: Path) -> None:
    folder, log = tmp_path / "search", tmp_path / "driver.log"
    driver = cluster.start(*argv(tmp_path, "search", 10**6), log=log)
    try:
        wait_for(lambda: trained(folder) >= 1, "no trial trains", by=driver)
        assert cluster.working()
        driver.send_signal(signal.SIGINT)
        assert driver.wait() == 130, log.read_text()
    finally:
        driver.kill()
        driver.wait()
    assert own_lines(log)[-1] == "interrupted", log.read_text()
    wait_for(lambda: not cluster.working(), "workers are left")
    wait_for(lambda: not placement_groups(cluster), "placement groups are left")
