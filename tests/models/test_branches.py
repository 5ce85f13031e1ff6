"""Branches of a recorded step, on streams that are imitated: every operation waits for those whose results it uses.

Numbers of real streams are compared by `benchmarks/speed/gpu.py`, on a GPU.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from composed_nets import CLASSES, KINDS, OF_KIND, composed
from composed_nets import batch as composed_batch
from replay import tensors_of
from strategy_runs import run_steps
from test_graph import SETTINGS
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cggm_ray.core.batch import Batch
from cggm_ray.engine.assembly import new_state
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.graph import WARM, TakeStep, Values
from cggm_ray.engine.runtime import LocalRuntime, RunConfig
from cggm_ray.engine.state import TrainState
from cggm_ray.engine.step import TrainingStep, train_step
from cggm_ray.models import branches
from cggm_ray.models.branches import Point, apart, run_branches
from cggm_ray.models.composed.fusions import FUSIONS
from cggm_ray.models.deeplab import DeepLab, DeepLabConfig, deeplab_guides
from cggm_ray.models.net import MultimodalNet
from cggm_ray.models.resnet import ResNetConfig
from cggm_ray.strategies.cggm import CGGM
from cggm_ray.strategies.greedy import Greedy
from cggm_ray.strategies.registry import STRATEGIES
from cggm_ray.tasks import Classification, Segmentation, Task

Clock = dict[int, int]
"""Operations by stream that are known to be over."""


class Streams:
    """What `torch.cuda` has of streams and events, with clocks in place of kernels."""

    def __init__(self) -> None:
        self.count, self.recording = 0, True
        self.now = self.Stream()

    def Stream(self, device: Any = None) -> Stream:
        self.count += 1
        return Stream(self, self.count)

    def Event(self) -> Event:
        return Event(self)

    def current_stream(self, device: Any = None) -> Stream:
        return self.now

    @contextmanager
    def stream(self, other: Stream) -> Iterator[None]:
        before, self.now = self.now, other
        yield
        self.now = before


class Stream:
    def __init__(self, streams: Streams, number: int) -> None:
        self.number, self.clock = number, defaultdict[int, int](int)

    def wait(self, clock: Clock) -> None:
        for number, tick in clock.items():
            self.clock[number] = max(self.clock[number], tick)

    def wait_stream(self, other: Stream) -> None:
        self.wait(other.clock)

    def wait_event(self, event: Event) -> None:
        self.wait(event.clock)


class Event:
    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self.clock: Clock = {}

    def record(self) -> None:
        self.clock = dict(self._streams.now.clock)


class Races(TorchDispatchMode):
    """Notes operations that use what another stream may not have made yet, or that change what it may still read."""

    def __init__(self, streams: Streams) -> None:
        super().__init__()
        self.found: list[str] = []
        self.used: set[int] = set()
        self._streams = streams
        self._written: dict[int, tuple[int, int]] = {}
        self._read: dict[int, dict[int, int]] = defaultdict(dict)
        self._kept: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        stream = self._streams.now
        stream.clock[stream.number] += 1
        here = (stream.number, stream.clock[stream.number])
        changed = set()
        for number, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = args[number] if number < len(args) else kwargs.get(argument.name)
                changed |= storages(value)
        taken = storages((args, kwargs))
        out = func(*args, **kwargs)
        self._kept.append((args, kwargs, out))
        for storage in taken:
            last = self._written.get(storage, (stream.number, 0))
            reads = self._read[storage].items() if storage in changed else ()
            for number, tick in (last, *reads):
                if stream.clock[number] < tick:
                    self.found.append(f"{func} on stream {stream.number} does not wait for stream {number}")
            self._read[storage][stream.number] = here[1]
        for storage in changed | (storages(out) - taken):
            self._written[storage] = here
        self.used.add(stream.number)
        return out


def storages(tree: Any) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in tensors_of(tree)}


@pytest.fixture
def runtime(tmp_path: Path) -> LocalRuntime:
    return LocalRuntime(tmp_path, RunConfig(no_cuda=True))


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Streams:
    made = Streams()
    for name in ("Stream", "Event", "current_stream", "stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(made, name))
    monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: None)
    monkeypatch.setattr(branches, "recording", lambda device: made.recording)
    monkeypatch.setattr(branches, "_streams", {})
    return made


def run_watched(changes: Mapping[str, Any], runtime: LocalRuntime, streams: Streams, kind: str) -> Races:
    """Takes steps of a strategy as if they were recorded."""
    races = Races(streams)

    def watched(eager: TakeStep, state: TrainState) -> TakeStep:
        def take(batch: Batch, largest: int | None) -> Values:
            # The first steps are eager ones: they make the tables that all streams read.
            streams.recording = WARM <= state.step < WARM + 6
            with races if streams.recording else nullcontext():
                return eager(batch, largest)

        return take

    run_steps(changes, runtime, kind=kind, how=watched)
    return races


def kind_of(name: str) -> str:
    return "classes" if STRATEGIES.get(name).serves(Classification(3)) else "values"


@pytest.mark.parametrize("name", STRATEGIES.names())
def test_every_operation_waits_for_what_it_uses(
    name: str, runtime: LocalRuntime, streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Teachers are finished runs; here copies of the encoders take their place.
    monkeypatch.setattr("cggm_ray.engine.assembly.find_teachers", lambda *given: {})
    monkeypatch.setattr(
        "cggm_ray.engine.assembly.load_teachers",
        lambda encoders, found: ({key: copy.deepcopy(encoder) for key, encoder in encoders.items()}, {}),
    )
    races = run_watched({"modulation": name, **SETTINGS.get(name, {})}, runtime, streams, kind_of(name))
    assert not races.found
    assert len(races.used) > 1


def test_a_missing_wait_is_found(runtime: LocalRuntime, streams: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(branches, "_join", lambda *given: None)
    assert run_watched({"modulation": "none"}, runtime, streams, "classes").found


def test_a_strategy_that_hands_the_fusion_more_than_features(
    runtime: LocalRuntime, streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gates of `greedy` would not be there yet, so it does not say that its fusion may run beside it."""
    assert not Greedy.beside_fusion
    monkeypatch.setattr(Greedy, "beside_fusion", True)
    assert run_watched({"modulation": "greedy"}, runtime, streams, "classes").found


