"""How busy the encoders are while Ray Data extracts the features of Food-101.

    python benchmarks/speed/extraction.py [--samples 64] [--hidden 768] [--layers 12]

Decoding runs in tasks, the encoders in a pool of actors. Each call of the encoders notes when it began and ended: utilisation
is the time inside these calls, over the time from an actor's first call to the end of its last; a shard is written between two
calls. The images are generated, 512 x 384 pixels as those of Food-101; ViT (224 pixels, patches of 16) and BERT are random, of
the size that the flags say.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
from food101_set import save_encoders, write_set

from cggm_ray.data.datasets.food101.food101_options import Food101Options
from cggm_ray.data.shards.shards import RawShard, Shard, Stage, Transform
from cggm_ray.distributed.cluster import connect
from cggm_ray.distributed.data.ingest import write_shards_with_ray
from cggm_ray.engine.assembly import prepare_data
from cggm_ray.engine.configuration import Config


class Noting:
    """An encoder that notes when it worked, on which process, in a file of its own.

    Args:
        make: of the encoder.
        folder: for the files.
    """

    def __init__(self, make: Callable[[], Transform], folder: Path) -> None:
        self._encode = make()
        self._file = folder / f"{os.getpid()}.jsonl"

    def __call__(self, table: pa.Table) -> pa.Table:
        """Encodes a table and appends its begin, end and number of rows to the file."""
        begun = time.monotonic()
        features = self._encode(table)
        with self._file.open("a") as file:
            file.write(json.dumps([begun, time.monotonic(), table.num_rows]) + "\n")
        return features


def write(stages: Sequence[Stage], raw: Sequence[RawShard], folder: Path, *, notes: Path) -> list[Shard]:
    """Writes the shards as `write_shards_with_ray` does, with encoders that note their times."""
    noting = [
        dataclasses.replace(stage, make=partial(Noting, stage.make, notes)) if stage.pooled else stage
        for stage in stages
    ]
    return write_shards_with_ray(noting, raw, folder)


def main() -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=64, help="training images")
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        vit, bert = save_encoders(folder, arguments.hidden, arguments.layers)
        notes = folder / "notes"
        notes.mkdir()
        options = Food101Options(vit=str(vit), bert=str(bert))
        flags = {
            "dataset": "food101",
            "data_path": str(write_set(folder / "set", arguments.samples)),
            "storage_path": str(folder / "runs"),
        }
        config = Config(options=options).replace(flags)
        connect()
        begun = time.monotonic()
        prepare_data(config, partial(write, notes=notes))
        whole = time.monotonic() - begun
        busy: dict[str, float] = defaultdict(float)
        spans = {path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in notes.iterdir()}
        for actor, calls in spans.items():
            busy[actor] = sum(end - start for start, end, _ in calls) / (calls[-1][1] - calls[0][0])
        samples = sum(rows for calls in spans.values() for _, _, rows in calls)
        inside = sum(end - start for calls in spans.values() for start, end, _ in calls)
    print(json.dumps({"calls": spans, "whole_s": whole}))
    print(
        f"{samples} samples in {whole:.1f} s, start of the actors included; {samples / inside * len(busy):.2f} samples/s"
    )
    for actor, share in busy.items():
        print(f"actor {actor}: {len(spans[actor])} calls, busy {share:.1%} of the time")


if __name__ == "__main__":
    main()
