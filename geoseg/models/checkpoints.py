"""Read weights files of others without letting them run code.

A ``.safetensors`` file cannot run code. A ``.pth`` is opened by ``torch.load(weights_only=True)``
alone. A ``.pkl`` goes through `_Weights`, an unpickler that knows a handful of names: what numpy
writes for its arrays, ordered dictionaries and two string conversions. It hands out stand-ins for
them, never the functions themselves, so a pickle cannot call numpy either. Anything else in the
file, such as ``os.system``, is refused by name before it is looked up.

References
----------
Python's documentation of `pickle`, "Restricting Globals"; CVE-2025-32434 (torch below 2.6) and
CVE-2026-24747 (torch below 2.10) for why the floor of torch in ``pyproject.toml`` is what it is.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from geoseg.errors import ModelError

MAX_BYTES = 8 << 30
"""A larger file, or one that unpacks to more, is no detector of ours: R101 with FPN has 250 MB."""
SUFFIXES = (".safetensors", ".pth", ".pt", ".pkl")
"""Files that can be read."""
_HOLDERS = ("model", "state_dict", "model_state_dict", "blobs")
"""Keys under which training programs keep the weights beside their own state."""
_NUMBERS = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248])")
"""Array types that weights can have: booleans, integers and floats."""
_LISTED = 5


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """Weights of a file by the names that they have there."""

    weights: Mapping[str, Tensor]
    """Dense tensors on the CPU, all finite, in the file's number types."""
    author: str = ""
    """What the file's ``__author__`` says; Detectron2's model zoo signs there."""


def listed(names: list[str]) -> str:
    """Return names for a message: the first ones and how many there are."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the weights in a file.

    Parameters
    ----------
    path : Path
        Ends in ``.safetensors``, ``.pth``, ``.pt`` or ``.pkl``. The weights are the file's
        mapping itself, or lie under ``model``, ``state_dict``, ``model_state_dict`` or ``blobs``.

    Returns
    -------
    Checkpoint
        Names as in the file, without a ``module.`` that all of them begin with.

    Raises
    ------
    ModelError
        If the file is missing, too large or broken, wants to call anything, or holds something
        that is no weight or not finite; the message names it.
    """
    if path.suffix not in SUFFIXES:
        raise ModelError(f"{path} is no weights file; expected one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise ModelError(f"weights file {path} does not exist; check the path")
    if path.stat().st_size > MAX_BYTES:
        raise ModelError(f"{path} has {path.stat().st_size:,} bytes; {MAX_BYTES:,} is the limit")
    if path.suffix == ".safetensors":
        return _checked(_read_safetensors(path), path)
    content = _read_pickle(path) if path.suffix == ".pkl" else _read_torch(path)
    return _checked(content, path)


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise ModelError(f"{path} is not a readable safetensors file: {error}") from error
    return tensors


# --- .pth ------------------------------------------------------------------------------------


def _read_torch(path: Path) -> Any:
    """Open a file of torch.save; `weights_only` refuses whatever is no plain data."""
    if (unpacked := _unpacked_bytes(path)) > MAX_BYTES:
        raise ModelError(f"{path} unpacks to {unpacked:,} bytes; {MAX_BYTES:,} is the limit")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        text = str(error)
        found = re.search(r"(?:GLOBAL|function|class)\s+([\w.]+)", text)
        if found is None:
            raise ModelError(f"{path} is not a readable torch file: {_short(error)}") from error
        raise _refusal(path, found[1]) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, AttributeError,
            IndexError, AssertionError, UnicodeDecodeError, MemoryError) as error:  # fmt: skip
        # ^ what torch and its unpickler raise on files cut short or made up
        raise ModelError(f"{path} is not a readable torch file: {_short(error)}") from error


def _unpacked_bytes(path: Path) -> int:
    """Return what the members of a zip file unpack to; 0 of any other file."""
    try:
        # is_zipfile raises, too, over some that are broken
        if not zipfile.is_zipfile(path):
            return 0
        with zipfile.ZipFile(path) as archive:
            return sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ModelError(f"{path} is a broken torch file: {_short(error)}") from error


