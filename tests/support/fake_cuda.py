"""A CUDA device that is none, for machines without one: code under test runs unchanged with device="cuda".

    with FakeCuda() as cuda:
        actor = FrameScorer(latents, motion, cpus=1, gpu=True, keep_frames=False)
        cuda.reset()
        actor(batch)
        assert cuda.waits <= 3, cuda.log

A tensor of the device is one of the CPU that claims another device to Python: real numbers, real autograd, and each
operation passes here, in every dtype, under inference mode and torch.autocast("cuda"). What is checked and counted:

- tensors of two devices in one operation are refused, unless CUDA takes them (0-dim tensors, indices, copies)
- dtypes mixed in products and convolutions are refused, products of integers too, and resizing of bytes
- to_device, to_host: copies between the devices
- waits: where the host waits for the device: copies that block or come from unpinned memory, `.item()`, `bool()`,
  `nonzero`, boolean masks as indices, `synchronize`
- a copy to the host with non_blocking holds garbage until something waits

autocast("cuda") is the CPU's with CUDA's lists of operations: it would cast tensors of the CPU, too. What is not here:
more than one device, streams that overtake one another, memory, kernels and their rounding, fused optimizers. Other
threads of the code under test can use its tensors, and make none.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self
from unittest.mock import patch

import torch
from torch import Tensor
from torch.amp.autocast_mode import autocast
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map_only

from tests.support.cuda_rules import (
    DEVICE,
    PRODUCTS,
    WAITING,
    Generator,
    Waiter,
    check,
    check_generator,
    cudas_autocast,
    forget,
    stream,
    tensors_in,
)

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")

# Type checkers know that properties of tensors are not to be overridden.
_Tensor: Any = torch.Tensor


class CudaTensor(_Tensor):
    """A tensor that claims to be on the device."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert FakeCuda.now, "a tensor of the device has outlived it"
        return FakeCuda.now.run(func, args, kwargs or {})

    @property
    def device(self) -> torch.device:
        return DEVICE

    @property
    def is_cuda(self) -> bool:
        return True

    @property
    def is_cpu(self) -> bool:
        return False

    def numpy(self, *, force: bool = False) -> Any:
        if force:
            return self.detach().cpu().numpy()
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    def tolist(self) -> Any:
        return self.detach().cpu().tolist()

    def new_tensor(self, data: Any, *, dtype: Any = None, device: Any = DEVICE, requires_grad: bool = False) -> Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype, device=device, requires_grad=requires_grad)

    def record_stream(self, stream: Any) -> None: ...

    def __repr__(self, **_: Any) -> str:
        return f"CudaTensor({_bare(self)})"


def _claim(one: Tensor) -> Tensor:
    return one if isinstance(one, CudaTensor) else torch.Tensor._make_subclass(CudaTensor, one)  # pyright: ignore


def _bare(one: Tensor) -> Tensor:
    """A tensor of the CPU with the same memory."""
    with torch._C._DisableTorchDispatch():
        return torch.Tensor._make_subclass(torch.Tensor, one)  # pyright: ignore


class _Move(torch.autograd.Function):
    """A copy to the other device, whose gradient comes back."""

    @staticmethod
    def forward(ctx: Any, one: Tensor, waits_not: bool) -> Tensor:
        assert FakeCuda.now
        return FakeCuda.now.moved(one, waits_not)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _Move.apply(grads[0], False), None


class _Calls(TorchFunctionMode):
    """Knows which operations are steps of a call that Python makes with tensors of the device."""

    def __init__(self, device: "FakeCuda") -> None:
        super().__init__()
        self._device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        mine = any(map(_is, tensors_in((args, kwargs))))
        if (given := kwargs.get("generator")) is not None:
            check_generator(given, mine if (at := kwargs.get("device")) is None else torch.device(at).type == "cuda")
        if not mine:
            return func(*args, **kwargs)
        self._device.inside += 1
        try:
            return func(*args, **kwargs)
        finally:
            self._device.inside -= 1


