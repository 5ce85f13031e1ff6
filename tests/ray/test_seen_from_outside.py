"""What others see of a run on Ray: what it waits for, gauges for Prometheus, and lines as JSON."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
from waiting import wait_for

from cggm_ray.commands.cli import main
from cggm_ray.distributed import waiting
from cggm_ray.engine.configuration import Config
from conftest import SMALL, small_set, write_pickle

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    import ray

    ray.init(address="local", num_cpus=2, log_to_driver=False, _system_config={"metrics_report_interval_ms": 300})
    yield
    ray.shutdown()


def gauges() -> dict[str, str]:
    """Returns the lines of this package's gauges that the node offers, name and tags to value."""
    import ray

    port = ray.nodes()[0]["MetricsExportPort"]
    with urlopen(f"http://127.0.0.1:{port}") as answer:
        lines = answer.read().decode().splitlines()
    return dict(line.rsplit(" ", 1) for line in lines if line.startswith("ray_cggm_"))


def test_a_run_that_waits_says_for_what_and_shows_its_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import ray

    @ray.remote(num_cpus=2)
    class Holder:
        def there(self) -> bool:
            return True

    holder, said, seen = Holder.remote(), [], {}
    assert ray.get(holder.there.remote())

    def show(line: str) -> None:
        # Before Ray Train has asked for anything, no line says for what.
        if line.startswith("waits"):
            said.append(line)
            ray.kill(holder)

    def look() -> None:
        def found() -> bool:
            seen.update(gauges())
            return any(name.startswith("ray_cggm_coefficient") for name in seen)

        wait_for(found, "the gauges")

    monkeypatch.setattr(waiting, "PATIENCE", 1.0)
    monkeypatch.setattr(waiting, "show", show)
    looking = threading.Thread(target=look)
    looking.start()
    pickle = write_pickle(tmp_path / "small.pkl", small_set())
    flags = ["--num_epochs", "40", "--log_interval", "1", "--log_format", "json", "--modulation", "cggm"]
    shards = ["--shard_path", str(tmp_path / "shards")]
    # The data is there, so that the workers alone wait.
    assert (
        main(Config(), [*SMALL, "--data_path", str(pickle), *shards, "--storage_path", str(tmp_path), "--local"]) == 0
    )
    capsys.readouterr()
    assert (
        main(
            Config(),
            [*SMALL, "--data_path", str(pickle), *shards, "--storage_path", str(tmp_path), "--name", "r", *flags],
        )
        == 0
    )
    looking.join()
    assert said[0] == "waits for a node with 1 CPU; free on the cluster: 0 of 2 CPUs"
    names = {name.partition("{")[0] for name in seen}
    assert {"ray_cggm_loss", "ray_cggm_samples_per_second", "ray_cggm_waits_for_data_seconds"} <= names
    coefficients = [name for name in seen if name.startswith("ray_cggm_coefficient{")]
    assert {part for name in coefficients for part in ("text", "audio", "vision") if f'modality="{part}"' in name} == {
        "text",
        "audio",
        "vision",
    }
    assert all('rank="0"' in name and 'run="r"' in name for name in coefficients)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    epochs = [line for line in lines if line["message"].startswith("epoch 40/40")]
    assert len(epochs) == 1
    assert (epochs[0]["run"], epochs[0]["rank"]) == ("r", 0)
    assert epochs[0]["step"] > 40
