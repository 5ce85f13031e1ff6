"""A module without `encode` and `fuse`, taken apart at the outputs of its encoders.

`wrap(module, encoders={"text": "text_model", "image": "vision_model"}, head="head")` gives both halves of a module whose
`forward` does everything at once. `encode` runs `forward` until all encoders have answered. `fuse` runs `forward` again, with
the given features in place of what the encoders would answer, and reads the input of the head. The module is not changed.
"""

from __future__ import annotations

import copy
import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from cggm_ray.core.batch import HeadOutput
from cggm_ray.core.errors import UsageError, listed

POOLED = "pooler_output"
"""Taken of an output with several fields unless another is named, as the encoders of transformers have it."""


class _AllAnswered(Exception):
    """Ends a forward pass in which all encoders have answered."""


class _Pass:
    """What `encode` leaves for `fuse`; an object of its own, because it is no part of the network."""

    inputs: Mapping[str, Tensor] | None = None
    answers: Mapping[str, Any] = {}

    def __deepcopy__(self, memo: object) -> _Pass:
        return _Pass()


class Wrapped(nn.Module):
    """A module with the functions of a network: `encode`, up to its encoders, and `fuse`, from there to its head."""

    def __init__(self, module: nn.Module, encoders: Mapping[str, str], head: str) -> None:
        super().__init__()
        self.module = module
        self._paths = {name: path.partition(":")[0] for name, path in encoders.items()}
        self._fields = {name: path.partition(":")[2] for name, path in encoders.items()}
        self._head_path = head
        self._pass = _Pass()
        parameters = inspect.signature(module.forward).parameters
        self._by_name = all(name in parameters for name in encoders)

    def encoder_of(self, modality: str) -> nn.Module:
        """Returns the encoder of a modality."""
        return self.module.get_submodule(self._paths[modality])

    @property
    def head_path(self) -> str:
        """Where the last linear layer is in this module."""
        return f"module.{self._head_path}"

    @property
    def encoders(self) -> dict[str, nn.Module]:
        """The encoders by modality; their parameters are those of the module."""
        return {name: self.encoder_of(name) for name in self._paths}

    @property
    def head(self) -> nn.Module:
        """The last linear layer."""
        return self.module.get_submodule(self._head_path)

    def encode(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Features by modality [N, ...].

        Raises:
            UsageError: `forward` does not call an encoder, calls one twice, or one gives no tensor.
        """
        answers: dict[str, Any] = {}

        def noting(name: str) -> Callable[..., Any]:
            def note(encoder: nn.Module, inputs: Any, output: Any) -> None:
                # A copy, because what comes after may write into an output with several fields, as CLIP does.
                answers[name] = output if isinstance(output, Tensor | tuple) else copy.copy(output)
                if len(answers) == len(self._paths):
                    raise _AllAnswered

            return note

        hooks = [encoder.register_forward_hook(noting(name)) for name, encoder in self.encoders.items()]
        try:
            self._call(inputs)
        except _AllAnswered:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        missing = [self._paths[name] for name in self._paths if name not in answers]
        if missing:
            raise UsageError(
                f"wrap: the forward pass of {type(self.module).__name__} did not call {listed(missing)}; expected encoders "
                "that it calls once each"
            )
        self._pass.inputs, self._pass.answers = inputs, answers
        return {name: self._feature(name, answers[name]) for name in self._paths}

    def fuse(self, features: Mapping[str, Tensor]) -> HeadOutput:
        """Prediction from the features of the last `encode`, or from others in their place.

        Raises:
            UsageError: `forward` gives no logits, or does not call the head with a tensor.
            RuntimeError: `encode` was not called before.
        """
        if self._pass.inputs is None:
            raise RuntimeError("call encode(inputs) before fuse(features)")
        seen: list[tuple[Tensor, Tensor]] = []
        answers = {name: self._put(name, self._pass.answers[name], features[name]) for name in self._paths}
        hook = self.head.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
        try:
            with _answering({self.encoder_of(name): answer for name, answer in answers.items()}):
                found = self._call(self._pass.inputs)
        finally:
            hook.remove()
        logits = found if isinstance(found, Tensor) else getattr(found, "logits", None)
        if isinstance(found, tuple) and not isinstance(logits, Tensor) and found:
            logits = found[0]
        if not isinstance(logits, Tensor):
            raise UsageError(
                f"wrap: the forward pass of {type(self.module).__name__} gave {type(found).__name__}; expected logits, or an "
                "output with the field 'logits'"
            )
        if len(seen) != 1:
            raise UsageError(
                f"wrap: the forward pass of {type(self.module).__name__} called the head {self._head_path!r} {len(seen)} "
                "times; expected once"
            )
        hidden, raw = seen[0]
        return HeadOutput(logits, hidden, None if raw is logits else raw)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Logits of a batch, as the module gives them."""
        return self.fuse(self.encode(inputs)).logits

    def _call(self, inputs: Mapping[str, Tensor]) -> Any:
        return self.module(**inputs) if self._by_name else self.module(inputs)

    def _field(self, name: str, answer: Any) -> str | int | None:
        """Returns where in an encoder's output the feature is; None where the output is the feature."""
        if isinstance(answer, Tensor):
            return None
        fields: list[Any] = list(answer.keys()) if isinstance(answer, Mapping) else []
        if isinstance(answer, tuple | list) and not fields:
            fields = list(range(len(answer)))
        wanted: Any = self._fields[name] or (POOLED if POOLED in fields else next(iter(fields), None))
        wanted = int(wanted) if isinstance(wanted, str) and wanted.isdigit() else wanted
        if wanted not in fields or not isinstance(answer[wanted], Tensor):
            raise UsageError(
                f"wrap: the encoder {self._paths[name]!r} gave {type(answer).__name__} with {listed(fields)}; expected a "
                f"tensor, or the name of one: {name}={self._paths[name]}:FIELD"
            )
        return wanted  # type: ignore[no-any-return]

    def _feature(self, name: str, answer: Any) -> Tensor:
        field = self._field(name, answer)
        feature: Tensor = answer if field is None else answer[field]
        return feature

    def _put(self, name: str, answer: Any, feature: Tensor) -> Any:
        """Returns the output of an encoder with another feature in it."""
        field = self._field(name, answer)
        if field is None:
            return feature
        if isinstance(answer, tuple):
            return tuple(feature if place == field else part for place, part in enumerate(answer))
        changed = copy.copy(answer)
        changed[field] = feature
        return changed


def wrap(module: nn.Module, *, encoders: Mapping[str, str], head: str) -> Wrapped:
    """Returns a module with `encode` and `fuse` for one that has neither, for loops of your own and for `--network`.

    Args:
        module: its `forward` takes the inputs by modality, as arguments with the names of the modalities or as one dictionary,
            calls every encoder and the head once, and gives logits [N, C]. Encoders do not use each other's outputs.
        encoders: modality to the path of its encoder, such as 'clip.text_model'. Of an output with several fields the feature
            is `pooler_output`, or the first, or what a colon names: 'clip.text_model:last_hidden_state'.
        head: path of the last linear layer.

    Raises:
        UsageError: a path leads nowhere, an encoder is part of another, or the head is no linear layer.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> class Plain(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.eye, self.ear, self.out = nn.Linear(5, 8), nn.Linear(7, 8), nn.Linear(16, 3)
        ...     def forward(self, image, sound):
        ...         return self.out(torch.cat([self.eye(image), self.ear(sound)], 1).relu())
        >>> net = wrap(Plain(), encoders={"image": "eye", "sound": "ear"}, head="out")
        >>> features = net.encode({"image": torch.randn(4, 5), "sound": torch.randn(4, 7)})
        >>> net.fuse(features).logits.shape
        torch.Size([4, 3])
    """
    if not encoders:
        raise UsageError("wrap: found no encoders; expected {modality: path}")
    names = [name for name, _ in module.named_modules() if name]
    for what, path in [*encoders.items(), ("head", head)]:
        path = path.partition(":")[0]
        if path not in names:
            near = difflib.get_close_matches(path, names, 3, 0.4)
            raise UsageError(
                f"wrap: {what}: {type(module).__name__} has no part {path!r}; expected one such as {listed(near or names[:5])}"
            )
    paths = {name: path.partition(":")[0] for name, path in encoders.items()}
    for name, path in paths.items():
        for other, outer in paths.items():
            if name != other and f"{path}.".startswith(f"{outer}."):
                raise UsageError(
                    f"wrap: the encoder of {name}, {path!r}, is part of that of {other}; expected one for each"
                )
    if not isinstance(module.get_submodule(head), nn.Linear):
        found = type(module.get_submodule(head)).__name__
        raise UsageError(f"wrap: head: {head!r} is a {found}; expected a linear layer, whose outputs are predicted")
    return Wrapped(module, encoders, head)


@contextmanager
def _answering(answers: Mapping[nn.Module, Any]) -> Iterator[None]:
    """Inside, modules give these outputs, whatever they are called with, and compute nothing."""
    for module, answer in answers.items():
        module.__dict__["forward"] = lambda *_, __answer=answer, **more: __answer
    try:
        yield
    finally:
        for module in answers:
            del module.__dict__["forward"]
