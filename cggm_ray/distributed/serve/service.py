"""The HTTP service of a run: POST /predict, GET /schema, GET /health, by Ray Serve.

Requests that come at the same time are predicted in one batch. Bad input is answered by a status of 4xx and one line.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cggm_ray.core.errors import CggmError, DataError, one_line
from cggm_ray.data.requests.base import Sample
from cggm_ray.distributed.serve.predictor import Answer, Predictor
from cggm_ray.engine.own_code import OwnCode, adopt
from cggm_ray.storage.mirror import mirror_of

T = TypeVar("T")
ROUTES = {"/predict": "POST", "/schema": "GET", "/health": "GET"}


@dataclass(frozen=True, kw_only=True)
class ServiceOptions:
    """What a service may do.

    Attributes:
        replicas: processes that hold the network.
        cpus: of each, whole.
        gpus: of each, 0 or 1.
        body: largest body of a request in bytes.
        samples: most samples of a request.
        batch: most requests that are predicted together.
        wait: seconds that a request waits for others.
        queue: most requests that a replica holds; more are answered by 503.
        held: most bytes of bodies that a replica holds at once; a body beyond it is answered by 503.
        seconds: that a body may take to come, and that its answer may take after it.
    """

    replicas: int = 1
    cpus: int = 1
    gpus: int = 0
    body: int = 16 * 2**20
    samples: int = 256
    batch: int = 32
    wait: float = 0.005
    queue: int = 256
    held: int = 64 * 2**20
    seconds: float = 60.0


class Refusal(Exception):
    """A request that is not answered.

    Args:
        status: of HTTP.
        reason: one line.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class Service:
    """A replica.

    Args:
        folder: of the run.
        options: of the service.
        own: entries from user files.
    """

    def __init__(self, folder: Path, options: ServiceOptions, own: OwnCode) -> None:
        adopt(own)
        torch.set_num_threads(max(1, options.cpus))
        mirror_of(folder).join()
        self._options, self._name, self._held = options, folder.name, 0
        predictor = Predictor(folder, gpu=options.gpus > 0)

        async def together(requests: list[Any]) -> list[Any]:
            # In a thread, so that the replica goes on answering health checks.
            return await asyncio.to_thread(predictor.each, requests)

        decorate: Any = serve.batch(max_batch_size=options.batch, batch_wait_timeout_s=options.wait)
        self._predictor, self._batched = predictor, decorate(together)

    async def __call__(self, request: Request) -> Response:
        """Answers a request."""
        try:
            return JSONResponse(await self._respond(request))
        except Refusal as refusal:
            allowed = {"Allow": ROUTES[request.url.path]} if refusal.status == 405 else None
            return JSONResponse({"error": refusal.reason}, refusal.status, allowed)
        except CggmError as error:
            return JSONResponse({"error": str(error)}, 500)

    async def _respond(self, request: Request) -> dict[str, Any]:
        path = request.url.path
        if path not in ROUTES:
            raise Refusal(404, f"{one_line(path)}: not found; available: {', '.join(ROUTES)}")
        if request.method != ROUTES[path]:
            raise Refusal(405, f"{path}: found {one_line(request.method)}; expected {ROUTES[path]}")
        if path == "/health":
            return {"status": "ok", "run": self._name}
        if path == "/schema":
            return self._predictor.form.schema(self._options.samples)
        taken = [0]
        try:
            samples = self._samples(await self._timely(self._body(request, taken), 408, "the body did not come"))
            answers: list[Answer] | DataError = await self._timely(
                self._batched(samples), 504, "the samples were not predicted"
            )
        finally:
            # The parsed samples, which are larger than the body, are held as long.
            self._held -= taken[0]
        if isinstance(answers, DataError):
            raise Refusal(422, str(answers))
        return {"predictions": answers}

    async def _timely(self, awaited: Awaitable[T], status: int, what: str) -> T:
        """Returns what is awaited, or refuses the request where it takes too long."""
        try:
            return await asyncio.wait_for(awaited, self._options.seconds)
        except TimeoutError:
            raise Refusal(status, f"{what} within {self._options.seconds:g} s (--max_seconds)") from None

    async def _body(self, request: Request, taken: list[int]) -> bytes:
        """Reads the body, but never more of it than is allowed; `taken` counts its bytes among those that the replica holds."""
        parts = []
        async for part in request.stream():
            if taken[0] + len(part) > self._options.body:
                raise Refusal(413, f"the body is larger than {self._options.body} bytes (--max_body)")
            if self._held + len(part) > self._options.held:
                raise Refusal(
                    503, f"the requests at this moment hold {self._options.held} bytes (--max_held); try again"
                )
            taken[0] += len(part)
            self._held += len(part)
            parts.append(part)
        return b"".join(parts)

    def _samples(self, body: bytes) -> list[Sample]:
        try:
            content = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise Refusal(400, f"the body is no JSON: {one_line(str(error))}") from None
        if not isinstance(content, dict) or set(content) != {"samples"}:
            raise Refusal(422, 'expected {"samples": [...]}; GET /schema says what a sample is')
        try:
            samples = self._predictor.form.check(content["samples"])
        except DataError as error:
            raise Refusal(422, str(error)) from None
        if len(samples) > self._options.samples:
            raise Refusal(
                413, f"samples: found {len(samples)}; expected at most {self._options.samples} (--max_samples)"
            )
        return samples


def application(folder: Path, options: ServiceOptions, own: OwnCode) -> serve.Application:
    """Returns the service of a run as an application of Ray Serve, for `serve.run` or a configuration of your own.

    Args:
        folder: of the run, on storage that all nodes share.
        options: of the service.
        own: entries from user files (`engine.own_code.entries`).
    """
    deployed: Any = serve.deployment(
        name="cggm",
        num_replicas=options.replicas,
        max_ongoing_requests=options.queue,
        max_queued_requests=options.queue,
        ray_actor_options={"num_cpus": options.cpus, "num_gpus": options.gpus},
    )(Service)
    found: serve.Application = deployed.bind(folder, options, own)
    return found
