"""The peak of a process's memory, which a run reports."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cggm_ray.core import memory
from cggm_ray.core.memory import OF_THE_PROCESS, forget_peak, peak_memory

CPU = torch.device("cpu")


@pytest.mark.skipif(not (OF_THE_PROCESS / "clear_refs").exists(), reason="this system does not say")
def test_the_peak_begins_anew() -> None:
    torch.ones(2**26)
    forget_peak(CPU)
    before = peak_memory(CPU)
    torch.ones(2**25)
    after = peak_memory(CPU)
    assert before is not None
    assert after is not None
    # 128 MiB, of which the allocator may have had some.
    assert before + 64 < after < before + 192
    forget_peak(CPU)
    assert (peak_memory(CPU) or 0.0) < after - 64


def test_a_system_that_does_not_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "OF_THE_PROCESS", tmp_path / "missing")
    forget_peak(CPU)
    assert peak_memory(CPU) is None
