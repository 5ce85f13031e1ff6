"""Serves a finished run over HTTP until a signal comes."""

from __future__ import annotations

import logging
import signal
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from cggm_ray.core.errors import CggmError, TrainingError, UsageError, one_line
from cggm_ray.core.optional import check_installed
from cggm_ray.engine.own_code import own_code

if TYPE_CHECKING:
    from cggm_ray.distributed.serve.service import ServiceOptions

PACKAGES = ("starlette", "uvicorn", "fastapi", "aiohttp")
"""What Ray Serve needs beside Ray."""


def check_serve() -> None:
    """Raises a MissingPackageError if a package that Ray Serve needs is not installed."""
    check_installed(*PACKAGES, extra="serve", purpose="serve")


def serve_run(folder: Path, host: str, port: int, options: ServiceOptions) -> None:
    """Starts the service, prints its address, and waits for SIGINT or SIGTERM.

    Args:
        folder: of the run.
        host: address to listen at.
        port: 0 for a free one.
        options: of the service.

    Raises:
        UsageError: there is no finished run, it cannot be served, or the port is taken.
        TrainingError: the checkpoint is damaged, or Ray Serve cannot start the service.
    """
    from ray import serve
    from ray.serve.schema import LoggingConfig

    from cggm_ray.distributed.cluster import connect, own_error
    from cggm_ray.distributed.serve.predictor import Predictor
    from cggm_ray.distributed.serve.service import application
    from cggm_ray.runs.finished import read_run

    folder = folder.absolute()
    config, _ = read_run(folder)
    port = _checked(host, port)
    # Whatever is wrong with the run is said here, in one line, before a cluster is started.
    Predictor(folder)
    connect()
    over = threading.Event()
    before = {one: signal.signal(one, lambda *_: over.set()) for one in (signal.SIGINT, signal.SIGTERM)}
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    try:
        serve.start(http_options={"host": host, "port": port}, logging_config=quiet)
        serve.run(application(folder, options, own_code(config)), name="cggm", route_prefix="/", logging_config=quiet)
        print(f"http://{host}:{port} answers POST /predict, GET /schema and GET /health, until Ctrl-C", flush=True)
        over.wait()
    except CggmError:
        raise
    except Exception as error:
        raise own_error(error) or TrainingError(f"serve: {type(error).__name__}: {one_line(str(error))}") from error
    finally:
        serve.shutdown()
        for one, handler in before.items():
            signal.signal(one, handler)


def _checked(host: str, port: int) -> int:
    """Returns the port, or a free one for 0; raises a UsageError where the address cannot be listened at."""
    try:
        with socket.create_server((host, port)) as found:
            return int(found.getsockname()[1])
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"port: {host}:{port} cannot be listened at: {reason}; --port 0 takes a free one") from None
