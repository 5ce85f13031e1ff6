"""A table of audio and video files from raw files to a tested checkpoint, decoded in Ray Data tasks: time and memory.

    python benchmarks/scale/media_table.py --clips 400 --out media

Tones and films are generated: the pitch of a tone tells one bit of the class, the direction of a fade in a film the other. The
memory is the largest proportional set size of a process that decodes, trains or drives the run, sampled twice a second.

    python benchmarks/scale/media_table.py --clips 100 --inside 20 --steps 30 --out inside     # bytes in a parquet file
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import av
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

KINDS = {"driver": "cggm_ray train table", "decoding task": "ray::MapBatches", "worker": "ray::RayTrainWorker"}
"""What processes do, and what stands in their command line."""
RATE, SECONDS, SIDE, FRAMES = 16_000, 4.0, 128, 50


def tone(path: Path, hertz: float) -> None:
    """Writes a tone under noise, as WAV."""
    time_ = np.arange(int(RATE * SECONDS)) / RATE
    noise = np.random.default_rng(int(hertz)).normal(0, 0.05, len(time_))
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * hertz * time_) + noise, RATE)


def film(path: Path, ends: tuple[int, int], seed: int) -> None:
    """Writes a fade under noise, as MP4."""
    random = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for level in np.linspace(*ends, FRAMES):
            picture = np.clip(random.normal(level, 20, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def write_clips(folder: Path, clips: int) -> int:
    """Writes the table and its files; returns the bytes of the files."""
    (folder / "media").mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    with (folder / "clips.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("sound", "film", "label"))
        for number in range(clips):
            bits = number % 4
            names = f"media/{number:05d}.wav", f"media/{number:05d}.mp4"
            tone(folder / names[0], (400, 900)[bits // 2] * random.uniform(0.8, 1.2))
            film(folder / names[1], ((60, 180), (180, 60))[bits % 2], number)
            writer.writerow((*names, "abcd"[bits]))
    return sum(path.stat().st_size for path in (folder / "media").iterdir())


def into_parquet(folder: Path, times: int) -> Path:
    """Writes the clips as bytes in the columns of a parquet file, each so many times; returns its path."""
    with (folder / "clips.csv").open() as file:
        rows = list(csv.DictReader(file))
    columns = {name: [(folder / row[name]).read_bytes() for row in rows] for name in ("sound", "film")}
    part = pa.table({**columns, "label": [row["label"] for row in rows]})
    path = folder / "clips.parquet"
    with pq.ParquetWriter(path, part.schema, use_dictionary=False, compression="none") as writer:
        for _ in range(times):
            writer.write_table(part)
    return path


def memory(driver: psutil.Process, kinds: Mapping[str, str] = KINDS) -> dict[str, int]:
    """Returns the largest proportional set size in bytes by the kind of process, of a driver and of what it has started."""
    found: dict[str, int] = {}
    for process in [driver, *driver.children(recursive=True)]:
        try:
            name, size = " ".join(process.cmdline()), process.memory_full_info().pss
        except psutil.Error:
            continue
        kind = next((kind for kind, mark in kinds.items() if mark in name), None)
        if kind is not None:
            found[kind] = max(found.get(kind, 0), size)
    return found


def main() -> None:
    """Generates the clips, runs the recipe on Ray, and prints time and memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=400)
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps at most")
    parser.add_argument("--out", type=Path, default=Path("media"))
    parser.add_argument("--inside", type=int, default=0, help="put the files into a parquet file, each so many times")
    given = parser.parse_args()
    size, path = write_clips(given.out, given.clips), given.out / "clips.csv"
    print(f"{given.clips} clips of {SECONDS:g} s, {size / 2**20:.1f} MiB of files")
    if given.inside:
        path = into_parquet(given.out, given.inside)
        print(f"{path.stat().st_size / 2**20:.1f} MiB in {path.name}")
    flags = [
        "--data_path",
        str(path),
        "--storage_path",
        str(given.out / "runs"),
        "--name",
        "clips",
        "--fresh",
    ]
    command = [
        sys.executable,
        "-m",
        "cggm_ray",
        "train",
        "table",
        *flags,
        "--max_steps",
        str(given.steps),
        "--report",
        "false",
    ]
    start, most = time.monotonic(), dict[str, int]()
    with (given.out / "log.txt").open("w") as log:
        run = subprocess.Popen([*command, "--headroom", "false"], stdout=log, stderr=subprocess.STDOUT)
        while run.poll() is None:
            for kind, value in memory(psutil.Process(run.pid)).items():
                most[kind] = max(most.get(kind, 0), value)
            time.sleep(0.5)
    print("".join(line for line in (given.out / "log.txt").open() if "accuracy  " in line).rstrip())
    print(f"exit code {run.returncode}, {time.monotonic() - start:.0f} s")
    for kind, value in sorted(most.items(), key=lambda item: -item[1]):
        print(f"{kind:<40} {value / 2**20:8.0f} MiB")


if __name__ == "__main__":
    main()
