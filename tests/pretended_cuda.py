"""A CUDA device that is not there: tensors that say they are on it and are computed on the CPU.

It finds, without a GPU, what goes wrong on one: an operator on tensors of two devices, NumPy asked for a tensor of the
device, and every time the host waits for the device (`item`, `nonzero`, a mask as index, a copy to the host). What it
cannot find is a kernel that CUDA lacks, and how fast anything is.

PyTorch keeps one place per process for a device made in Python, so this belongs in a process of its own:
``python tests/pretended_cuda.py FILE`` runs the scenarios of a JSON file ``{name: sections}`` on the CPU and on this
device, and prints ``{name: {"error"} | {"apart", "waits": {"what at file:line": count}}}``.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

DEVICE = torch.device("cuda", 0)
MEMORY = 2**33  # bytes that the device says it has
aten = torch.ops.aten
INDEXING = (aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default)
COPYING = (aten._to_copy.default, aten.copy_.default, aten.lift_fresh.default, aten.detach.default)
WAITING = {
    aten._local_scalar_dense.default: "item", aten.nonzero.default: "nonzero", aten.equal.default: "equal",
    aten.masked_select.default: "masked_select", aten._unique2.default: "unique", aten.bincount.default: "bincount",
    aten.repeat_interleave.Tensor: "repeat_interleave", aten.unique_dim.default: "unique",
    aten._assert_async.default: "assert",
}  # fmt: skip


class TwoDevicesError(AssertionError):
    """An operator got tensors of the host and of the device."""


class Pretended(torch.Tensor):
    """A tensor of the device; `numbers` is the tensor that is computed with."""

    numbers: torch.Tensor
    is_cuda = True  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, real: torch.Tensor) -> Pretended:
        made: Pretended = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, real.size(), strides=real.stride(), storage_offset=real.storage_offset(), dtype=real.dtype,
            device=torch.device("pretended", 0),
        )  # fmt: skip
        made.numbers = real
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return DEVICE

    def tolist(self) -> Any:
        waits["tolist at " + place()] += 1
        return self.numbers.tolist()

    def untyped_storage(self) -> Any:
        return self.numbers.untyped_storage()

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(function, args, kwargs or {})


class HostGenerator(torch.Generator):
    """One of the CPU, whatever the device that is asked for."""

    def __new__(cls, device: Any = None) -> HostGenerator:  # noqa: ARG004
        return super().__new__(cls)


class Intercepted(TorchDispatchMode):
    """What is made on the device, or moved to it, becomes `Pretended`."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(function, args, kwargs or {})


waits: Counter[str] = Counter()


def place() -> str:
    """The innermost line of fedsim that is at work."""
    frame = sys._getframe(1)
    while frame is not None and "/fedsim/" not in frame.f_code.co_filename:
        frame = frame.f_back  # type: ignore[assignment]
    return "?" if frame is None else f"{frame.f_code.co_filename.rsplit('/fedsim/', 1)[1]}:{frame.f_lineno}"


def tensors_of(value: Any) -> list[torch.Tensor]:
    """Those of an operator's arguments, which are no deeper than lists; PyTorch's own walk takes far longer."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for v in value for t in tensors_of(v)] if isinstance(value, (list, tuple)) else []


def each(change: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    """The same with its tensors changed."""
    if isinstance(value, torch.Tensor):
        return change(value)
    return type(value)([each(change, v) for v in value]) if isinstance(value, (list, tuple)) else value


def computed(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What the operator gives, computed on the CPU; what it would have waited for is counted in `waits`."""
    tensors = tensors_of((*args, *kwargs.values()))
    on_device = any(isinstance(t, Pretended) for t in tensors)
    wanted = None if kwargs.get("device") is None else torch.device(kwargs["device"]).type != "cpu"
    lands = on_device if wanted is None else wanted
    if on_device:
        check(function, args, tensors)
    if function is aten.copy_.default:
        lands = isinstance(args[0], Pretended)
    if function in (aten._to_copy.default, aten.copy_.default) and on_device and not lands:
        waits["a copy to the host at " + place()] += 1
    if kwargs.get("device") is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if kwargs.get("pin_memory"):
        kwargs = {**kwargs, "pin_memory": False}
    numbers = {k: each(_numbers, v) for k, v in kwargs.items()}
    result = function(*each(_numbers, args), **numbers)
    if not lands:
        return result
    result = each(_landed, result)
    return return_and_correct_aliasing(function, args, kwargs, result)


def _numbers(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.numbers if isinstance(tensor, Pretended) else tensor


def _landed(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if isinstance(tensor, Pretended) else Pretended(tensor)


def check(function: Any, args: Any, tensors: list[torch.Tensor]) -> None:
    """Refuse what CUDA refuses, and count what makes the host wait."""
    if function in WAITING:
        waits[f"{WAITING[function]} at {place()}"] += 1
    if function in INDEXING:
        if not isinstance(args[0], Pretended):
            raise TwoDevicesError(f"a tensor of the host is indexed by one of the device at {place()}")
        if any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]):
            waits["a mask as index at " + place()] += 1
    elif function not in COPYING and any(not isinstance(t, Pretended) and t.dim() > 0 for t in tensors):
        raise TwoDevicesError(f"{function} on tensors of the host and of the device at {place()}")


def register() -> None:
    """Tell PyTorch of the device; its autograd asks for one that it knows."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend("pretended")  # type: ignore[no-untyped-call]


@contextmanager
def pretending() -> Iterator[None]:
    """``cuda:0`` is there: PyTorch says so, and makes tensors on it."""
    answers: dict[str, Any] = {
        "is_available": True, "device_count": 1, "get_device_name": "pretended", "mem_get_info": (MEMORY, MEMORY),
        "memory_allocated": 0, "max_memory_allocated": 2**20, "reset_peak_memory_stats": None, "synchronize": None,
        "_lazy_init": None,
    }  # fmt: skip
    was = torch._C._only_lift_cpu_tensors()
    torch.__future__.set_swap_module_params_on_conversion(True)  # parameters that a module shares stay shared
    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch(f"torch.cuda.{name}", lambda *_, answer=answer: answer))
        stack.enter_context(mock.patch("torch.Generator", HostGenerator))
        torch._C._set_only_lift_cpu_tensors(True)  # `torch.as_tensor(list, device=...)` is seen, too
        stack.callback(torch._C._set_only_lift_cpu_tensors, was)
        stack.enter_context(Intercepted())
        yield


def both(sections: dict[str, Any]) -> dict[str, Any]:
    """A scenario here, and where it is to be `compared` on the CPU: how far the models are apart, and what waited."""
    import fedsim

    compared = sections.pop("compared", False)
    with tempfile.TemporaryDirectory() as folder:
        try:
            run = {"device": "cpu", **sections["run"]}
            cpu = fedsim.run({**sections, "run": run}, Path(folder) / "cpu", progress=None) if compared else None
            waits.clear()
            with pretending():
                run = {**run, "device": "cuda:0"}
                gpu = fedsim.run({**sections, "run": run}, Path(folder) / "gpu", progress=None)
            params = gpu.params if cpu is None else cpu.params
            apart = float((gpu.params - params).abs().max() / params.abs().max().clamp_min(1.0))
        except Exception:
            return {"error": traceback.format_exc()[-6000:]}
        return {"apart": apart, "waits": dict(waits)}


if __name__ == "__main__":
    logging.disable()
    torch.set_num_threads(1)
    register()
    print(json.dumps({name: both(s) for name, s in json.loads(Path(sys.argv[1]).read_text()).items()}))
