"""Tensors on a GPU that is not there, and a record of the work that they would give it. For `gpu_probe.py`, which preloads the
device guard that this needs.
"""

from __future__ import annotations

import collections
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

OWN = tuple(str(Path(__file__).with_name(name)) for name in ("fake_gpu.py", "gpu_probe.py"))
LARGE_COPY = 2**16
"""Bytes above which a copy from memory that is not pinned blocks, whatever it was asked for."""
TENSORS_PER_LAUNCH = {
    "_fused_adam_": 36,
    "_fused_adamw_": 36,
    "_fused_sgd_": 48,
    "_foreach_norm": 55,
    "_foreach_sub_": 64,
}
"""How many tensors one kernel of torch takes. A norm has a second kernel that ends it, so its number is halved."""
TENSORS_BY_LISTS = {1: 110, 2: 64, 3: 48}
"""The same of all other operations on lists, by the number of lists."""
NO_KERNEL = {
    "_is_zerotensor",
    "_local_scalar_dense",
    "_reshape_alias",
    "_unsafe_view",
    "alias",
    "as_strided",
    "chunk",
    "detach",
    "detach_",
    "device",
    "diagonal",
    "dtype",
    "empty",
    "empty_like",
    "empty_strided",
    "expand",
    "is_pinned",
    "is_same_size",
    "layout",
    "lift",
    "lift_fresh",
    "new_empty",
    "new_empty_strided",
    "permute",
    "prim_device",
    "real",
    "resize_",
    "select",
    "set_",
    "slice",
    "split",
    "split_with_sizes",
    "squeeze",
    "sym_numel",
    "sym_size",
    "sym_stride",
    "t",
    "transpose",
    "unbind",
    "unfold",
    "unsqueeze",
    "view",
}
"""Operations that make a view or take memory."""


def pretend() -> None:
    """Makes torch take fake tensors on 'cuda:0' the way it takes real ones."""
    cuda: Any = torch.cuda
    cuda.is_available = lambda: True
    cuda.device_count = lambda: 1
    cuda.set_device = lambda device: None
    cuda.amp.common.amp_definitely_not_available = lambda: False
    cuda.is_bf16_supported = lambda *args, **kwargs: True
    cuda.manual_seed_all = lambda seed: None
    cuda.is_current_stream_capturing = lambda: False
    FakeTensorMode.avoid_device_init = property(lambda self: True)  # type: ignore[assignment, method-assign]
    nn.Module._apply = _move_buffers  # type: ignore[assignment, method-assign]
    # Fused optimizers ask for the class of a tensor.
    for module in ("torch.utils._foreach_utils", "torch.optim.optimizer"):
        sys.modules[module]._foreach_supported_types.append(FakeTensor)  # type: ignore[attr-defined]
    real: Any = torch.Generator

    def make(device: Any = "cpu") -> Any:
        return _NoGenerator() if torch.device(device).type == "cuda" else real(device)

    torch.Generator = make  # type: ignore[assignment, misc]


class _NoGenerator:
    """In the place of a GPU's generator. Fake random numbers need none."""

    def manual_seed(self, seed: int) -> None:
        """Nothing to seed."""