def _short(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _refusal(path: Path, wanted: str) -> ModelError:
    return ModelError(
        f"{path} wants to call {wanted} when it is opened; refused, nothing in it was run. Weights "
        "need no calls: load the file where you trust it and save its tensors alone, as "
        "safetensors or by torch.save(model.state_dict(), ...)"
    )


# --- .pkl ------------------------------------------------------------------------------------


class _RefusedError(Exception):
    """The pickle names something outside the list; the first argument is its name."""


class _StandIn:
    """What a pickle gets instead of a function: a call of a few known forms, and no state."""

    __slots__ = ("_make", "_name")

    def __init__(self, name: str, make: Callable[..., Any]) -> None:
        self._name = name
        self._make = make

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs:
            raise TypeError(f"{self._name} called with named arguments")
        return self._make(*args)

    def __setstate__(self, state: Any) -> NoReturn:
        # a pickle may set the state of any object that it holds, this one too
        raise TypeError(f"{self._name} has no state to set")


class _NumberType:
    """A ``numpy.dtype`` as pickled: a code, and the byte order as its state."""

    __slots__ = ("code",)

    def __init__(self, code: str) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) >= 5 else None
        if order not in ("<", ">", "=", "|") or any(part is not None for part in state[2:5]):
            raise ValueError("an array of records, not of numbers")
        self.code = order + self.code.lstrip("<>=|")

    def numpy(self) -> np.dtype[Any]:
        """Return the numpy type, if it is a plain number."""
        if not _NUMBERS.fullmatch(self.code):
            raise ValueError(f"an array of type '{self.code}', not of numbers")
        return np.dtype(self.code)


class _Array:
    """A ``numpy.ndarray`` as pickled, kept as its parts until they are checked."""

    __slots__ = ("values",)

    def __init__(self, values: npt.NDArray[Any] | None = None) -> None:
        self.values = values

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise ValueError("an array has no five-part state")
        _, shape, dtype, fortran, data = state
        self.values = _array(data, dtype, shape, "F" if fortran else "C")


def _array(data: Any, dtype: Any, shape: Any, order: Any) -> npt.NDArray[Any]:
    """Lay bytes out as an array; numpy checks that shape and bytes agree."""
    if isinstance(data, str):
        data = data.encode("latin1")  # a pickle of Python 2, whose strings are bytes
    if not isinstance(dtype, _NumberType) or not isinstance(data, bytes | bytearray):
        raise ValueError("an array of objects, not of numbers")
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"an array has the shape {str(shape)[:80]}")
    kind = dtype.numpy()
    return np.frombuffer(bytes(data), kind).reshape(shape, order="F" if order == "F" else "C")


def _new_array(*_: Any) -> _Array:
    return _Array()  # numpy writes an empty array first, its content comes as the state


def _array_of_buffer(data: Any, dtype: Any, shape: Any, order: Any = "C") -> _Array:
    return _Array(_array(data, dtype, shape, order))


def _number_type(code: Any, *_: Any) -> _NumberType:
    return _NumberType(str(code))


def _scalar(dtype: Any, data: Any = b"") -> Any:
    return _array(data, dtype, (), "C").item()


def _encode(text: Any, codec: Any = "latin1", *_: Any) -> bytes:
    if not isinstance(text, str) or codec not in ("latin1", "latin-1"):
        raise _RefusedError(f"_codecs.encode to {codec!r}")
    return text.encode("latin1")


def _bytes(*args: Any) -> bytes:
    if args:
        return _encode(*args)
    return b""


def _known() -> dict[tuple[str, str], Any]:
    """Return what a pickle of weights may name."""
    arrays: dict[str, Callable[..., Any]] = {
        "multiarray._reconstruct": _new_array,
        "multiarray.scalar": _scalar,
        "numeric._frombuffer": _array_of_buffer,
    }
    known: dict[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): OrderedDict,
        ("numpy", "dtype"): _StandIn("numpy.dtype", _number_type),
        ("numpy", "ndarray"): _StandIn("numpy.ndarray", _new_array),
        ("_codecs", "encode"): _StandIn("_codecs.encode", _encode),
    }
    for core in ("numpy.core", "numpy._core"):  # before and since numpy 2
        for name, make in arrays.items():
            module, _, function = f"{core}.{name}".rpartition(".")
            known[module, function] = _StandIn(f"{module}.{function}", make)
    for module in ("builtins", "__builtin__"):  # Python 3 and 2
        known[module, "bytes"] = _StandIn("bytes", _bytes)
    return known


