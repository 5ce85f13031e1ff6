"""The memory that this process, or the GPU that it uses, has held at most."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch

MIB = 2**20
OF_THE_PROCESS = Path("/proc/self")
FORGET = "5"
"""What the kernel takes as: the largest size from now on."""


def forget_peak(device: torch.device) -> None:
    """Has `peak_memory` say what is held at most from now on, where the system can.

    Args:
        device: of the run.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        (OF_THE_PROCESS / "clear_refs").write_text(FORGET)


def peak_memory(device: torch.device) -> float | None:
    """Returns the MiB that were held at most: of tensors on a GPU, or resident in this process with a CPU.

    None where the system does not say. What the process held before, libraries included, counts on a CPU.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    try:
        lines = (OF_THE_PROCESS / "status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), None)
