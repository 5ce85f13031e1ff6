"""What a service does with requests that are too large, too deep, too slow, or of other shapes; no cluster is started."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from feature_sets import arrays, as_npz, config

pytest.importorskip("ray.serve")

from cggm_ray.__main__ import main as command
from cggm_ray.commands.cli import main
from cggm_ray.core.package import package_digest
from cggm_ray.distributed.serve import service
from cggm_ray.distributed.serve.service import Service, ServiceOptions
from cggm_ray.engine.own_code import OwnCode

OPTIONS = ServiceOptions(body=2**20, samples=40, held=3 * 2**20, seconds=2.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    made = config(folder, as_npz(folder, arrays()), "words,age", target="label", split="part")
    assert main(made, ["--report", "false"]) == 0
    return folder / "runs" / "r"


@pytest.fixture
def replica(run: Path, monkeypatch: pytest.MonkeyPatch) -> Service:
    """A replica whose requests are predicted one by one, as Ray Serve's batches need its event loop."""

    def one_by_one(**options: Any) -> Any:
        def decorate(together: Any) -> Any:
            async def alone(samples: Any) -> Any:
                return (await together([samples]))[0]

            return alone

        return decorate

    monkeypatch.setattr(service.serve, "batch", one_by_one)
    return Service(run, OPTIONS, OwnCode(package=package_digest(), entries=()))


class Sent:
    """A request whose body comes in parts.

    Args:
        parts: of the body; a number is a pause in seconds.
    """

    method, url = "POST", SimpleNamespace(path="/predict")

    def __init__(self, parts: Sequence[bytes | float]) -> None:
        self._parts, self.read = parts, 0

    async def stream(self) -> AsyncIterator[bytes]:
        for part in self._parts:
            if isinstance(part, bytes):
                self.read += len(part)
                yield part
            else:
                await asyncio.sleep(part)


async def ask(replica: Service, sent: Sent) -> tuple[int, dict[str, Any]]:
    answer = await replica(sent)  # type: ignore[arg-type]
    return answer.status_code, json.loads(bytes(answer.body))


def asked(replica: Service, *parts: bytes | float) -> tuple[int, str]:
    status, answer = asyncio.run(ask(replica, Sent(parts)))
    return status, answer.get("error", "")


GOOD: dict[str, Any] = {"words": [[1.0] * 3] * 5, "age": [0.5] * 4}


def body(**values: Any) -> bytes:
    return json.dumps({"samples": [GOOD | values]}).encode()


@pytest.mark.parametrize(
    ("content", "status", "line"),
    [
        (body(), 200, ""),
        (b"", 400, "the body is no JSON"),
        (b'{"samples": ' + b"[" * 500_000, 400, "the body is no JSON"),
        (b'{"samples": ' + b'{"a":' * 100_000, 400, "the body is no JSON"),
        (b'{"samples": [{"age": ' + b"9" * 100_000 + b"}]}", 400, "the body is no JSON"),
        (
            b'{"samples": [{"age": ' + b"[" * 80 + b"1" + b"]" * 80 + b"}]}",
            422,
            "sample 0, age: expected numbers in lists",
        ),
        (b'{"samples": [{"age": [NaN, 1, 1, 1]}]}', 422, "sample 0, age: a number is not finite"),
        (b'{"samples": [{"age": [1e999, 1, 1, 1]}]}', 422, "sample 0, age: a number is not finite"),
        (b'{"samples": [{"age": [Infinity, 1, 1, 1]}]}', 422, "sample 0, age: a number is not finite"),
        (body(age=[0.5] * 5), 422, "samples of shape (5,); the run was trained on samples of shape (4,)"),
        (body(words=[[1.0] * 3, [1.0]]), 422, "sample 0, words: expected numbers in lists of equal length"),
        (body(words=[[[]] * 1000] * 50), 422, "sample 0, words: expected numbers in lists"),
        (body(age="0.5"), 422, "sample 0, age: expected numbers in lists"),
        (json.dumps({"samples": [GOOD] * 41}).encode(), 413, "samples: found 41; expected at most 40"),
        (json.dumps({"samples": [GOOD], "more": 1}).encode(), 422, 'expected {"samples": [...]}'),
    ],
)
def test_contents(replica: Service, content: bytes, status: int, line: str) -> None:
    found, said = asked(replica, content)
    assert (found, line in said) == (status, True), said
    assert "\n" not in said
    assert len(said) < 1000
    assert asked(replica, body())[0] == 200


def test_a_gigabyte_is_not_read(replica: Service) -> None:
    part = bytes(2**16)
    sent = Sent([part] * 2**14)
    tracemalloc.start()
    status, answer = asyncio.run(ask(replica, sent))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (status, answer["error"]) == (413, "the body is larger than 1048576 bytes (--max_body)")
    assert sent.read <= 2**20 + len(part)
    assert peak < 2**23


def test_many_bodies_at_once_are_not_held(replica: Service) -> None:
    """Each is allowed, and all together are not; what is over makes room again."""
    slow = [bytes(2**19), 0.5]

    async def many() -> list[int]:
        found = await asyncio.gather(*(ask(replica, Sent(slow)) for _ in range(8)))
        return [status for status, _ in found]

    statuses = asyncio.run(many())
    assert set(statuses) == {400, 503}
    assert statuses.count(503) == 2
    assert asked(replica, body())[0] == 200


def test_a_body_that_does_not_come(replica: Service) -> None:
    assert asked(replica, b'{"samples"', 5.0, b": []}") == (408, "the body did not come within 2 s (--max_seconds)")
    assert asked(replica, body())[0] == 200


def test_an_answer_that_does_not_come(replica: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(samples: Any) -> Any:
        await asyncio.sleep(60)

    monkeypatch.setattr(replica, "_batched", never)
    assert asked(replica, body()) == (504, "the samples were not predicted within 2 s (--max_seconds)")


@pytest.mark.parametrize("flag", ["max_body", "max_samples", "max_held", "max_seconds"])
def test_limits_are_positive(run: Path, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["serve", str(run), f"--{flag}", "0"]) == 2
    assert f"{flag}: found 0; expected a whole number of at least 1" in capsys.readouterr().err
