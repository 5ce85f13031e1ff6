"""Counts the kernels of a training step that is compiled as one graph, on a machine without a GPU.

    python benchmarks/speed/compiled_kernels.py --datasets mosi --strategies none,cggm

The step is the package's own, forward and backward pass as `--compile` has them; clipping, the finite check and the optimizers,
which are not compiled, are not counted. Encoders of equal shape are called together, as on a GPU. `generated` are the kernels
that inductor writes, `extern` the calls of others that its program makes, such as products of matrices and attention. On a GPU
inductor joins other operations, so this is an estimate.
"""

from __future__ import annotations

import argparse
import re

import torch
import torch._inductor.config
from problems import PROBLEMS, Product, product
from torch._inductor.utils import run_and_get_code

from cggm_ray.core.tables import text_table
from cggm_ray.models.sequence import SequenceNet

GENERATED = re.compile(r"^\s+(?:cpp_fused\w*|kernel_cpp_\d+)\(", re.M)
EXTERN = re.compile(r"^\s+(?:\w+ = )?(?:extern_kernels\.|torch\.ops\.|aten\.)", re.M)
"""Calls in the programs that inductor writes for a CPU."""


def counts(made: Product) -> tuple[int, int]:
    """Returns how many kernels of inductor, and how many of others, forward and backward pass of a step have."""
    if isinstance(made.state.net, SequenceNet):
        made.state.net.together = True
    made.step.compile_whole(len(made.batch), print)

    def losses() -> None:
        task_loss, extra, _ = made.step(made.batch)
        (task_loss + extra).backward()

    _, programs = run_and_get_code(losses)
    calls = "\n".join(text[text.index("def call(") :] for text in programs)
    return len(GENERATED.findall(calls)), len(EXTERN.findall(calls))


def main() -> None:
    """Prints a row for every dataset and strategy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", default="mosi", help="names, with commas between them")
    parser.add_argument("--strategies", default="none,cggm", help="names, with commas between them")
    arguments = parser.parse_args()
    rows = []
    for dataset in arguments.datasets.split(","):
        for strategy in arguments.strategies.split(","):
            torch._dynamo.reset()
            with torch._inductor.config.patch(force_disable_caches=True):
                generated, extern = counts(product(PROBLEMS[dataset], {"modulation": strategy}))
            rows.append([dataset, strategy, generated, extern, generated + extern])
            print(*rows[-1], flush=True)
    print(text_table(rows, ["dataset", "strategy", "generated", "extern", "all"], markdown=True))


if __name__ == "__main__":
    main()
