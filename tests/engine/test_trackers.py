"""MLflow and W&B against the packages themselves, into folders on this machine."""

from __future__ import annotations

import importlib.util
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from cggm_ray.commands.cli import main
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.services import TolerantTracker
from cggm_ray.engine.tracking import read_metrics
from conftest import SMALL


@pytest.fixture(autouse=True)
def no_service(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)


def train(pickle: Path, storage: Path, *flags: str) -> int:
    places = ["--data_path", str(pickle), "--storage_path", str(storage), "--name", "run"]
    return main(Config(), ["--local", *SMALL, *places, *flags])


def log_records(data: bytes) -> Iterator[bytes]:
    """Records of a log in LevelDB's format with 7 bytes before it: blocks of 32 kB, pieces headed by sum, length and kind."""
    place, record = 7, b""
    while place + 7 <= len(data):
        if 2**15 - place % 2**15 < 7:
            place += 2**15 - place % 2**15
        _, length, kind = struct.unpack_from("<IHB", data, place)
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        # 1 is a whole record, 2 to 4 are its first, middle and last piece.
        if kind in (1, 4):
            yield record
            record = b""


def test_mlflow_has_every_epoch_of_a_run_that_went_on(small_pickle: Path, tmp_path: Path) -> None:
    tracking = pytest.importorskip("mlflow.tracking", reason="mlflow is not installed")
    assert train(small_pickle, tmp_path, "--trackers", "mlflow", "--num_epochs", "1") == 0
    assert train(small_pickle, tmp_path, "--trackers", "mlflow") == 0
    client = tracking.MlflowClient(tracking_uri=(tmp_path / "run" / "mlflow").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("cggm-ray").experiment_id])
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.data.params["modulation.rho"] == "1.3"
    for name in ("valid/mae", "coefficient/text"):
        history = {point.step: point.value for point in client.get_metric_history(run.info.run_id, name)}
        assert history == {line["epoch"]: line[name] for line in read_metrics(tmp_path / "run")}
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_wandb_stays_on_this_machine(small_pickle: Path, tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    from wandb.proto.wandb_internal_pb2 import Record

    assert train(small_pickle, tmp_path, "--trackers", "jsonl,wandb") == 0
    (path,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    found: dict[int, dict[str, str]] = {}
    for data in log_records(path.read_bytes()):
        record = Record.FromString(data)
        if record.WhichOneof("record_type") == "history":
            items = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
            found[int(float(items["_step"]))] = items
    lines = read_metrics(tmp_path / "run")
    assert sorted(found) == [line["epoch"] for line in lines]
    for line in lines:
        assert float(found[int(line["epoch"] or 0)]["valid/mae"]) == pytest.approx(line["valid/mae"])


def test_unknown_and_missing_trackers_are_one_line(
    small_pickle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(small_pickle, tmp_path, "--trackers", "wandbb") == 2
    assert "trackers: unknown 'wandbb' (did you mean wandb?)" in capsys.readouterr().err
    there = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == "mlflow" else there(name, *rest)
    )
    assert train(small_pickle, tmp_path, "--trackers", "mlflow") == 2
    assert "trackers: mlflow is not installed; pip install 'cggm-ray[mlflow]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_without_a_service_that_fails(
    small_pickle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing:
        def __init__(self, *arguments: object) -> None:
            self.calls = 0

        def log(self, record: object) -> None:
            raise ConnectionError("nobody\nthere")

        def close(self) -> None:
            raise AssertionError("called again")

    monkeypatch.setattr("cggm_ray.engine.services.MLflow", Failing)
    monkeypatch.setattr("cggm_ray.engine.tracking.check_trackers", lambda names: None)
    monkeypatch.setattr("cggm_ray.commands.train.check_trackers", lambda names: None)
    monkeypatch.setattr("cggm_ray.engine.assembly.check_trackers", lambda names: None)
    assert train(small_pickle, tmp_path, "--trackers", "mlflow") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("mlflow failed")]
    assert len(lines) == 1
    assert "the run goes on without it: ConnectionError: nobody" in lines[0]
    said: list[str] = []

    def fail() -> None:
        raise OSError("no disk")

    tracker = TolerantTracker("wandb", fail, said.append)  # type: ignore[arg-type]
    tracker.log({"epoch": 1.0})
    tracker.close()
    assert said == ["wandb failed, and the run goes on without it: OSError: no disk"]
