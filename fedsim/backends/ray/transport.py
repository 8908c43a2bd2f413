"""Objects with tensors in them as arrays that Ray keeps in shared memory once per node and maps without copying.

Ray pickles a torch tensor into the message; a numpy array goes beside it and is mapped read-only by every reader.
"""

from __future__ import annotations

import importlib
import io
import pickle
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

_MAPPED = 2**16  # bytes above which an unpacked tensor stays in shared memory; smaller ones are copied and writable

Packed = list[Any]
"""A pickle, and the buffers that belong to it, as arrays of bytes."""


def pack(value: Any) -> Packed:
    """`value` for `unpack` in another process; classes that cannot be imported there travel by value."""
    cloudpickle: Any = importlib.import_module("ray.cloudpickle")

    class Pickler(cloudpickle.CloudPickler):  # type: ignore[misc]
        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, Tensor) and type(obj) is Tensor and obj.layout is torch.strided:
                return _tensor, (as_array(obj), str(obj.dtype).removeprefix("torch."))
            return super().reducer_override(obj)

    buffers: list[pickle.PickleBuffer] = []
    stream = io.BytesIO()
    Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(value)
    return [stream.getvalue(), *(np.frombuffer(b.raw(), dtype=np.uint8) for b in buffers)]


def unpack(packed: Packed) -> Any:
    """What was packed. Large tensors are mapped, not copied: they must not be written to."""
    return pickle.loads(packed[0], buffers=packed[1:])


def as_array(tensor: Tensor) -> np.ndarray[Any, Any]:
    """A tensor as a contiguous array; types that numpy lacks as the integers of their size."""
    plain = tensor.detach().cpu().contiguous()
    return plain.view(torch.int16).numpy() if plain.dtype is torch.bfloat16 else plain.numpy()


def as_tensor(array: np.ndarray[Any, Any], device: torch.device) -> Tensor:
    """An array that came from another process as a tensor: mapped on a CPU, copied to a GPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of read-only memory; whoever writes to it breaks a law anyway
        return torch.from_numpy(array).to(device)


def as_arrays(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray[Any, Any]]:
    return {k: as_array(v) for k, v in tensors.items()}


def as_tensors(arrays: Mapping[str, np.ndarray[Any, Any]], device: torch.device) -> dict[str, Tensor]:
    return {k: as_tensor(v, device) for k, v in arrays.items()}


def _tensor(array: np.ndarray[Any, Any], dtype: str) -> Tensor:
    tensor = as_tensor(array, torch.device("cpu"))
    tensor = tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor
    return tensor if array.nbytes > _MAPPED else tensor.clone()
