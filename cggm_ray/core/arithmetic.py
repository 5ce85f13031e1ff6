"""In how many digits numbers are held and multiplied."""

from __future__ import annotations

import torch
from torch import Tensor


def choose_arithmetic(*, tf32: bool, benchmark: bool) -> None:
    """Sets torch's switches for matrix products and convolutions on NVIDIA GPUs, for the whole process; a CPU ignores them.

    torch itself leaves TF32 off for matrix products and on for convolutions.

    Args:
        tf32: round the factors of products to 10 bits of mantissa, which the matrix units need; sums stay in single precision.
        benchmark: let cuDNN time its algorithms for every new shape. Which one wins may differ from run to run, and with it
            the last bits.
    """
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = benchmark


def in_precision(x: Tensor) -> Tensor:
    """Returns a tensor in float32 at least: a number in bfloat16 has two digits."""
    return x.float() if x.dtype.itemsize < 4 else x