class _Weights(pickle.Unpickler):
    """Unpickles numbers, strings, containers and numpy arrays; refuses everything else."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Return the stand-in of a name on the list; nothing is imported."""
        found = _known().get((module_name, global_name))
        if found is None:
            raise _RefusedError(f"{module_name}.{global_name}")
        return found

    def persistent_load(self, pid: Any, /) -> NoReturn:
        """Refuse references to storage outside the file."""
        raise _RefusedError(f"the storage {str(pid)[:80]} outside the file")


def _read_pickle(path: Path) -> Any:
    """Open a pickle of protocol 0 to 5, also one that Python 2 wrote."""
    try:
        with path.open("rb") as file:
            return _Weights(file, encoding="latin1").load()
    except _RefusedError as error:
        raise _refusal(path, str(error)) from error
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, KeyError,
            IndexError, RecursionError, MemoryError, OverflowError) as error:  # fmt: skip
        # ^ what a pickle that is cut short or made up can raise
        raise ModelError(f"{path} is not a readable pickle of weights: {_short(error)}") from error


# --- what is in it ---------------------------------------------------------------------------


def _checked(content: Any, path: Path) -> Checkpoint:
    """Find the weights in what a file held, and check each of them."""
    if not isinstance(content, Mapping):
        raise ModelError(f"{path} holds a {type(content).__name__}; expected a table of weights")
    author = content.get("__author__", "")
    for holder in _HOLDERS:
        if isinstance(content.get(holder), Mapping):
            content = content[holder]
            break
    weights: dict[str, Tensor] = {}
    others: list[str] = []
    for key, value in content.items():
        name = key.decode("latin1") if isinstance(key, bytes) else str(key)
        tensor = _tensor(value)
        if tensor is None:
            others.append(f"{name} ({type(value).__name__.lstrip('_')})")
        else:
            weights[name] = tensor
    if others:
        raise ModelError(f"{path} holds what is no weight: {listed(others)}; expected arrays only")
    if not weights:
        raise ModelError(f"{path} holds no weights")
    _check_values(weights, path)
    if all(name.startswith("module.") for name in weights):
        # torch's data-parallel wrappers put it there
        weights = {name.removeprefix("module."): value for name, value in weights.items()}
    return Checkpoint(weights, author if isinstance(author, str) else "")


def _tensor(value: Any) -> Tensor | None:
    """Return a stored value as a dense tensor, or None if it is none."""
    if isinstance(value, _Array) and value.values is not None:
        native = value.values.astype(value.values.dtype.newbyteorder("="), copy=True)
        if native.dtype.kind == "u" and native.dtype.itemsize > 1:
            native = native.astype(np.int64)
        return torch.from_numpy(native)
    if isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized:
        return value.detach()
    return None


def _check_values(weights: dict[str, Tensor], path: Path) -> None:
    """Raise if weights are too many to hold or not finite; make them contiguous."""
    # a small file can claim a large tensor: one that repeats its storage
    total = sum(value.numel() * value.element_size() for value in weights.values())
    if total > MAX_BYTES:
        raise ModelError(f"{path} holds {total:,} bytes of weights; {MAX_BYTES:,} is the limit")
    bad = [
        name
        for name, value in weights.items()
        if value.is_floating_point() and not bool(torch.isfinite(value).all())
    ]
    if bad:
        raise ModelError(
            f"{path}: {len(bad)} weights hold values that are not finite: {listed(bad)}; the "
            "training that wrote them has diverged, or the file is damaged"
        )
    for name, value in weights.items():
        weights[name] = value.contiguous()
