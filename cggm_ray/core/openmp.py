"""How the threads of OpenMP wait for each other. It is imported before torch, whose OpenMP reads the environment once.

By default a thread that waits keeps its core busy for milliseconds. Where another process needs that core, the threads of a
step wait for the scheduler of the system again and again, and training may be many times slower. A thread that sleeps after
`ROUNDS` leaves its core to the others; on an idle machine that costs some per cent (`benchmarks/speed/busy.py`).
"""

from __future__ import annotations

import os

ROUNDS = 3000
"""Rounds that a thread waits before it sleeps; OpenMP's own default is 300,000."""
SPINS = "GOMP_SPINCOUNT"
GIVEN = (SPINS, "OMP_WAIT_POLICY")
"""Variables by which a person says how threads wait."""

if not any(name in os.environ for name in GIVEN):
    os.environ[SPINS] = str(ROUNDS)