def test_another_transform_says_itself_what_the_fusion_needs() -> None:
    class Own(CGGM):
        def transform(self, *given: Any) -> Any:
            return super().transform(*given)

    class Named(CGGM):
        pass

    assert CGGM.beside_fusion
    assert Named.beside_fusion
    assert not Own.beside_fusion


def test_the_fusion_runs_beside_the_guides(runtime: LocalRuntime, streams: Streams) -> None:
    """Three streams of encoders and guides, one of the fusion, and that of the step."""
    assert len(run_watched({"modulation": "cggm"}, runtime, streams, "classes").used) == 5
    assert len(run_watched({"modulation": "modality-dropout"}, runtime, streams, "classes").used) == 4


def steps_of(net: MultimodalNet, guides: Mapping[str, nn.Module], task: Task, runtime: LocalRuntime) -> TakeStep:
    """What takes steps of CGGM."""
    chosen = Config().replace({"modulation": "cggm"})
    state = new_state(chosen, net, dict(guides), task, runtime)
    step = TrainingStep(net, state.strategy, "fp32").train()
    return lambda batch, largest: train_step(state, step, batch, runtime, accumulate=1, clip=0.0)


def test_images(runtime: LocalRuntime, streams: Streams) -> None:
    """Their fusion and guides have running averages."""
    torch.manual_seed(0)
    config = DeepLabConfig(backbone=ResNetConfig(blocks=(1, 1, 1, 1), bottleneck=False, width=4))
    inputs = {name: torch.randn(2, 1, 32, 32) for name in ("flair", "t1")}
    batch = Batch(inputs=inputs, target=torch.randint(4, (2, 32, 32)), index=torch.arange(2))
    take = steps_of(DeepLab(config, inputs, 4), deeplab_guides(config, inputs, 4), Segmentation(), runtime)
    with Races(streams) as races:
        take(batch, None)
    assert not races.found
    assert len(races.used) == 4


@pytest.mark.parametrize("fusion", FUSIONS.names())
def test_composed_networks(fusion: str, runtime: LocalRuntime, streams: Streams) -> None:
    for number in range(max(map(len, OF_KIND.values()))):
        encoders = {name: OF_KIND[kind][number % len(OF_KIND[kind])] for name, kind in KINDS.items()}
        take = steps_of(*composed(encoders, fusion), Classification(CLASSES), runtime)
        streams.recording = False
        take(composed_batch(masked=True), None)
        streams.recording = True
        with Races(streams) as races:
            take(composed_batch(masked=True), None)
        assert not races.found, encoders
        assert len(races.used) == 5


def test_modules_that_share_averages_are_called_in_turn(streams: Streams) -> None:
    shared = nn.BatchNorm1d(3)
    modules = [nn.Sequential(nn.Linear(3, 3), shared) for _ in range(2)]
    assert not apart(modules)
    assert apart([nn.Linear(3, 3), nn.Linear(3, 3)])
    inputs = [torch.randn(4, 3) for _ in modules]
    with Races(streams) as races:
        run_branches(modules, [partial(module, x) for module, x in zip(modules, inputs, strict=True)], inputs)
    assert len(races.used) == 1


def test_a_feature_that_was_changed_in_place_is_another_one(streams: Streams) -> None:
    x = torch.randn(3)
    point = Point.here([x])
    with Races(streams) as races:
        point.run(lambda: x + 1, [x])
        assert len(races.used) == 1
        x.mul_(2)
        point.run(lambda: x + 1, [x])
    assert len(races.used) == 2
    assert not races.found


def test_without_a_recording_calls_are_calls() -> None:
    x = torch.randn(3)
    assert run_branches([nn.Identity()], [lambda: x], [x])[0] is x
    assert Point.here([x]).run(lambda: x, [x]) is x
