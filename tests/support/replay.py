"""A CUDA graph without a GPU: the operations of a function are recorded, and repeated on the same tensors.

Like a CUDA graph it repeats the work of the device alone. What a function changes on the host (an attribute, a counter, a
tensor that it makes on its own) stays as it was when it was recorded, and what it reads from a tensor on the host is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

UNFILLED = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")


class Recording(TorchDispatchMode):
    """Notes every operation below autograd, with the tensors that it took and made."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[Any, Sequence[Any], Mapping[str, Any], list[Tensor]]] = []
        self._before: dict[int, tuple[UntypedStorage, UntypedStorage]] = {}
        self._made: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name == "_local_scalar_dense":
            raise RuntimeError("a value was read on the host")
        self._keep(func, args, kwargs)
        out = func(*args, **kwargs)
        returned = func._schema.returns
        is_view = any(value.alias_info is not None and not value.alias_info.is_write for value in returned)
        if not is_view and name not in UNFILLED:
            self.steps.append((func, args, kwargs, [] if func._schema.is_mutable else tensors_of(out)))
        if not is_view and not func._schema.is_mutable:
            self._made.update(tensor.untyped_storage().data_ptr() for tensor in tensors_of(out))
        return out

    def _keep(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Copies what an operation is about to change, unless the function made it itself."""
        for number, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = args[number] if number < len(args) else kwargs.get(argument.name)
                for tensor in tensors_of(value):
                    storage = tensor.untyped_storage()
                    if storage.data_ptr() not in self._made:
                        self._before.setdefault(storage.data_ptr(), (storage, storage.clone()))

    def undo(self) -> None:
        """Gives everything the value back that it had before."""
        for storage, before in self._before.values():
            storage.copy_(before)

    def again(self) -> None:
        """Repeats everything on the same tensors."""
        with torch.no_grad():
            for func, args, kwargs, made in self.steps:
                out = func(*args, **kwargs)
                for before, now in zip(made, tensors_of(out) if made else [], strict=True):
                    before.copy_(now)


def tensors_of(tree: Any) -> list[Tensor]:
    """The tensors of an operation's arguments or results."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def record_on_cpu(function: Callable[[], dict[str, Tensor]]) -> tuple[dict[str, Tensor], Callable[[], None]]:
    """`cggm_ray.engine.graph.Recorder` of the CPU.

    A CUDA graph does not run while it is recorded. Here it does, so all tensors that were there before get their values back.
    """
    recording = Recording()
    with torch.random.fork_rng(devices=[]), recording:
        values = function()
    recording.undo()
    return values, recording.again
