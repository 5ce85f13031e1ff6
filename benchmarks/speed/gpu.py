"""All checks and measurements on a GPU in one go; needs torch, numpy, pyarrow, safetensors and PyYAML, and no Ray.

    python benchmarks/speed/gpu.py [--json FILE] [--budget 480] [--parts waits,steps] [--checks_at_once 8] [--data FOLDER]
    python benchmarks/speed/gpu.py --device cpu --tiny

The second form rehearses everything on the CPU in small sizes. Every part runs in a process of its own, within its own time: a
part that fails or hangs says so in one line and the next one starts. The file is written after every part. With
`--checks_at_once N`, up to N of the parts that check and measure nothing run at a time, and the others then one by one.

    waits           which strategies wait for the device within a step, on every network
    agreement       losses and gradient norms on the CPU and on the device, float64 and float32, without dropout
    graph           recorded steps against eager ones, by bits, for every strategy and network
    steps           milliseconds of a step: plain, none, cggm, cggm-released; eager and as one CUDA graph; float32 and bf16
    one stream      milliseconds of a recorded step, with branches on streams of their own and on a single stream
    profile         kernels of a step and those that take most time
    epoch           a step of the real `train_epoch` against the bare step
    resume          ten steps against five, a checkpoint and five more, by bits
    data parallel   DistributedDataParallel in a process group of one (NCCL) against the bare step, by bits
    commands        train, continue, verify, predict and export on the data of --data
    compiled run    a run with --compile, stopped and continued
    extraction      samples a second through frozen encoders as large as ViT-B and BERT-base (needs transformers)
    recorded runs   whole runs with recorded and with eager steps, by bits; BraTS
    streamed        a run whose samples come from shards while it trains, against one whose samples lie on the device
    saves           how long a save of 200 MB stops training
    brats           BraTS at 160 x 160 in bf16, with its share of the card's peak and its memory
    compiled        milliseconds of a compiled step, and how long compiling takes
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
SECONDS = {
    "waits": 120,
    "agreement": 150,
    "graph": 180,
    "steps": 60,
    "one stream": 90,
    "profile": 30,
    "epoch": 30,
    "resume": 40,
    "data parallel": 30,
    "commands": 150,
    "compiled run": 240,
    "extraction": 60,
    "recorded runs": 75,
    "streamed": 60,
    "saves": 60,
    "brats": 60,
    "compiled": 400,
}
"""Most seconds of every part, in the order in which they run."""
MEASUREMENTS = ("steps", "one stream", "profile", "epoch", "extraction", "streamed", "saves", "brats", "compiled")
"""Parts whose figures other work would change."""
RESERVE = 5.0
"""Seconds that a part has beyond its own time before it is ended."""


def parse() -> argparse.Namespace:
    """Returns the flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=480, help="seconds for everything")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--parts", help="names, with commas between them; default all")
    parser.add_argument("--checks_at_once", type=int, default=1, metavar="N", help="parts that only check, at a time")
    parser.add_argument("--data", type=Path, help="folder with mosi/ and brats/ for the part 'commands'")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small sizes, for a rehearsal")
    parser.add_argument("--part", nargs=3, metavar=("NAME", "SECONDS", "FILE"), help=argparse.SUPPRESS)
    return parser.parse_args()


def parts() -> dict[str, Callable[..., None]]:
    """Returns the parts by name."""
    import gpu_checks
    import gpu_times

    return {
        "waits": gpu_checks.waits,
        "agreement": gpu_checks.agreement,
        "graph": gpu_checks.graph,
        "steps": gpu_times.steps,
        "one stream": gpu_times.one_stream,
        "profile": gpu_times.profile,
        "epoch": gpu_times.epoch,
        "resume": gpu_checks.resume,
        "data parallel": gpu_checks.data_parallel_alone,
        "commands": gpu_checks.commands,
        "compiled run": gpu_checks.compiled_run,
        "extraction": gpu_checks.extraction,
        "recorded runs": gpu_checks.recorded_runs,
        "streamed": gpu_checks.streamed,
        "saves": gpu_times.saves,
        "brats": gpu_times.brats,
        "compiled": gpu_times.compiled,
    }


def run_part(arguments: argparse.Namespace) -> None:
    """Runs one part in this process, and writes what it found, whether it ends or fails."""
    from gpu_where import Where, first_line

    name, seconds, file = arguments.part
    where = Where(arguments.device, arguments.tiny, arguments.data, time.perf_counter(), float(seconds))

    class Kept(dict[str, Any]):
        """Results that are on the disk as soon as they are there."""

        def __setitem__(self, key: str, value: Any) -> None:
            super().__setitem__(key, value)
            Path(file).write_text(json.dumps(self))

    results = Kept()
    try:
        parts()[name](where, results)
    except Exception as error:
        results["error"] = first_line(error)


def start_part(arguments: argparse.Namespace, name: str, seconds: float) -> dict[str, Any]:
    """Runs one part in a process of its own and returns its results."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "results.json"
        command = [sys.executable, __file__, "--device", arguments.device]
        command += ["--tiny"] if arguments.tiny else []
        command += ["--data", str(arguments.data.resolve())] if arguments.data else []
        command += ["--part", name, str(seconds), str(file)]
        started = time.perf_counter()
        try:
            code = subprocess.run(command, check=False, timeout=seconds + RESERVE, env=dict(os.environ)).returncode
        except subprocess.TimeoutExpired:
            code = None
        results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        if code != 0:
            results["ended"] = "out of time" if code is None else f"exit code {code}"
        results["seconds of this part"] = time.perf_counter() - started
        return results


def main() -> None:
    """Runs the parts that the time allows, and prints."""
    arguments = parse()
    import torch

    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("gpu: torch sees no CUDA device")
    if arguments.part:
        run_part(arguments)
        return
    names = arguments.parts.split(",") if arguments.parts else list(SECONDS)
    unknown = [name for name in names if name not in SECONDS]
    if unknown:
        raise SystemExit(f"gpu: --parts: unknown {unknown[0]!r}; available: {', '.join(SECONDS)}")
    device = torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu"
    everything: dict[str, Any] = {"device": device, "torch": torch.__version__}
    print(f"{device}, torch {torch.__version__}", flush=True)
    end = time.perf_counter() + arguments.budget
    together = [] if arguments.checks_at_once == 1 else [name for name in names if name not in MEASUREMENTS]
    with ThreadPoolExecutor(arguments.checks_at_once) as pool:
        running = {pool.submit(within, arguments, name, end): name for name in together}
        for future in as_completed(running):
            note(arguments, everything, running[future], future.result())
    for name in names:
        if name not in together:
            note(arguments, everything, name, within(arguments, name, end))


def within(arguments: argparse.Namespace, name: str, end: float) -> dict[str, Any]:
    """Runs one part in its own time, or in what is left until the end, by `time.perf_counter`; returns its results."""
    left = end - time.perf_counter()
    if left < 15:
        return {"ended": "left out: no time"}
    return start_part(arguments, name, min(SECONDS[name], left - RESERVE))


def note(arguments: argparse.Namespace, everything: dict[str, Any], name: str, results: dict[str, Any]) -> None:
    """Adds the results of one part to all of them, writes them and prints."""
    everything[name] = results
    if arguments.json:
        arguments.json.write_text(json.dumps(everything, indent=1))
    print(f"{name}", flush=True)
    for key, value in results.items():
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        print(f"    {key:<44} {shown}", flush=True)


if __name__ == "__main__":
    main()
