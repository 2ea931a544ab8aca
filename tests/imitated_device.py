"""An accelerator imitated on the CPU, for machines without one.

Inside ``imitation()``, tensors can be on the device ``DEVICE``: they report it, torch and the code under test accept
it, and each of them wraps a CPU tensor that holds the values and does the work. Operations that a real accelerator
refuses raise the same kind of error here:

* operations on tensors of two devices (scalar CPU tensors, indices on the CPU and copies are allowed, as in CUDA);
* operations on types without a CUDA kernel, for the operations in ``FLOATING_ONLY``;
* random numbers for the device from a CPU generator.

``reads`` lists the synchronisations, at which a real accelerator would finish all queued work, with the line of the
package that caused each.

torch's own ``FakeTensorMode`` also tracks devices, but has no values, so that nothing that depends on them (a decision
of the model, a mask) can run; and in a torch without CUDA its CUDA tensors can be neither indexed nor differentiated,
because there is no device guard for them. The imitated device is called ``meta``, the only one besides the CPU for
which every torch has a guard; the package never uses that name.

The imitation does not test kernels: only a real device shows whether they exist for other shapes and types, how they
round, how fast they are, and whether memory suffices (``test_devices.py`` on such a device).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import refervos

DEVICE = torch.device("meta")

FLOATING_ONLY = frozenset(
    {
        *("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "_upsample_lanczos2d_aa"),
        *("upsample_bicubic2d", "upsample_linear1d", "upsample_trilinear3d", "grid_sampler_2d"),
        *("mm", "bmm", "addmm", "baddbmm", "addbmm", "addmv", "mv", "dot", "convolution"),
        *("linear", "matmul", "conv2d", "conv_transpose2d", "layer_norm"),
        *("native_layer_norm", "native_batch_norm", "_softmax", "_log_softmax", "gelu", "sigmoid_", "avg_pool2d"),
    }
)
"""Operations whose CUDA kernels are for floating-point numbers only (see torch's ``aten/src/ATen/native/cuda``),
although the CPU's may also take integers."""

SYNCHRONISING = frozenset(
    {
        *("_local_scalar_dense", "nonzero", "masked_select", "equal", "bincount", "is_nonzero"),
        *("_unique2", "unique_dim", "unique_consecutive"),
    }
)
"""Operations whose result, or its size, needs a synchronisation."""

WHOLE = frozenset(
    {
        *("linear", "matmul", "conv2d", "conv_transpose2d", "layer_norm", "scaled_dot_product_attention"),
        *("reshape", "flatten", "unflatten", "transpose", "chunk", "contiguous", "narrow", "softmax"),
    }
)
"""Composite operations that neither synchronise nor mix devices inside, run as a whole for speed."""

INDEXING = frozenset({"index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index_put"})
COPYING = frozenset({"copy_", "_to_copy", "copy"})
PACKAGE = str(Path(refervos.__file__).parent)


@dataclass(frozen=True)
class Read:
    """A synchronisation with the device.

    Attributes:
        operation: Name of the operation.
        shape: Shape of the tensor on the device.
        where: File and line of the package, or of the test if none of the package is involved.
    """

    operation: str
    shape: tuple[int, ...]
    where: str


class OnDevice(Tensor):
    """Tensor on the imitated device; ``held`` has its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnDevice:
        if held.is_inference() != torch.is_inference_mode_enabled():  # a view of an ordinary tensor is an ordinary one
            with torch.inference_mode(held.is_inference()):
                return cls(held)
        made: OnDevice = Tensor._make_wrapper_subclass(
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

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise RuntimeError(f"{func} on a tensor of the imitated device outside of the imitation.")

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnDevice({self.held})"


def _indices(index: Any) -> Any:
    """Convert lists of numbers in an index to CPU tensors."""
    if isinstance(index, tuple):
        return tuple(_indices(part) for part in index)
    return torch.tensor(index) if isinstance(index, list) else index


class _Calls(TorchFunctionMode):
    """Mode that keeps the values of tensors created from numbers on ``DEVICE``, which torch would drop."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor, torch.asarray) and _is_device(kwargs.get("device")):
            return func(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)
        if args and isinstance(args[0], OnDevice):
            if func is Tensor.new_tensor:
                return torch.tensor(*args[1:], **{"dtype": args[0].dtype, "device": DEVICE, **kwargs})
            if func is Tensor.tolist or (func is Tensor.numpy and kwargs.pop("force", False)):
                return func(args[0].cpu())
            if func in (Tensor.__getitem__, Tensor.__setitem__):
                args = (args[0], _indices(args[1]), *args[2:])
        return func(*args, **kwargs)


@contextmanager
def imitation() -> Iterator[Imitation]:
    """Enable the imitated device (see the module)."""
    with _Calls(), Imitation() as imitated:
        yield imitated


class Imitation(TorchDispatchMode):
    """Mode that runs operations on the imitated device; entered by ``imitation``.

    Attributes:
        reads: Synchronisations so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[Read] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [*_tensors(args), *_tensors(kwargs.values())]
        here = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
        target = kwargs.get("device")
        if not here and not any(_is_device(given) for given in (target, *args)):
            assert all(tensor.device != DEVICE for tensor in tensors), f"{func} on a tensor without values"
            return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if _is_composite(func) and name not in WHOLE:  # in inference mode torch has not decomposed these
            with self:
                return func._op_dk(DispatchKey.CompositeImplicitAutograd, *args, **kwargs)
        if len(here) < len(tensors):
            _check_devices(name, args, kwargs)
        _check_types(name, here)
        if self._synchronises(name, args, target):
            self.reads.append(Read(name, tuple(here[0].shape), _where()))
        generator = kwargs.get("generator")
        if generator is not None and generator.device.type == "cpu":
            raise RuntimeError(f"Expected a '{DEVICE.type}' device type for generator but found 'cpu', {_where()}")
        return _run(func, name, args, kwargs, here)

    @staticmethod
    def _synchronises(name: str, args: Sequence[Any], target: Any) -> bool:
        """Return True if an operation on tensors of the device synchronises."""
        if name == "_to_copy":
            return target is not None and torch.device(target).type == "cpu"
        if name in ("copy_", "copy"):
            return not isinstance(args[0], OnDevice)
        if name in INDEXING:  # the number of True values determines a shape
            return any(isinstance(i, OnDevice) and i.dtype in (torch.bool, torch.uint8) for i in args[1])
        if name == "repeat_interleave":
            return isinstance(args[-1], OnDevice)
        return name in SYNCHRONISING


def _is_device(value: Any) -> bool:
    """Return True for the imitated device or its name."""
    return value == DEVICE if isinstance(value, torch.device) else isinstance(value, str) and value == DEVICE.type


@cache
def _is_composite(func: Any) -> bool:
    """Return True for an operation that is composed of others."""
    return func.namespace == "aten" and torch._C._dispatch_has_kernel_for_dispatch_key(
        func.name(), DispatchKey.CompositeImplicitAutograd
    )


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors among arguments and in nested lists of them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _mapped(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """Apply a change to the tensors of an argument or a result."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)([_mapped(part, change) for part in value])
    return value


def _check_devices(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    """Refuse operations on tensors of two devices.

    Raises:
        RuntimeError: As CUDA does.
    """
    if name in COPYING:
        return
    if name in INDEXING:
        if not isinstance(args[0], OnDevice):
            raise RuntimeError(f"indices should be on the same device as the indexed tensor (cpu), {_where()}")
        args = [args[0], *args[2:]]  # indices themselves may be on the CPU
    for one in (*_tensors(args), *_tensors(kwargs.values())):
        if not isinstance(one, OnDevice) and (one.ndim or _in_list(one, args)):
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, {DEVICE} and cpu! "
                f"(in {name}, {_where()})"
            )


def _in_list(tensor: Tensor, args: Sequence[Any]) -> bool:
    return any(isinstance(arg, (list, tuple)) and any(part is tensor for part in arg) for arg in args)


def _check_types(name: str, tensors: Sequence[Tensor]) -> None:
    """Refuse operations on integers without a kernel.

    Raises:
        NotImplementedError: As CUDA does.
    """
    if name in FLOATING_ONLY and tensors and not tensors[0].is_floating_point():
        raise NotImplementedError(f"\"{name}\" not implemented for '{tensors[0].dtype}' on the device, {_where()}")


def _run(func: Any, name: str, args: Any, kwargs: dict[str, Any], here: Sequence[OnDevice]) -> Any:
    """Run an operation on the values, and wrap its results if they are on the device."""
    target = kwargs.get("device")
    if target is not None:
        kwargs = {**kwargs, "device": torch.device("cpu") if _is_device(target) else target}
    stays = _is_device(target) or (target is None and bool(here))
    if name in ("copy_", "copy"):
        stays = isinstance(args[0], OnDevice)
    result = func(*_mapped(args, _held), **{name: _mapped(value, _held) for name, value in kwargs.items()})
    known = {id(tensor.held): tensor for tensor in here}

    def placed(value: Tensor) -> Tensor:
        tensor = known.get(id(value))
        if tensor is None:
            return OnDevice(value)
        assert tensor.shape == value.shape, f"{func} changes a shape in place, which is not imitated"
        return tensor

    return _mapped(result, placed) if stays else result


def _held(value: Tensor) -> Tensor:
    return value.held if isinstance(value, OnDevice) else value


def _where() -> str:
    """Return the innermost running line of the package, or else of the test."""
    frame = sys._getframe(1)
    outermost = ""
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(PACKAGE):
            return f"{file[len(PACKAGE) + 1 :]}:{frame.f_lineno}"
        if Path(file).name.startswith("test_"):
            outermost = outermost or f"{Path(file).name}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return outermost
