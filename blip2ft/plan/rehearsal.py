"""A training step without numbers: every tensor has its shape and its bytes, and none its values.

The real model runs its real forward and backward pass on the meta device, so that what keeps
memory, what gives it back and when is the code's own doing: frozen parts, adapters, gradient
checkpointing, image size and length of text all show without being told.
"""

import gc
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from blip2ft.models.parts import PARTS, modules_of
from blip2ft.plan.cuda_like import CudaLike
from blip2ft.plan.timeline import Event, Timeline

aten = torch.ops.aten
# Layouts of results, over all passes: (operation, layouts of its arguments) -> layouts.
_seen: dict[Any, Any] = {}
# What isn't a part's own: the batch and the loss, gradients of weights, autocast's copies of them.
LOSS, GRADIENTS, CASTS = "loss", "gradients", "casts"


class Recorder(TorchDispatchMode):
    """Runs what it is given and notes each storage's birth and death.

    Ids and masks are small, and code asks for their values (which labels count, how long is the
    longest text), so these are real tensors on the CPU. Where they meet a tensor without values
    only their shape counts; rows that a tensor without values picks are taken to be the first.
    """

    def __init__(self, seen: dict[Any, Any]) -> None:
        super().__init__()
        self._seen = seen
        self.events: list[Event] = []
        self.marked: dict[int, str] = {}
        self.part = LOSS
        self._alive: dict[int, tuple[int, Any]] = {}
        self._births = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is aten._local_scalar_dense.default and not _has_values(args[0]):
            return 0.0  # a number that is looked at, such as to tell two losses apart
        args, named = _mixed(func, args, dict(kwargs or {}))
        out = self._call(func, args, named)
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, Tensor):
                self._note(value)
        return out

    def _call(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """`func(...)`; layers are alike, so most results have been seen, and are only laid out."""
        key = _key(func, args, kwargs) if _makes_new(func) else None
        if key is None:
            return func(*args, **kwargs)
        if key not in self._seen:
            out = func(*args, **kwargs)
            self._seen[key] = _layout(out)
            return out
        known = self._seen[key]
        if known is None:
            return func(*args, **kwargs)
        made = [spec and torch.empty_strided(*spec[:2], **spec[2]) for spec in known[1]]
        return tuple(made) if known[0] else made[0]

    def ignore(self, tensor: Tensor) -> None:
        """This storage is counted elsewhere, such as a weight's."""
        storage = tensor.untyped_storage()
        self._alive[storage._cdata] = (-1, weakref.ref(storage))

    def mark(self, tensors: Iterable[Tensor], part: str) -> None:
        """These belong to `part`, wherever they were born."""
        for tensor in tensors:
            number, _ = self._alive.get(tensor.untyped_storage()._cdata, (-1, None))
            if number >= 0:
                self.marked[number] = part

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        address, size = storage._cdata, storage.nbytes()
        if address in self._alive or not size:
            return
        number = self._births
        self._births += 1

        def died(_: Any) -> None:
            del self._alive[address]
            self.events.append(Event(number, -size, self.part))

        self._alive[address] = (number, weakref.ref(storage, died))
        self.events.append(Event(number, size, self.part))


def rehearse(
    model: nn.Module,
    loss: Callable[[nn.Module, dict[str, Any]], Tensor],
    batch: Mapping[str, Any],
    backend: CudaLike,
) -> Timeline:
    """The life of every tensor of one micro-batch's forward and backward pass.

    model: on the meta device, in train mode; its weights aren't part of the result, its gradients
      are, as GRADIENTS. batch: pixel_values on the meta device, ids and masks on the CPU.
    backend: stands for the hardware.
    """
    recorder = Recorder(_seen)
    for tensor in (*model.parameters(), *model.buffers()):
        recorder.ignore(tensor)
    for value in batch.values():
        recorder._note(value)
    model.zero_grad(set_to_none=True)
    with _no_collection(), _parts_told(model, recorder), _checkpoints(model, backend), recorder:
        with backend.forward():
            value = loss(model, dict(batch))
            recorder.mark(backend.cache.values(), CASTS)
        with backend.backward():
            torch.autograd.backward(value)
    recorder.mark((p.grad for p in model.parameters() if p.grad is not None), GRADIENTS)
    model.zero_grad(set_to_none=True)
    return Timeline.of(recorder.events, recorder.marked, GRADIENTS)


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage is collected meanwhile: its moment would differ from pass to pass."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def _parts_told(model: nn.Module, recorder: Recorder) -> Iterator[None]:
    """While a module of a part runs, what is born belongs to the part."""
    handles, stack = [], []

    def entering(part: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            stack.append(recorder.part)
            recorder.part = part

        return hook

    def leaving(*_: Any) -> None:
        recorder.part = stack.pop()

    # on every module: some models call a part's layers and not the part
    for part in PARTS:
        for top in modules_of(model, part):
            for module in top.modules():
                handles.append(module.register_forward_pre_hook(entering(part), prepend=True))
                handles.append(module.register_forward_hook(leaving, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _checkpoints(model: nn.Module, backend: CudaLike) -> Iterator[None]:
    """What is checkpointed is computed in the backward pass as in the forward."""
    name = "_gradient_checkpointing_func"
    kept = {m: vars(m)[name] for m in model.modules() if name in vars(m)}
    for module, function in kept.items():
        setattr(module, name, backend.again(function))
    try:
        direct = backend.again(torch.utils.checkpoint.checkpoint)
        with mock.patch("torch.utils.checkpoint.checkpoint", direct):
            yield
    finally:
        for module, function in kept.items():
            setattr(module, name, function)


def _mixed(func: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """The arguments of an operation, where tensors with and without values meet."""
    tensors = list(_tensors(args))
    flat: Sequence[Any] = args
    if "device" in kwargs and all(map(_has_values, tensors)) and _makes_numbers(func, flat, kwargs):
        kwargs.pop("device")  # ids and masks stay real
    if len({_has_values(tensor) for tensor in tensors}) < 2:
        return args, kwargs
    flat, spec = tree_flatten((args, kwargs))
    if func is aten.index.Tensor:
        table, places = args
        if _has_values(table) and not table.is_floating_point():
            first = [p if p is None or _has_values(p) else _first_rows(p) for p in places]
            return (table, first), kwargs
        # a mask with values picks a known number of rows
        found: list[Any] = []
        for place in places:
            is_mask = place is not None and place.dtype == torch.bool and _has_values(place)
            found += place.nonzero(as_tuple=True) if is_mask else [place]
        flat, spec = tree_flatten(((table, found), kwargs))
    flat = [v.to("meta") if isinstance(v, Tensor) and v.ndim else v for v in flat]
    return tree_unflatten(flat, spec)


def _makes_numbers(func: Any, flat: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether the result is of whole numbers or booleans."""
    dtype = kwargs.get("dtype")
    if dtype is not None:
        return not dtype.is_floating_point
    tensors = [value for value in flat if isinstance(value, Tensor)]
    if tensors:
        return not tensors[0].is_floating_point()
    return func.overloadpacket is aten.arange and not any(isinstance(v, float) for v in flat)


@cache
def _makes_new(func: Any) -> bool:
    """Whether all results are new tensors, neither views nor changed arguments."""
    schema = func._schema
    return func is not aten._unsafe_view.default and not any(
        part.alias_info for part in (*schema.arguments, *schema.returns)
    )


def _key(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    """What the layout of the result depends on; None where that is more than layouts."""
    facts = *map(_fact, args), *map(_fact, kwargs.values())
    return None if _VALUES in facts else (func, tuple(kwargs), facts)


_VALUES = ("a tensor with values",)


def _fact(value: Any) -> Any:
    if isinstance(value, Tensor):
        if _has_values(value):
            return _VALUES
        return tuple(value.shape), value.stride(), value.dtype
    if isinstance(value, (list, tuple)):
        facts = tuple(map(_fact, value))
        return _VALUES if _VALUES in facts else facts
    return type(value), value


def _layout(out: Any) -> Any:
    """(whether it is several tensors, how each is laid out); None where it is anything else."""
    values = out if isinstance(out, tuple) else (out,)
    if not all(value is None or isinstance(value, Tensor) for value in values):
        return None
    if any(value is not None and _has_values(value) for value in values):
        return None
    specs = [
        None
        if value is None
        else (value.shape, value.stride(), {"dtype": value.dtype, "device": "meta"})
        for value in values
    ]
    return isinstance(out, tuple), specs


def _tensors(args: Iterable[Any]) -> Iterator[Tensor]:
    for value in args:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _has_values(tensor: Tensor) -> bool:
    return tensor.device.type != "meta"


def _first_rows(places: Tensor) -> Tensor:
    return torch.zeros(places.shape, dtype=torch.long)
