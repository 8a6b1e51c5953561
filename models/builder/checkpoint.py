"""Tensors of a checkpoint as torch wrote it before version 1.6.

The file is a pickle. It is data, and is read as data: an unpickler that knows four names and
refuses every other cannot be made to run code.
"""

from __future__ import annotations

import io
import math
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_app.errors import ModelError

_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
_TORCH_PROTOCOL = 1001
_STORAGE_DTYPES = {"FloatStorage": "<f4", "LongStorage": "<i8"}


def read_checkpoint(data: bytes) -> dict[str, NDArray[Any]]:
    """Tensors of a legacy torch checkpoint, by name. Raises ModelError; executes nothing."""
    stream = io.BytesIO(data)
    try:
        header = [_CheckpointUnpickler(stream).load() for _ in range(3)]
        views = _CheckpointUnpickler(stream).load()
        keys = _CheckpointUnpickler(stream).load()
        if header[:2] != [_TORCH_MAGIC, _TORCH_PROTOCOL]:
            raise ModelError("not a legacy torch checkpoint: its first numbers are others")
        dtypes = {view.key: view.dtype for view in views.values()}
        storages = {key: _read_storage(stream, dtypes[key]) for key in keys}
        return {name: view.take(storages) for name, view in views.items()}
    except (pickle.UnpicklingError, EOFError, ValueError, KeyError, AttributeError, TypeError) as e:
        raise ModelError(f"not a legacy torch checkpoint: {e}") from e


@dataclass(frozen=True, slots=True)
class _View:
    """A tensor as pickled: a window on a storage that comes later in the file."""

    key: str
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def take(self, storages: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        contiguous = tuple(math.prod(self.shape[axis + 1 :]) for axis in range(len(self.shape)))
        if self.strides != contiguous:
            raise ValueError(f"a tensor of shape {self.shape} has strides {self.strides}")
        count = math.prod(self.shape)
        return storages[self.key][self.offset : self.offset + count].reshape(self.shape)


class _CheckpointUnpickler(pickle.Unpickler):
    """Knows an ordered dictionary, a tensor and two storages; refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if module == "torch" and name in _STORAGE_DTYPES:
            return _STORAGE_DTYPES[name]
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a checkpoint")

    def persistent_load(self, pid: Any) -> tuple[str, str]:
        """A storage's key in the file, and its type."""
        kind, dtype, key, *_ = pid
        if kind != "storage":
            raise pickle.UnpicklingError(f"{kind!r} has no place in a checkpoint")
        return key, dtype


def _rebuild_tensor(
    storage: tuple[str, str], offset: int, shape: Any, strides: Any, *_: object
) -> _View:
    key, dtype = storage
    return _View(key, dtype, offset, tuple(shape), tuple(strides))


def _read_storage(stream: io.BytesIO, dtype: str) -> NDArray[Any]:
    count = int.from_bytes(stream.read(8), "little")
    size = count * np.dtype(dtype).itemsize
    data = stream.read(size)
    if len(data) != size:
        raise ModelError(f"checkpoint ends early: {len(data)} of {size} bytes of a tensor")
    return np.frombuffer(data, dtype)