class FakeCuda(TorchDispatchMode):
    """The device, for the time of a `with`."""

    now: "FakeCuda | None" = None

    def __init__(self) -> None:
        super().__init__()
        self._stack = ExitStack()
        self._deep = self.inside = 0
        self._pinned: dict[int, Tensor] = {}
        """What is pinned by the address of its memory, which is kept so that no other gets it."""
        self._coming: list[tuple[Tensor, Tensor]] = []
        """Copies to the host that nothing has waited for: where to, and what."""
        self.reset()

    def reset(self) -> None:
        """Count from 0."""
        self.to_device = self.to_host = self.waits = 0
        self.log: list[str] = []
        """What was counted: what it was, the operation, the line of the project."""

    def wait(self, why: str) -> None:
        """Count that the host waits, and hand it what it waits for."""
        self.waits += 1
        self._note("wait", why)
        for there, what in self._coming:
            with _disable_current_modes():
                there.copy_(what)
        self._coming.clear()

    def _note(self, kind: str, what: str) -> None:
        frame: Any = sys._getframe(1)
        while frame and not frame.f_code.co_filename.startswith((f"{ROOT}/actors/", f"{ROOT}/pipelines/")):
            frame = frame.f_back
        where = f"{Path(frame.f_code.co_filename).relative_to(ROOT)}:{frame.f_lineno}" if frame else "elsewhere"
        self.log.append(f"{kind} {what} {where}")

    # ---------------------------------------------------------------------------------------------------------- copies

    def moved(self, one: Tensor, waits_not: bool, to: Tensor | None = None) -> Tensor:
        """A tensor on the other device; to: memory there that takes it."""
        if not isinstance(one, CudaTensor):
            self.to_device += 1
            self._note("to_device", "copy")
            if not (waits_not and self._is_pinned(one)):
                self.wait("copy to the device")
            return _claim(one.clone())
        self.to_host += 1
        self._note("to_host", "copy")
        bare = _bare(one).clone()
        if not waits_not:
            self.wait("copy to the host")
            return bare
        garbage = torch.full_like(bare, 123) if to is None else to
        self._coming.append((garbage, bare))
        return garbage

    def _to(self, real: Any, one: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Tensor.to, which would take both devices for one."""
        if args and isinstance(args[0], Tensor):
            args = (args[0].device, args[0].dtype, *args[1:])
        if isinstance(kwargs.get("other"), Tensor):
            other = kwargs.pop("other")
            kwargs |= {"device": other.device, "dtype": other.dtype}
        copy = kwargs.pop("copy", False)
        device, dtype, waits_not, layout = torch._C._nn._parse_to(  # pyright: ignore[reportAttributeAccessIssue]
            *args, **kwargs
        )
        goes = isinstance(one, CudaTensor) if device is None else device.type == "cuda"
        rest = {"copy": copy, **({} if layout is None else {"memory_format": layout})}
        if goes == isinstance(one, CudaTensor):
            return real(one, one.dtype if dtype is None else dtype, **rest)
        moved: Any = _Move.apply(one, waits_not)
        if waits_not and not goes and (dtype not in (None, one.dtype)):
            raise NotImplementedError("a copy to the host that does not wait and converts")
        return real(moved, one.dtype if dtype is None else dtype, **rest)

    def _pin(self, what: Tensor) -> Tensor:
        self._pinned[what.untyped_storage().data_ptr()] = what
        return what

    def _is_pinned(self, what: Tensor, *_: Any) -> bool:
        return not _is(what) and what.untyped_storage().data_ptr() in self._pinned

    def _pin_memory(self, what: Tensor, *_: Any) -> Tensor:
        if _is(what):
            raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")
        return what if self._is_pinned(what) else self._pin(what.clone())

    # ------------------------------------------------------------------------------------------------- each operation

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Check and count an operation, and run it."""
        name = func.overloadpacket.__name__
        tensors = list(tensors_in((args, kwargs)))
        mine = list(filter(_is, tensors))
        asked = _device(args, kwargs)
        # To C++ a tensor's options name the CPU: what it makes by them is the device's.
        goes = asked is not None and asked.type == "cuda"
        there = bool(mine) or goes or (self.inside > 0 and not tensors)
        pinned = kwargs.get("pin_memory")
        if not there and not pinned:
            return func(*args, **kwargs)
        if name not in PRODUCTS and torch._C._dispatch_has_kernel_for_dispatch_key(
            func.name(), "CompositeImplicitAutograd"
        ):
            # Under inference mode it comes whole.
            with self:
                return func._op_dk(torch._C.DispatchKey.CompositeImplicitAutograd, *args, **kwargs)
        if name == "_to_copy" and not mine and goes:
            moved = self.moved(args[0], kwargs.get("non_blocking", False))
            kwargs = {key: value for key, value in kwargs.items() if key not in ("device", "non_blocking")}
            return _run(func, (moved,), kwargs, there)
        if name == "copy_" and _is(args[0]) != _is(args[1]):
            return self._copy(*args, **kwargs)
        if name.strip("_") in ("index", "index_put", "index_put_impl"):
            self._indices(name, *args)
        elif name == "index_fill_" and not _is(args[2]):
            # It stands for x[indices] = number.
            self._indices(name, args[0], [args[2]])
        else:
            check(name, tensors, mine)
        if name in WAITING:
            self.wait(name)
        out = _run(func, args, {key: value for key, value in kwargs.items() if key != "pin_memory"}, there)
        if name == "_pack_padded_sequence":
            return out[0], _bare(out[1])
        return self._pin(out) if pinned and not there else out

    def _copy(self, to: Tensor, source: Tensor, waits_not: bool = False) -> Tensor:
        if _is(to):
            _run(torch.ops.aten.copy_.default, (to, self.moved(source, waits_not)), {}, True)
        elif waits_not:
            self.moved(source.to(to.dtype).expand(to.shape), True, to)
        else:
            to.copy_(self.moved(source, False))
        return to

    def _indices(self, name: str, of: Tensor, indices: Any, value: Tensor | None = None, *_: Any) -> None:
        """Indices of the host are copied, and what is true in a mask is counted first."""
        indices = [one for one in indices if one is not None]
        if not _is(of) and any(_is(one) for one in indices):
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        if value is not None:
            check(name, [of, value], [one for one in (of, value) if isinstance(one, CudaTensor)])
            # One number at a mask is filled in, without counting.
            if value.dim() == 0 and not _is(value) and all(one.dtype == torch.bool for one in indices):
                indices = [one for one in indices if not _is(one)]
        for one in indices:
            if not _is(one):
                self.to_device += 1
                self._note("to_device", f"indices of {name}")
                self.wait(f"indices of {name}")
            elif one.dtype in (torch.bool, torch.uint8):
                self.wait(f"mask of {name}")

    # ------------------------------------------------------------------------------------------------------ the device

    def __enter__(self) -> Self:
        self._deep += 1
        if self._deep == 1:
            assert FakeCuda.now is None and not torch.cuda.is_available()
            FakeCuda.now = self
            self._open(self._stack)
        return super().__enter__()

    def __exit__(self, *args: Any) -> None:
        super().__exit__(*args)
        self._deep -= 1
        if self._deep == 0:
            self._stack.close()

    def _open(self, stack: ExitStack) -> None:
        # It remembers the functions that it sees first, by which `with torch.device(...)` knows them.
        _device_constructors()
        stack.callback(forget)
        stack.callback(setattr, FakeCuda, "now", None)
        # LSTMs would lay their weights out for it.
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        # Threads of autograd would not see the device.
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        for place, names in self._patches():
            for name, value in names.items():
                stack.enter_context(patch.object(place, name, value))
        forget()
        stack.enter_context(cudas_autocast())
        stack.enter_context(_Calls(self))

    def _patches(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        to, start = torch.Tensor.to, autocast.__init__

        def begin(one: autocast, device_type: str, dtype: Any = None, *args: Any, **kwargs: Any) -> None:
            if device_type == "cuda":
                device_type, dtype = "cpu", dtype or torch.float16
            start(one, device_type, dtype, *args, **kwargs)

        def made(real: Any) -> Callable[..., Tensor]:
            def make(data: Any, *, device: Any = None, **kwargs: Any) -> Tensor:
                if device is None or torch.device(device).type != "cuda" or _is(data):
                    return real(data, **kwargs)
                return self._to(to, real(data, **kwargs), DEVICE)

            return make

        # These ask the driver in C++.
        names = ("tensor", "as_tensor", "asarray")
        yield torch, {"Generator": Generator, **{name: made(getattr(torch, name)) for name in names}}
        yield autocast, {"__init__": begin}
        # A parameter that moves becomes another tensor, since it becomes one of another class.
        yield torch.nn.modules.module, {"is_traceable_wrapper_subclass": _is}
        group: Any = torch._C._group_tensors_by_device_and_dtype

        def grouped(lists: Any, *args: Any) -> Any:
            return {
                (DEVICE if any(_is(one) for one in found[0][0]) else place, dtype): found
                for (place, dtype), found in group(lists, *args).items()
            }

        yield torch._C, {"_group_tensors_by_device_and_dtype": grouped}
        yield Waiter, {"told": self.wait}
        yield torch.cuda, self._cuda()
        yield (
            torch.accelerator,
            {
                "is_available": lambda: True,
                "device_count": lambda: 1,
                "current_accelerator": lambda *_, **__: torch.device("cuda"),
                "current_device_index": lambda: 0,
                "current_stream": lambda *_: Waiter(),
                "synchronize": lambda *_: self.wait("synchronize"),
            },
        )
        yield (
            torch.Tensor,
            {
                "to": lambda one, *args, **kwargs: self._to(to, one, *args, **kwargs),
                "cpu": lambda one, **kwargs: self._to(to, one, CPU, **kwargs),
                "cuda": lambda one, device=DEVICE, non_blocking=False: self._to(
                    to, one, DEVICE, non_blocking=non_blocking
                ),
                "pin_memory": lambda one, *_: self._pin_memory(one),
                "is_pinned": lambda one, *_: self._is_pinned(one),
            },
        )

    def _cuda(self) -> dict[str, Any]:
        about = {"name": "none", "major": 9, "minor": 0, "total_memory": 8 << 30}
        return {
            "is_available": lambda: True,
            "is_initialized": lambda: True,
            "is_bf16_supported": lambda *_: True,
            "device_count": lambda: 1,
            "current_device": lambda: 0,
            "_lazy_init": lambda: None,
            "set_device": lambda _: None,
            "device": lambda *_: nullcontext(),
            "_exchange_device": lambda _: 0,
            "_maybe_exchange_device": lambda _: 0,
            "synchronize": lambda *_: self.wait("synchronize"),
            "manual_seed": lambda _: None,
            "manual_seed_all": lambda _: None,
            "get_rng_state": lambda *_: torch.get_rng_state(),
            "set_rng_state": lambda state, *_: torch.set_rng_state(state),
            "get_device_capability": lambda *_: (9, 0),
            "get_device_properties": lambda *_: SimpleNamespace(**about),
            "mem_get_info": lambda *_: (8 << 30, 8 << 30),
            "memory_allocated": lambda *_: 0,
            "max_memory_allocated": lambda *_: 0,
            "reset_peak_memory_stats": lambda *_: None,
            "empty_cache": lambda: None,
            "Stream": Waiter,
            "Event": type("Event", (Waiter,), {}),
            "stream": stream,
            "current_stream": lambda *_: Waiter(),
            "default_stream": lambda *_: Waiter(),
        }


def _run(func: Any, args: Any, kwargs: dict[str, Any], there: bool) -> Any:
    """Run an operation as the CPU's; there: what comes out is the device's."""
    kwargs = {key: CPU if key == "device" and value is not None else value for key, value in kwargs.items()}
    args = [CPU if isinstance(one, torch.device) else one for one in args]
    with torch._C._DisableTorchDispatch():
        out = func(*args, **kwargs)
    return tree_map_only(Tensor, _claim, out) if there else out


def _is(one: object) -> bool:
    return isinstance(one, CudaTensor)


def _device(args: Any, kwargs: dict[str, Any]) -> torch.device | None:
    """The device that an operation is asked for."""
    asked = kwargs.get("device")
    if asked is None:
        asked = next((one for one in args if isinstance(one, torch.device)), None)
    return torch.device(asked) if asked is not None else None
