"""Counts what a training step asks of a GPU, on a machine without one: launches, reads by the host, and copies.

    python benchmarks/speed/gpu_probe.py --datasets mosi,iemocap,food101,brats --strategies none,cggm
    python benchmarks/speed/gpu_probe.py --strategies all --precision fp32,bf16 --naive
    python benchmarks/speed/gpu_probe.py --loop --masks --where --set deterministic=true

Needs g++ and torch, of which a CPU build is enough; neither Ray nor a GPU. The step is the package's own: its networks,
`new_state`, `TrainingStep` and `train_step`, with --loop `train_epoch`. Its tensors are those of torch's FakeTensorMode, which
have a shape, a type and the device 'cuda:0', and no memory; tensors on two devices in one operation are an error, as on a GPU.
A CPU build has no guard for that device, so `cuda_guard.cpp` is compiled once, into --cache, and this script starts itself
again with it preloaded.

Columns, all for one step:

    launches    kernels: operations that leave a result on the device and are neither views nor allocations. Operations on lists
                of tensors count as many as torch's kernels need for them. The backward pass of a layer norm counts as one
                and is two or three.
    reads       values that the host takes from the device, each of which waits for it (`item`, `bool`, `.cpu()`, `nonzero`).
                A `tolist` of n values counts n and waits once.
    h2d sync    copies to the device that wait for it.
    h2d async   copies to the device with `non_blocking`; those of the column `big` wait all the same unless memory is pinned.

The third step of a run is counted, when tables and the optimizer's state are there; with --loop the mean over an epoch of six
steps, what is read at its end included. Values that a step reads are 1. What this cannot see: the choice of an attention kernel
(without --sdpa it is the one that is made of single operations), and the helper kernels of cuDNN and cuBLAS. `--where` names
the lines of reads and copies, `--ops` the most frequent operations and lines.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fake_gpu import Recorder
    from problems import Problem

HERE = Path(__file__).parent
PRELOADED = "CGGM_GPU_PROBE"
TRACE = "GPU_PROBE_TRACE"
"""Environment variables: set in the process that counts, and by a person who wants tracebacks of what fails."""
LOOP_STEPS = 6
EXTRA = {"mslr": {"mslr_strategy": "dynamic"}}
"""Settings without which a strategy does not start."""
COLUMNS = ("launches", "reads", "h2d_sync", "h2d_async", "h2d_async_big")


def parse() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=HERE.parents[1], help="checkout whose step is counted")
    parser.add_argument("--datasets", default="mosi", help="names, with commas between them")
    parser.add_argument("--strategies", default="none,cggm", help="names, with commas between them, or all")
    parser.add_argument("--precision", default="fp32", help="fp32, bf16 or both, with a comma")
    parser.add_argument("--naive", action="store_true", help="the plain step of the released code too")
    parser.add_argument("--loop", action="store_true", help="whole epochs: seeds, schedule, averages and looks as well")
    parser.add_argument(
        "--masks", action="store_true", help="a third of the samples lack a modality, others have padding"
    )
    parser.add_argument("--size", type=int, default=64, help="pixels of BraTS images")
    parser.add_argument("--batch", type=int, help="samples of a step; default that of the problem")
    parser.add_argument("--where", action="store_true", help="name the lines that read and copy")
    parser.add_argument("--ops", action="store_true", help="name the most frequent operations and lines")
    parser.add_argument("--sdpa", action="store_true", help="attention is one operation forward and one backward")
    parser.add_argument("--one_by_one", action="store_true", help="encoders of equal shape are not called together")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="of the configuration")
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "gpu_probe")
    return parser.parse_args()


def restart(cache: Path) -> None:
    """Compiles the guard unless it is there, and runs this script again with it."""
    found = importlib.util.find_spec("torch")
    assert found is not None
    assert found.submodule_search_locations is not None
    torch = Path(found.submodule_search_locations[0])
    source = HERE / "cuda_guard.cpp"
    mark = hashlib.sha256(source.read_bytes() + importlib.metadata.version("torch").encode()).hexdigest()[:12]
    library = cache / f"cuda_guard-{mark}.so"
    if not library.exists():
        cache.mkdir(parents=True, exist_ok=True)
        partial = library.with_suffix(f".{os.getpid()}.part")
        command = [
            "g++",
            "-O0",
            "-shared",
            "-fPIC",
            "-std=c++20",
            f"-I{torch / 'include'}",
            str(source),
            "-o",
            str(partial),
        ]
        command += [f"-L{torch / 'lib'}", f"-Wl,-rpath,{torch / 'lib'}", "-lc10", "-ltorch_cpu"]
        try:
            subprocess.run(command, check=True)
        except FileNotFoundError:
            raise SystemExit("gpu_probe: g++ is not installed") from None
        except subprocess.CalledProcessError as error:
            raise SystemExit(f"gpu_probe: g++ cannot compile {source} (exit code {error.returncode})") from None
        partial.rename(library)
    environment = {**os.environ, "LD_PRELOAD": str(library), PRELOADED: "1"}
    os.execve(sys.executable, [sys.executable, *sys.argv], environment)


def make_batch(problem: Problem, masks: bool) -> Any:
    """Random numbers; with masks a third of the samples lack a modality, and the second half of another third is padding."""
    import torch

    data = problem.data()
    if not masks:
        return data
    made = {}
    for number, (name, shape) in enumerate(problem.shapes.items()):
        made[name] = mask = torch.ones(problem.batch, shape[0], dtype=torch.bool)
        mask[number::3] = False
        mask[number + 1 :: 3, shape[0] // 2 :] = False
    return dataclasses.replace(data, masks=made, present={name: mask.any(1) for name, mask in made.items()})


def package_step(problem: Problem, settings: Mapping[str, Any], arguments: argparse.Namespace) -> Callable[[], Any]:
    """The package's step on one batch, or with --loop an epoch of `LOOP_STEPS` of them."""
    import torch

    from cggm_ray.engine import assembly
    from cggm_ray.engine.configuration import Config
    from cggm_ray.engine.runtime import LocalRuntime
    from cggm_ray.engine.step import TrainingStep, train_step

    config = Config.from_dict({**problem.settings, **settings})
    if arguments.loop:
        config = config.replace({"batch_size": problem.batch})
    if config.train.deterministic:
        torch.use_deterministic_algorithms(True)

    def networks() -> Any:
        with torch.device("cuda"):
            return problem.networks(config)

    net, guides = networks()
    if arguments.one_by_one:
        net.together = False
    net = assembly.STRATEGIES.get(config.modulation.modulation).network_of(net, guides, config.strategy)
    # Teachers are finished runs, of which there are none here: networks with fresh weights take their place.
    assembly.find_teachers = lambda *args: {}
    assembly.load_teachers = lambda encoders, found: ({name: networks()[0].encoders[name] for name in encoders}, {})
    runtime = LocalRuntime(Path(tempfile.gettempdir()) / "unused", config.run)
    assert runtime.device.type == "cuda"
    state = assembly.new_state(config, net, guides, problem.task(), runtime)
    step = TrainingStep(net, state.strategy, config.train.precision).train()
    data = make_batch(problem, arguments.masks)
    if arguments.loop:
        return epoch(problem, config, runtime, state, step, data)
    data = data.to(runtime.device)
    parts, clip = config.train.accumulate, config.optim.clip
    return lambda: train_step(state, step, data, runtime, accumulate=parts, clip=clip)


