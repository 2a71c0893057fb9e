"""How much memory a computation takes at most, counted without doing it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Ledger(TorchDispatchMode):
    """Adds up the storages that operations make, until they are freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's is not annotated
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                # what was there before is the caller's
                self._meet(leaf, count=False)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._meet(leaf, count=True)
        self.peak = max(self.peak, self.now)
        return out

    def _meet(self, tensor: Tensor, *, count: bool) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        size = storage.nbytes() if count else 0
        self.now += size
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def peak_bytes(work: Callable[[], Any]) -> int:
    """Return the most bytes of tensors that are alive at once while `work` runs.

    On tensors of the meta device nothing is computed and nothing takes room; what inputs and
    weights hold is not counted, nor what libraries take for themselves.

    Parameters
    ----------
    work : callable
        Does the computation and returns what shall stay alive to the end.

    Examples
    --------
    >>> import torch
    >>> x = torch.empty(1000, device="meta")
    >>> peak_bytes(lambda: (x + 1) * 2)
    8000
    """
    ledger = _Ledger()
    with ledger:
        kept = work()
    del kept
    return ledger.peak