def _move_buffers(module: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """`Module._apply` of modules whose parameters were made on the device, where torch refuses to change them in place."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            assert parameter is None or parameter.device.type == "cuda", name
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = fn(buffer)
    return module


def launches(name: str, args: Sequence[Any]) -> int:
    """Kernels that an operation starts: one, or as many as its lists of tensors need."""
    if not name.startswith(("_foreach", "_fused")):
        return 1
    lists = [each for each in args if isinstance(each, list | tuple) and each and isinstance(each[0], Tensor)]
    together = TENSORS_PER_LAUNCH.get(name, TENSORS_BY_LISTS.get(len(lists), 36))
    return -(-len(lists[0]) // together) if lists else 1


class Recorder(TorchDispatchMode):
    """Counts what operations do to the device, while `on`.

    Args:
        root: of the code whose lines are named.

    Attributes:
        launches: by operation.
        lines: launches by line of the code.
        reads: device to host, by line; each waits for the device.
        h2d_sync, h2d_async: copies from host to device that wait, and those that do not, by line.
        big_async: of the latter, those above `LARGE_COPY` bytes.
    """

    def __init__(self, root: Path) -> None:
        super().__init__()
        self._root = root
        # An environment may lie in the same folder, and its libraries are none of the lines that are looked for.
        self._own = (f"{root / 'cggm_ray'}/", f"{root / 'benchmarks'}/")
        self.on = False
        self.reset()

    def reset(self) -> None:
        """Forgets all counts."""
        self.launches: collections.Counter[str] = collections.Counter()
        self.lines: collections.Counter[str] = collections.Counter()
        self.reads: collections.Counter[str] = collections.Counter()
        self.h2d_sync: collections.Counter[str] = collections.Counter()
        self.h2d_async: collections.Counter[str] = collections.Counter()
        self.big_async = 0

    def line(self) -> str:
        """The innermost line of the code that is running."""
        for frame in reversed(traceback.extract_stack(limit=40)):
            if frame.filename.startswith(self._own) and frame.filename not in OWN:
                return f"{Path(frame.filename).relative_to(self._root)}:{frame.lineno} {frame.line}"
        return "backward or optimizer (no line of the package)"

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs an operation on fake tensors and notes what it is."""
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        if name == "_local_scalar_dense":
            return self._read(func, *args, **kwargs)
        if name == "nonzero" and args[0].device.type == "cuda":
            self._note(self.reads, "nonzero ")
            return args[0].new_empty((args[0].numel(), args[0].dim()), dtype=torch.int64)
        # The fused SGD has no implementation on tensors without memory; it returns nothing.
        out = None if name == "_fused_sgd_" else func(*args, **kwargs)
        if self.on:
            self._count(name, args, kwargs, out)
        return out

    def _read(self, func: Any, tensor: Tensor, **kwargs: Any) -> Any:
        """A scalar for the host. Fake ones have no value: they are 1, and 0 where the question is whether a step was bad."""
        if tensor.device.type != "cuda" and not isinstance(tensor, FakeTensor):
            return func(tensor, **kwargs)
        if tensor.device.type == "cuda":
            self._note(self.reads)
        if "finite.py" in self.line():
            return 0.0
        if tensor.dtype == torch.bool:
            return True
        return 1.0 if tensor.dtype.is_floating_point else 1

    def _note(self, counter: collections.Counter[str], prefix: str = "") -> None:
        if self.on:
            counter[prefix + self.line()] += 1

    def _count(self, name: str, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
        given = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)]
        made = [each for each in (out if isinstance(out, tuple | list) else (out,)) if isinstance(each, Tensor)]
        if name in ("_to_copy", "copy_", "device_put"):
            source = (args[1] if name == "copy_" else args[0]).device.type
            target = made[0].device.type if made else source
            waits = not (kwargs.get("non_blocking", False) or (name == "copy_" and len(args) > 2 and args[2]))
            if (source, target) == ("cpu", "cuda"):
                self._note(self.h2d_sync if waits else self.h2d_async)
                if not waits and made[0].numel() * made[0].element_size() > LARGE_COPY:
                    self.big_async += 1
                return
            if (source, target) == ("cuda", "cpu"):
                self._note(self.reads, "copy ")
                return
        on_device = name.startswith(("_foreach", "_fused")) or any(
            each.device.type == "cuda" for each in (*made, *given)
        )
        if on_device and name not in NO_KERNEL:
            count = launches(name, args)
            self.launches[name] += count
            self.lines[self.line()] += count


def fuse_attention() -> None:
    """Makes attention one operation forward and one backward, as the fused kernels of a GPU are."""
    library = torch.library.Library("gpu_probe", "FRAGMENT")
    library.define("attention(Tensor q, Tensor k, Tensor v) -> Tensor")
    library.define("attention_backward(Tensor g, Tensor q, Tensor k, Tensor v) -> (Tensor, Tensor, Tensor)")
    library.impl("attention", lambda q, k, v: torch.empty_like(q), "Meta")
    library.impl("attention_backward", lambda g, *qkv: tuple(map(torch.empty_like, qkv)), "Meta")

    class Attention(torch.autograd.Function):
        """Remembers the library, which lives as long as its operations are wanted."""

        held = library

        @staticmethod
        def forward(ctx: Any, *qkv: Tensor) -> Tensor:
            """One operation."""
            ctx.save_for_backward(*qkv)
            return torch.ops.gpu_probe.attention(*qkv)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            """One operation."""
            return torch.ops.gpu_probe.attention_backward(grad, *ctx.saved_tensors)

    def attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **_: Any) -> Tensor:
        if torch.is_autocast_enabled("cuda"):
            q, k, v = (each.to(torch.get_autocast_dtype("cuda")) for each in (q, k, v))
        return Attention.apply(q, k, v)  # type: ignore[no-any-return, no-untyped-call]

    torch.nn.functional.scaled_dot_product_attention = attention  # type: ignore[assignment]
