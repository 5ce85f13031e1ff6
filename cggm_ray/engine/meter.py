"""Measurements of a run while it trains, for the bar of a terminal and for the metrics of Ray."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from cggm_ray.core.live import Clock, moved
from cggm_ray.engine.runtime import Runtime
from cggm_ray.engine.state import TrainState

T = TypeVar("T")


class Meter:
    """Measures an epoch of a worker. It reads numbers from the device only where they are shown.

    Attributes:
        samples: of the global batches so far.

    Args:
        runtime: receives the numbers.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.samples = 0
        self._runtime = runtime
        self._began = time.perf_counter()
        self._data = self._saves = 0.0
        self._clock = Clock()

    def waiting(self, batches: Iterable[T]) -> Iterator[T]:
        """Yields the batches, and measures how long the loop waits for them."""
        source = iter(batches)
        while True:
            start = time.perf_counter()
            try:
                batch = next(source)
            except StopIteration:
                return
            self._data += time.perf_counter() - start
            yield batch

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Measures how long the loop waits for saves and for the other workers between two steps."""
        start = time.perf_counter()
        yield
        self._saves += time.perf_counter() - start

    def show(self, state: TrainState, modalities: Sequence[str], steps: int, epochs: int) -> None:
        """Moves the bar of a terminal, at most twice a second; it reads no number where there is none.

        Args:
            state: of the run.
            modalities: their names in order.
            steps: of the epoch.
            epochs: of the run.
        """
        if not self._clock.due():
            return
        record, step = state.averages.read(modalities), state.position.steps
        seconds = max(1e-9, time.perf_counter() - self._began)
        best = (
            ""
            if state.best.value is None
            else f"  valid {state.best.metric} {state.best.value:.4f} at {state.best.epoch}"
        )
        loss = record.get("train/loss", math.nan)
        numbers = {name: record.get(f"coefficient/{name}") for name in modalities}
        told = "  ".join(f"{name} {value:.3g}" for name, value in numbers.items() if value is not None)
        moved(
            "training",
            state.epoch * steps + step,
            epochs * steps,
            f"epoch {state.epoch + 1}/{epochs}  step {step}/{steps}  loss {loss:.4f}{best}  "
            f"{self.samples / seconds:.0f} samples/s",
            f"coefficients  {told}" if told else "",
        )

    def tell(self, state: TrainState, modalities: Sequence[str]) -> None:
        """Gives the runtime the means of the epoch so far: loss, coefficients, speed, and shares of time that were waited.

        Args:
            state: of the run.
            modalities: their names in order.
        """
        if not self._runtime.measures:
            return
        seconds = max(1e-9, time.perf_counter() - self._began)
        self._runtime.measure(
            {
                **state.averages.read(modalities),
                "epoch": float(state.epoch + 1),
                "step": float(state.step),
                "samples_per_second": self.samples / seconds,
                "waits_for_data_seconds": self._data,
                "waits_between_steps_seconds": self._saves,
            }
        )
