"""A device that is not the CPU, made of the CPU: it computes, and it refuses what CUDA would refuse.

Its tensors say that they are on `DEVICE` and hold a CPU tensor that nothing else can reach. Within
`elsewhere()`, an operation on them runs on what they hold; one that is also given a CPU tensor of one
dimension or more raises, as PyTorch does for two devices; and so does turning one into numpy. What is made
with `device=DEVICE`, or moved there, is such a tensor; what is made without is an ordinary one, and fails
where it meets them. So work that goes through has kept every tensor where it was told to, and results compare
with the CPU's to the bit.

The name is `meta`, for which PyTorch asks for no driver. Nothing is said of CUDA's kernels: not which exist,
nor their rounding, nor whether they are deterministic.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")

_CROSSING = ("aten.copy_.default", "aten._to_copy.default")
"""Operations that may be given tensors of two devices."""
_INDEXING = ("aten.index.Tensor", "aten.index_put_.default")
"""Operations whose second argument, the index, may be on the CPU whatever it indexes."""


class MixedDevicesError(RuntimeError):
    """Tensors of two devices met in one operation."""


class Elsewhere(torch.Tensor):
    """A tensor that says it is on `DEVICE`."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls: type[Elsewhere], held: torch.Tensor) -> Elsewhere:
        made: Elsewhere = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
            requires_grad=False,
        )
        made.held = held
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Elsewhere({self.held!r})"

    def tolist(self) -> Any:
        return self.held.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("can't convert a tensor of another device to numpy: copy it to the CPU first")

    def __array__(self, dtype: Any = None) -> Any:
        return self.numpy()

    @classmethod
    def __torch_dispatch__(
        cls,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return _run(func, args, kwargs or {}, None)


class _Mode(TorchDispatchMode):
    """Sees the operations that no tensor of `DEVICE` takes part in: those that make one."""

    def __init__(self, seen: Counter[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return _run(func, args, kwargs or {}, self.seen)


@contextmanager
def elsewhere() -> Generator[Counter[str]]:
    """Within it `DEVICE` can be used; what is given counts the operations that ran there, by name."""
    seen: Counter[str] = Counter()
    with _Mode(seen):
        yield seen


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seen: Counter[str] | None) -> Any:
    name = str(func)
    there = _tensors((args, kwargs), Elsewhere)
    if there and name not in _CROSSING:
        bound = (args[0], *args[2:]) if name in _INDEXING else args
        here = [item for item in _tensors((bound, kwargs)) if not isinstance(item, Elsewhere)]
        if any(item.dim() for item in here):
            raise MixedDevicesError(f"{name}: expected all tensors to be on the same device")
    asked: Any = kwargs.get("device")
    onto = bool(there) if asked is None else torch.device(asked) == DEVICE
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if seen is not None and onto:
        seen[name] += 1
    args, kwargs = tree_map(_held, (args, kwargs))
    found = func(*args, **kwargs)
    if not onto:
        return found
    # An operation in place gives back the very tensor that it was given.
    known = {id(item.held): item for item in there}

    def placed(item: Any) -> Any:
        if not isinstance(item, torch.Tensor):
            return item
        return known[id(item)] if id(item) in known else Elsewhere(item)

    return tree_map(placed, found)


def _tensors(tree: Any, kind: type[torch.Tensor] = torch.Tensor) -> list[Any]:
    return [item for item in tree_flatten(tree)[0] if isinstance(item, kind)]


def _held(item: Any) -> Any:
    return item.held if isinstance(item, Elsewhere) else item
