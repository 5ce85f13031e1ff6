"""The section of the configuration for the training loop."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from cggm_ray.config.fields import at_least, check, one_of, option
from cggm_ray.core.errors import UsageError

PRECISIONS = ("fp32", "tf32", "bf16", "fp64")


ON_NONFINITE = ("stop", "skip")
STEPS = ("auto", "eager", "graph")
PRESET_NAMES = ("released", "quick", "good", "best")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of the training loop."""

    preset: str = option(
        "released",
        "what the other settings start from: released (the recipe as it is), quick (works on most features), good (quick, or "
        "what a search of --minutes and several seeds find better), best (an ensemble of those runs)",
    )
    minutes: float = option(
        10.0,
        "minutes that the presets good and best take: two thirds for the search, one third for the choice among its best "
        "trials",
        resume=True,
    )
    batch_size: int = option(64, "samples per optimizer step, over all workers; 0 chooses it by the size of the set")
    num_epochs: int = option(30, "passes over the training split", resume=True)
    min_steps: int | None = option(None, "least number of optimizer steps, with more passes if necessary")
    max_steps: int | None = option(None, "largest number of optimizer steps")
    valid_interval: int | None = option(
        None,
        "optimizer steps between two validations; on a small set several passes then count as one epoch, which is validated "
        "and saved; default one pass",
    )
    ema: float = option(
        0.0,
        "decay of an exponential moving average of the weights, which is validated and saved in their place; 0 for none",
    )
    find_lr: bool = option(False, "choose the learning rate by a short range test before training")
    linear_blend: str = option(
        "off",
        "add the predictions of a linear model on the same inputs to those of the network, with weights chosen on validation: "
        "on, off, or auto, which is on for a regression or exclusive classes from vectors and sequences and off where "
        "strategies are compared; or NETWORK:LINEAR:STRENGTH, such as 0.7:0.3:100, both weights and alpha of ridge regression "
        "or C of logistic regression; preset quick: auto",
        "ridge_blend",
        resume=True,
    )
    refit: float = option(
        0.0,
        "train on the training and the validation split together for this share of the steps, and test the last weights, once "
        "validation has decided everything; 0 for the training split alone; preset good: the share that its choice found",
    )
    seed: int = option(666, "seed of weights, sample order and dropout")
    select: str | None = option(None, "validation metric that chooses the best checkpoint; default the task's own")
    select_latest: bool = option(
        False, "of several epochs with the best validation metric keep the last, not the first"
    )
    patience: int | None = option(
        None, "early stopping: epochs without a better validation metric; default none", resume=True
    )
    precision: str = option(
        "fp32",
        "fp32; tf32 (fp32 whose products an NVIDIA GPU rounds to 10 bits); bf16 (autocast); fp64 (slower, to compare two "
        "curves to the last digits)",
        resume=True,
    )
    cudnn_benchmark: bool = option(
        False,
        "on a GPU let cuDNN time its convolutions first; the last bits of two runs may then differ",
        resume=True,
    )
    accumulate: int = option(
        1,
        "parts in which a worker takes its share of a batch, to save memory; more than 1 adds a forward pass",
        resume=True,
    )
    compile: bool = option(
        False,
        "compile the forward and backward pass of a step as one graph by torch.compile, with several workers or --accumulate "
        "encoders, fusion and guides one by one; takes minutes, so it is meant for long runs on a GPU",
        resume=True,
    )
    step: str = option(
        "auto",
        "on a GPU: graph records a whole step as one CUDA graph, with the same results to the bit and several times as fast "
        "for small networks; eager does not; auto records where it can and prints it",
        resume=True,
    )
    log_interval: int = option(30, "optimizer steps between two lines of progress", resume=True)
    save_every: int | None = option(
        None, "optimizer steps between two checkpoints within an epoch; default only between epochs", resume=True
    )
    on_nonfinite: str = option(
        "stop",
        "at a loss or gradient that is not finite: stop, or skip the step; 10 skipped steps in a row stop the run",
        resume=True,
    )
    deterministic: bool = option(
        False, "use only operations that give the same bits every time; slower on a GPU", resume=True
    )

    def __post_init__(self) -> None:
        at_least(self, "batch_size", 0)
        for name in ("num_epochs", "accumulate", "log_interval"):
            at_least(self, name, 1)
        for name in ("min_steps", "max_steps", "valid_interval", "save_every", "patience"):
            if getattr(self, name) is not None:
                at_least(self, name, 1)
        if self.min_steps is not None and self.max_steps is not None and self.min_steps > self.max_steps:
            raise UsageError(f"min_steps: found {self.min_steps}, more than max_steps {self.max_steps}")
        one_of(self, "preset", PRESET_NAMES)
        check(self.minutes > 0, self, "minutes", "a positive number")
        check(0 <= self.ema < 1, self, "ema", "a number in [0, 1)")
        check(0 <= self.refit <= 1, self, "refit", "a number in [0, 1]")
        one_of(self, "on_nonfinite", ON_NONFINITE)
        blends = self.linear_blend in ("auto", "on", "off") or self.linear_given is not None
        check(
            blends,
            self,
            "linear_blend",
            "auto, on, off, or NETWORK:LINEAR:STRENGTH, of which the first may be 0 and the others are positive",
        )
        at_least(self, "seed", 0)
        one_of(self, "precision", PRECISIONS)
        one_of(self, "step", STEPS)
        if self.deterministic and self.cudnn_benchmark:
            raise UsageError("cudnn_benchmark: given together with deterministic; expected one of them")

    @property
    def linear_given(self) -> tuple[float, float, float] | None:
        """Weights of the network and of the linear model, and its strength, where they are given.

        None where validation chooses them. A weight and alpha alone, `0.3:100`, are those of a ridge regression in an average.
        """
        try:
            found = [float(part) for part in self.linear_blend.split(":")]
        except ValueError:
            return None
        if len(found) == 2:
            found = [1 - found[0], *found]
        if len(found) != 3 or not all(map(math.isfinite, found)):
            return None
        network, linear, strength = found
        return (network, linear, strength) if network >= 0 and linear > 0 and strength > 0 else None

    @property
    def in_steps(self) -> bool:
        """Whether the number of epochs depends on the size of the set."""
        return any(value is not None for value in (self.min_steps, self.max_steps, self.valid_interval))

    def of_epochs(self, epochs: int) -> TrainConfig:
        """Returns the same settings with a length of so many passes, each of which is validated, and no budget of steps."""
        return replace(self, num_epochs=epochs, min_steps=None, max_steps=None, valid_interval=None)
