"""The section of the configuration for the training loop."""

from __future__ import annotations

from dataclasses import dataclass

from cggm_ray.config.fields import at_least, one_of, option

PRECISIONS = ("fp32", "bf16")


ON_NONFINITE = ("stop", "skip")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of the training loop."""

    batch_size: int = option(64, "samples per optimizer step, over all workers")
    num_epochs: int = option(30, "passes over the training split", resume=True)
    seed: int = option(666, "seed of weights, sample order and dropout")
    select: str | None = option(None, "validation metric that chooses the best checkpoint; default the task's own")
    patience: int | None = option(None, "stop after so many epochs without a better validation metric", resume=True)
    precision: str = option("fp32", "fp32, or bf16 for autocast", resume=True)
    accumulate: int = option(
        1,
        "parts in which a worker takes its share of a batch, to save memory; more than 1 adds a forward pass",
        resume=True,
    )
    compile: bool = option(
        False,
        "torch.compile encoders, fusion and guides; minutes at the start, meant for long runs on a GPU",
        resume=True,
    )
    log_interval: int = option(30, "optimizer steps between two lines of progress", resume=True)
    save_every: int | None = option(
        None, "optimizer steps between two checkpoints within an epoch; default only between epochs", resume=True
    )
    on_nonfinite: str = option(
        "stop", "at a loss or gradient that is not finite: stop, or skip the step (10 in a row stop)", resume=True
    )
    deterministic: bool = option(
        False, "only operations that give the same bits every time; slower on a GPU", resume=True
    )

    def __post_init__(self) -> None:
        for name in ("batch_size", "num_epochs", "accumulate", "log_interval"):
            at_least(self, name, 1)
        if self.save_every is not None:
            at_least(self, "save_every", 1)
        one_of(self, "on_nonfinite", ON_NONFINITE)
        at_least(self, "seed", 0)
        if self.patience is not None:
            at_least(self, "patience", 1)
        one_of(self, "precision", PRECISIONS)
