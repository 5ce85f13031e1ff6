"""Memory of a conversion of raw features that are far larger than the memory it may take.

    python benchmarks/scale/conversion.py                    # 4 GiB of parquet, then 4 GiB of npz
    python benchmarks/scale/conversion.py --gib 0.1          # a minute, to see that it works
    python benchmarks/scale/conversion.py --local            # without Ray

Writes random features: a text [50, 64], audio [50, 32] and vision [50, 32] in float32, as npz, and as parquet with tensors in
eight files of one row group each, which is the hard case, because a row group is decoded from its beginning. Another process
converts them on a cluster that it starts. Four times a second the resident memory of that process (the driver) is read, and the
proportional memory of it and all its descendants (the node: Ray's processes, workers, object store), where shared pages count
once. At the end the raylet says what it has spilled.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.lib import format as npy

SHAPES = {"text": (50, 64), "audio": (50, 32), "vision": (50, 32)}
SAMPLE_BYTES = sum(4 * int(np.prod(shape)) for shape in SHAPES.values())
ROWS = 1000
FILES = 8
MIB = 2**20
DRIVER = """
import sys
import ray
from cggm_ray.engine.assembly import prepare_data
from cggm_ray.engine.configuration import Config
from cggm_ray.data.settings import DataConfig
from cggm_ray.data.datasets.features import FeatureOptions
from cggm_ray.engine.runtime import RunConfig
raw, out, where = sys.argv[1:]
config = Config(
    data=DataConfig(dataset="features", data_path=raw), run=RunConfig(storage_path=out), options=FeatureOptions()
)
if where == "local":
    from cggm_ray.data.shards.shards import write_shards_here
    print(prepare_data(config, write_shards_here))
else:
    from cggm_ray.distributed.train.launch import prepare_on_ray
    print(prepare_on_ray(config))
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address
    stats = get_memory_info_reply(get_state_from_address(ray.get_runtime_context().gcs_address)).store_stats
    print(f"spilled {stats.spilled_bytes_total} bytes")
"""


def blocks(name: str, samples: int) -> Iterator[np.ndarray]:
    """Yields the values of a modality, some rows at a time."""
    random = np.random.default_rng(sorted(SHAPES).index(name))
    for start in range(0, samples, ROWS):
        yield random.standard_normal((min(ROWS, samples - start), *SHAPES[name]), dtype=np.float32)


def labels(samples: int) -> np.ndarray:
    """Returns a class for each sample."""
    return np.random.default_rng(9).integers(0, 5, samples)


def write_npz(folder: Path, samples: int) -> Path:
    """Writes one .npz file as np.savez does, without holding it in memory."""
    path = folder / "raw.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, shape in {**SHAPES, "label": ()}.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                kind = np.dtype(np.float32 if shape else np.int64)
                header = {"descr": kind.str, "fortran_order": False, "shape": (samples, *shape)}
                npy.write_array_header_1_0(file, header)
                for block in blocks(name, samples) if shape else [labels(samples)]:
                    file.write(block.tobytes())
    return path


def write_parquet(folder: Path, samples: int) -> Path:
    """Writes eight parquet files with tensors, each with one row group."""
    target = folder / "raw"
    target.mkdir()
    streams = [blocks(name, samples) for name in SHAPES]
    classes, done = labels(samples), 0
    for number in range(FILES):
        rows, parts = samples * (number + 1) // FILES - done, []
        while rows > 0 and done < samples:
            values = [next(stream) for stream in streams]
            columns = [pa.FixedShapeTensorArray.from_numpy_ndarray(value) for value in values]
            count = len(values[0])
            parts.append(pa.table([*columns, classes[done : done + count]], names=[*SHAPES, "label"]))
            done, rows = done + count, rows - count
        if parts:
            table = pa.concat_tables(parts)
            pq.write_table(table, target / f"part-{number}.parquet", row_group_size=table.num_rows)
    return target


def memory(driver: psutil.Process) -> tuple[float, float]:
    """Returns the resident memory of a process and the proportional memory of it and its descendants, in MiB."""
    own = driver.memory_info().rss / MIB
    total = 0.0
    for process in [driver, *driver.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss / MIB
        except psutil.Error:
            continue
    return own, total


def convert(raw: Path, out: Path, where: str) -> None:
    """Converts in another process and prints what it took."""
    begun, own, total = time.monotonic(), 0.0, 0.0
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(raw), str(out), where], stdout=subprocess.PIPE, text=True
    )
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            seen = memory(watched)
        except psutil.Error:
            break
        own, total = max(own, seen[0]), max(total, seen[1])
        time.sleep(0.25)
    output, _ = process.communicate()
    if process.returncode:
        sys.exit(f"the conversion ended with {process.returncode}")
    size = sum(file.stat().st_size for file in ([raw] if raw.is_file() else raw.iterdir()))
    spilled = next((line for line in output.splitlines() if line.startswith("spilled")), "no object store")
    print(
        f"{raw.suffix or '.parquet'} of {size / MIB:.0f} MiB: driver {own:.0f} MiB, node {total:.0f} MiB, {spilled}, "
        f"{time.monotonic() - begun:.0f} s",
        flush=True,
    )


def main() -> None:
    """Converts both kinds and prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=4.0, help="size of the raw files")
    parser.add_argument("--kinds", default="parquet,npz")
    parser.add_argument("--local", action="store_true", help="convert without Ray")
    parser.add_argument("--folder", type=Path, help="for the raw files and the shards; default a temporary one")
    arguments = parser.parse_args()
    samples = int(arguments.gib * 2**30 / SAMPLE_BYTES)
    for kind in arguments.kinds.split(","):
        folder = Path(tempfile.mkdtemp(prefix="conversion_", dir=arguments.folder))
        try:
            raw = {"npz": write_npz, "parquet": write_parquet}[kind](folder, samples)
            convert(raw, folder / "out", "local" if arguments.local else "ray")
        finally:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
