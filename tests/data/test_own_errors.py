"""An error of this package is found in what Ray makes of it."""

from __future__ import annotations

import pytest

cluster = pytest.importorskip("cggm_ray.distributed.cluster")

from cggm_ray.core.errors import DataError, UsageError  # noqa: E402

TEXT = """The actor died because of an error raised in its creation task, ray::MapWorker(MapBatches(Predictor)).__init__()
  File "opening.py", line 275, in open_set
cggm_ray.core.errors.DataError: set/manifest.json: cannot be read: 503 Service Unavailable"""


def test_it_may_be_a_cause() -> None:
    error = RuntimeError("of Ray")
    error.__cause__ = UsageError("workers: found 3")
    assert cluster.own_error(error) is error.__cause__


def test_it_may_be_a_text() -> None:
    found = cluster.own_error(RuntimeError(TEXT))
    assert type(found) is DataError
    assert str(found) == "set/manifest.json: cannot be read: 503 Service Unavailable"


@pytest.mark.parametrize(
    "text", ["no error of ours", "cggm_ray.core.errors.one_line: x", "cggm_ray.core.errors.Path: x"]
)
def test_other_texts_are_none(text: str) -> None:
    assert cluster.own_error(RuntimeError(text)) is None


def test_of_a_traceback_the_last_line_is_said() -> None:
    text = (
        "Training failed due to controller error:\n\x1b[36mray::execute._setup_torch_process_group()\x1b[39m (pid=1)\n"
        '  File "distributed_c10d.py", line 2181, in _new_process_group_helper\n    raise RuntimeError("no NCCL")\n'
        "RuntimeError: Distributed package doesn't have NCCL built in\n"
    )
    wanted = "RuntimeError: Distributed package doesn't have NCCL built in"
    assert cluster.what_failed(RuntimeError(text)) == wanted
    assert cluster.what_failed(RuntimeError("The actor died.\n\tclass_name: A")) == "The actor died.\n\tclass_name: A"
    assert cluster.what_failed(RuntimeError()) == "RuntimeError"