def epoch(problem: Problem, config: Any, runtime: Any, state: Any, step: Any, data: Any) -> Callable[[], Any]:
    """`train_epoch` on a split that lies on the device."""
    import torch

    from cggm_ray.data.loading.split import TensorSplit
    from cggm_ray.engine.budget import budget_of
    from cggm_ray.engine.loop import train_epoch
    from cggm_ray.engine.opening import Training
    from cggm_ray.engine.step import train_step

    def on_device(tensors: Mapping[str, Any] | None) -> dict[str, Any] | None:
        repeated = {} if tensors is None else {name: torch.cat([each] * LOOP_STEPS) for name, each in tensors.items()}
        return {name: each.to("cuda") for name, each in repeated.items()} or None

    inputs, target = on_device(data.inputs), torch.cat([data.target] * LOOP_STEPS).to("cuda")
    assert inputs is not None
    known: dict[str, Any] = {"dataset": None, "class_names": None, "folder": Path("unused"), "task": problem.task()}
    known |= {"manifest": None, "budget": budget_of(config.train, len(target))}
    training = Training(
        config=config,
        runtime=runtime,
        modalities=tuple(problem.shapes),
        splits={"train": TensorSplit(inputs, target, masks=on_device(data.masks))},
        state=state,
        step=step,
        **known,
    )

    parts, clip = config.train.accumulate, config.optim.clip

    def take(batch: Any, largest: int | None) -> Any:
        # With rates as numbers: fake tensors know no fused optimizer whose rate is a tensor.
        return train_step(state, step, batch, runtime, accumulate=parts, clip=clip, largest=largest)

    def run() -> None:
        train_epoch(training, None, take)
        state.end_epoch()

    return run


def naive_step(problem: Problem) -> Callable[[], float]:
    """The plain step, its parameters made on the device."""
    import problems
    import torch

    # Modules of fake tensors cannot be moved.
    with torch.device("cuda"):
        return problems.naive_step(problem, "cuda")


