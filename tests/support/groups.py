"""Groups of gloo processes on this machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def in_group(size: int, work: Callable[..., None], *arguments: Any) -> None:
    """Calls `work(rank, size, *arguments)` in so many processes, with the environment that torchrun would give them.

    They meet at a store of this process, whose port the system chose: a port that is looked up first and used later may
    be another program's by then.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    mp.spawn(_member, args=(size, store.port, work, arguments), nprocs=size)


def _member(rank: int, size: int, port: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    torch.set_num_threads(1)
    work(rank, size, *arguments)
