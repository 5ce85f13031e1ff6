"""The peak of a process's memory, which a run reports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cggm_ray.core import memory
from cggm_ray.core.memory import OF_THE_PROCESS, forget_peak, peak_memory

CPU = torch.device("cpu")


ANEW = """
import torch
from cggm_ray.core.memory import forget_peak, peak_memory

cpu = torch.device("cpu")
for size in (2**26, 2**25):
    forget_peak(cpu)
    torch.ones(size)
    print(peak_memory(cpu))
"""
"""In a process of its own: other threads and what an allocator has kept would count too."""


@pytest.mark.skipif(not (OF_THE_PROCESS / "clear_refs").exists(), reason="this system does not say")
def test_the_peak_begins_anew() -> None:
    shown = subprocess.run([sys.executable, "-c", ANEW], capture_output=True, text=True, check=True).stdout
    with_256, with_128 = map(float, shown.split())
    # A process that did not forget would say the first peak again.
    assert 64 < with_256 - with_128 < 192


def test_a_system_that_does_not_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "OF_THE_PROCESS", tmp_path / "missing")
    forget_peak(CPU)
    assert peak_memory(CPU) is None
