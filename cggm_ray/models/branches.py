"""Calls that need nothing of one another, each on a CUDA stream of its own while a step is recorded.

The kernels of a small network leave most of a GPU idle. In a recorded step (`cggm_ray/engine/graph.py`) those of several
branches run at the same time. The backward pass of a call runs on its stream too, so that of guides, for example, runs beside
that of the fusion. An eager step would gain nothing, because the host starts its kernels one after the other. Kernels and
their order on the host are the same either way, so recorded and eager steps have the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")

_streams: dict[tuple[torch.device, int], torch.cuda.Stream] = {}
"""By device and number of the branch; -1 is that of `Point.run`. They are made once, because torch keeps memory for each."""


def run_branches(modules: Sequence[nn.Module], calls: Sequence[Callable[[], T]], given: Sequence[Any]) -> list[T]:
    """Returns what each of the calls returns.

    Args:
        modules: that each of them runs; those that share a tensor, such as running averages, are called one after the other.
        calls: of the modules.
        given: the tensors that each call reads but for its parameters, in tuples, lists or by themselves.
    """
    tensors = list(_tensors(given))
    if not (tensors and recording(tensors[0].device) and apart(modules)):
        return [call() for call in calls]
    device = tensors[0].device
    main = torch.cuda.current_stream(device)
    streams = [_stream(device, number) for number in range(len(calls))]
    results = []
    for stream, call in zip(streams, calls, strict=True):
        stream.wait_stream(main)
        with torch.cuda.stream(stream):
            results.append(call())
    for stream, taken, result in zip(streams, given, results, strict=True):
        _join(main, stream, taken, result)
    return results


@dataclass(frozen=True)
class Point:
    """A point of a step, after which a branch may begin that needs nothing of what comes later.

    Attributes:
        tensors: address and version of those that were there.
        event: of the stream; None where no step is recorded.
    """

    tensors: Sequence[tuple[int, int]]
    event: torch.cuda.Event | None

    @classmethod
    def here(cls, values: Iterable[Any], kept: Iterable[Tensor] = ()) -> Point:
        """Returns the point at which `values` have been computed.

        Args:
            values: the tensors that a branch may read.
            kept: tensors that the branch itself may change, such as running averages.
        """
        tensors = list(_tensors(list(values)))
        if not (tensors and recording(tensors[0].device)):
            return cls([], None)
        event = torch.cuda.Event()
        event.record()
        return cls(_identities([*tensors, *kept]), event)

    def run(self, call: Callable[[], T], given: Iterable[Any], kept: Iterable[Tensor] = ()) -> T:
        """Returns what the call returns, which waits for this point alone if nothing that it reads has changed since.

        Args:
            call: of modules that nothing else runs at the same time.
            given: the tensors that the call reads but for its parameters; a copy is another tensor than that of the point.
            kept: tensors that the call itself may change, such as running averages.
        """
        tensors = list(_tensors(list(given)))
        if self.event is None or _identities([*tensors, *kept]) != self.tensors:
            return call()
        device = tensors[0].device
        main, stream = torch.cuda.current_stream(device), _stream(device, -1)
        stream.wait_event(self.event)
        with torch.cuda.stream(stream):
            result = call()
        _join(main, stream, tensors, result)
        return result


def apart(modules: Iterable[nn.Module]) -> bool:
    """Returns whether no two of the modules have a parameter or buffer in common."""
    found = [{id(tensor) for tensor in (*module.parameters(), *module.buffers())} for module in modules]
    return len(set().union(*found)) == sum(map(len, found))


def _join(main: torch.cuda.Stream, stream: torch.cuda.Stream, taken: Any, result: Any) -> None:
    """Has a stream wait for a branch; the memory of what both use is free only when both are done with it."""
    main.wait_stream(stream)
    for tensor in _tensors(taken):
        tensor.record_stream(stream)
    for tensor in _tensors(result):
        tensor.record_stream(main)


def _stream(device: torch.device, number: int) -> torch.cuda.Stream:
    if (device, number) not in _streams:
        _streams[device, number] = torch.cuda.Stream(device)
    return _streams[device, number]


def recording(device: torch.device) -> bool:
    """Returns whether a CUDA graph is being recorded."""
    return device.type == "cuda" and not torch.compiler.is_compiling() and torch.cuda.is_current_stream_capturing()


def _tensors(values: Any) -> Iterator[Tensor]:
    """Yields the tensors in nested tuples, lists and dicts."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, tuple | list):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))


def _identities(tensors: Iterable[Tensor]) -> list[tuple[int, int]]:
    return [(tensor.data_ptr(), tensor._version) for tensor in tensors]