def measure(recorder: Recorder, step: Callable[[], Any], steps: int) -> dict[str, float]:
    """Counts of one step: of the third call."""
    for _ in range(2):
        step()
    recorder.reset()
    recorder.on = True
    step()
    recorder.on = False
    counters = (recorder.launches, recorder.reads, recorder.h2d_sync, recorder.h2d_async)
    return dict(
        zip(COLUMNS, [*(sum(each.values()) / steps for each in counters), recorder.big_async / steps], strict=True)
    )


def problems_of(arguments: argparse.Namespace) -> Iterator[tuple[str, Problem]]:
    """The problems by name, in the sizes of the command line."""
    from problems import PROBLEMS

    for name in arguments.datasets.split(","):
        if name not in PROBLEMS:
            raise SystemExit(f"gpu_probe: --datasets: unknown {name!r}; available: {', '.join(PROBLEMS)}")
        problem = PROBLEMS[name]
        if problem.backbone is not None:
            shapes = dict.fromkeys(problem.shapes, (1, arguments.size, arguments.size))
            problem = dataclasses.replace(problem, shapes=shapes)
        yield name, dataclasses.replace(problem, batch=arguments.batch or problem.batch)


def settings_of(pairs: list[str]) -> dict[str, Any]:
    """The values of --set: numbers and JSON's words as such, all others as text."""
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise SystemExit(f"gpu_probe: --set: found {pair!r}; expected FIELD=VALUE")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def show_where(recorder: Recorder, steps: int) -> None:
    """Lines of the package by their reads and copies."""
    for kind in ("reads", "h2d_sync", "h2d_async"):
        for line, count in getattr(recorder, kind).most_common(20):
            print(f"    {kind:<10}{count / steps:>7.1f}  {line[:150]}")


def show_operations(recorder: Recorder, steps: int) -> None:
    """The most frequent operations, and the lines with most launches."""
    print("    " + ", ".join(f"{name} {count / steps:.0f}" for name, count in recorder.launches.most_common(45)))
    for line, count in recorder.lines.most_common(25):
        print(f"    {count / steps:>7.1f}  {line[:150]}")


def failure(error: Exception, root: Path) -> str:
    """One line about a step that cannot run."""
    if os.environ.get(TRACE):
        traceback.print_exception(error)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(str(root))]
    where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "?"
    return f"FAILED {type(error).__name__}: {str(error)[:200]} at {where}"


def main() -> int:
    """Prints the table; the exit code is 1 where a step failed."""
    arguments = parse()
    root = arguments.root.resolve()
    sys.path[:0] = [str(root), str(root / "benchmarks" / "speed")]
    from fake_gpu import FakeTensorMode, Recorder, fuse_attention, pretend

    from cggm_ray.strategies.registry import STRATEGIES

    problems, names = list(problems_of(arguments)), arguments.strategies.split(",")
    names = STRATEGIES.names() if names == ["all"] else names
    infos = {name: STRATEGIES.get(name) for name in names}
    settings, rows, failed = settings_of(arguments.set), [], False
    pretend()
    if arguments.sdpa:
        fuse_attention()
    print(
        f"{'dataset':<9}{'strategy':<20}{'prec':<6}{'launches':>9}{'reads':>7}{'h2d sync':>9}{'h2d async':>10}{'big':>5}",
        flush=True,
    )
    for dataset, problem in problems:
        for precision in arguments.precision.split(","):
            plain = ["naive"] if arguments.naive and problem.backbone is None and precision == "fp32" else []
            for label in plain + [name for name, info in infos.items() if info.serves(problem.task())]:
                recorder = Recorder(root)
                steps = LOOP_STEPS if arguments.loop and label != "naive" else 1
                chosen = {"modulation": label, "precision": precision, **EXTRA.get(label, {}), **settings}
                with FakeTensorMode(allow_non_fake_inputs=True), recorder:
                    try:
                        step = naive_step(problem) if label == "naive" else package_step(problem, chosen, arguments)
                        row = measure(recorder, step, steps)
                    except Exception as error:
                        failed = True
                        print(f"{dataset:<9}{label:<20}{precision:<6} {failure(error, root)}", flush=True)
                        continue
                rows.append({"dataset": dataset, "strategy": label, "precision": precision, **row})
                print(
                    f"{dataset:<9}{label:<20}{precision:<6}{row['launches']:>9.0f}{row['reads']:>7.1f}{row['h2d_sync']:>9.1f}"
                    f"{row['h2d_async']:>10.1f}{row['h2d_async_big']:>5.0f}",
                    flush=True,
                )
                if arguments.where:
                    show_where(recorder, steps)
                if arguments.ops:
                    show_operations(recorder, steps)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))
    return 1 if failed else 0


if __name__ == "__main__":
    if not os.environ.get(PRELOADED):
        restart(parse().cache)
    sys.exit(main())
