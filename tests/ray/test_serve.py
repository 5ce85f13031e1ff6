"""`cggm serve`: a process that answers over HTTP what `cggm predict` writes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from feature_sets import arrays, as_npz, config
from programs import ROOT

from cggm_ray.__main__ import main as command
from cggm_ray.commands.cli import main
from cggm_ray.data.shards.shards import column_values

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    made = config(folder, as_npz(folder, arrays()), "words,face,age", target="label", split="part")
    assert main(made, ["--report", "false"]) == 0
    return folder / "runs" / "r"


@pytest.fixture(scope="module")
def url(run: Path) -> Iterator[str]:
    """A service on a free port; it ends with 0 after SIGTERM."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_ADDRESS": "local"}
    limits = ["--port", "0", "--max_body", "1", "--max_samples", "40"]
    process = subprocess.Popen(
        [sys.executable, "-m", "cggm_ray", "serve", str(run), *limits],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = next((line for line in process.stdout if line.startswith("http://")), None)
    assert line is not None, process.wait()
    yield line.split()[0]
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0


def asked(url: str, path: str, body: Any = None, *, raw: bytes | None = None) -> tuple[int, dict[str, Any]]:
    """Status and answer of a request; POST where there is a body."""
    data = raw if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url + path, data=data)) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_answers_are_those_of_predict(run: Path, url: str) -> None:
    data = run.parent.parent / "f.npz"
    assert command(["predict", str(run), "--data_path", str(data), "--out", str(run / "all.parquet")]) == 0
    table = pq.read_table(run / "all.parquet")
    wanted, classes = column_values(table.column("prediction")), table.column("class").to_pylist()
    content = arrays()
    samples = [{name: content[name][row].tolist() for name in ("words", "face", "age")} for row in range(30)]
    status, found = asked(url, "/predict", {"samples": samples})
    assert status == 200
    np.testing.assert_allclose([each["prediction"] for each in found["predictions"]], wanted, rtol=1e-5, atol=1e-6)
    assert [each["class"] for each in found["predictions"]] == classes
    # One by one and at the same time, so that they are predicted in batches; one of them is wrong.
    with ThreadPoolExecutor(8) as pool:
        bodies = [{"samples": [sample]} for sample in samples] + [{"samples": [{"age": [0] * 3}]}]
        *answers, wrong = pool.map(lambda body: asked(url, "/predict", body), bodies)
    assert wrong[0] == 422
    for (status, one), logits in zip(answers, wanted, strict=True):
        assert status == 200
        np.testing.assert_allclose(one["predictions"][0]["prediction"], logits, rtol=1e-5, atol=1e-6)
    # A sample that lacks modalities.
    status, found = asked(url, "/predict", {"samples": [{"age": samples[0]["age"]}]})
    assert status == 200


def test_schema_and_health(run: Path, url: str) -> None:
    assert asked(url, "/health") == (200, {"status": "ok", "run": "r"})
    status, schema = asked(url, "/schema")
    assert status == 200
    assert schema["properties"]["samples"]["maxItems"] == 40
    assert set(schema["properties"]["samples"]["items"]["properties"]) == {"words", "face", "age"}


@pytest.mark.parametrize(
    ("path", "body", "raw", "status", "line"),
    [
        ("/nothing", None, None, 404, "/nothing: not found; available: /predict, /schema, /health"),
        ("/predict", None, None, 405, "/predict: found GET; expected POST"),
        ("/schema", {}, None, 405, "/schema: found POST; expected GET"),
        ("/predict", None, b"{", 400, "the body is no JSON: "),
        ("/predict", None, b"[" * 100_000, 400, "the body is no JSON: "),
        ("/predict", None, b"\xff\xfe\xff", 400, "the body is no JSON: "),
        ("/predict", None, b"0" * (2**20 + 1), 413, "the body is larger than 1048576 bytes"),
        ("/predict", {"rows": []}, None, 422, 'expected {"samples": [...]}'),
        ("/predict", {"samples": []}, None, 422, "samples: expected a list with at least one sample"),
        ("/predict", {"samples": [{"age": [0] * 4}] * 41}, None, 413, "samples: found 41; expected at most 40"),
        ("/predict", {"samples": [{"size": 4}]}, None, 422, "sample 0: unknown size; expected words, face, age"),
        ("/predict", {"samples": [{"age": "x"}]}, None, 422, "sample 0, age: expected numbers in lists"),
    ],
)
def test_bad_requests(url: str, path: str, body: Any, raw: bytes | None, status: int, line: str) -> None:
    found, answer = asked(url, path, body, raw=raw)
    assert found == status
    assert answer["error"].startswith(line)
    assert "\n" not in answer["error"]
    assert asked(url, "/health")[0] == 200


def test_what_cannot_be_served_is_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["serve", str(tmp_path)]) == 2
    assert "expected the folder of a finished run" in capsys.readouterr().err
    assert command(["serve", str(run), "--port", "99999"]) == 2
    assert "cannot be listened at" in capsys.readouterr().err
    assert command(["serve", str(run), "--replicas", "0"]) == 2
    assert "replicas: found 0; expected a whole number of at least 1" in capsys.readouterr().err
