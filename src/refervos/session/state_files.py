"""State files: a tree of plain values and tensors in one safetensors file, read back without executing any code.

The tensors are numbered; the tree is JSON in the file's metadata. JSON's own types are written as they are, and every
other value is an object that names its type:

    {"tuple": [...]}    {"deque": [...], "maxlen": 6}    {"dict": [[key, value], ...]}    {"float": "7ff0000000000000"}
    {"tensor": 3}       {"tensor": 3, "order": [1, 2, 0]}       {"array": 4}
    {"dataclass": "MemoryMap", "fields": {"frame": 7, "features": {"tensor": 5}}}
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import struct
import types
import typing
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from refervos.errors import StateError

FORMAT = 1
"""Version of the format, stored in every file."""

_DEEPEST = 64
"""Deepest nesting. Real state has about ten levels; deeper state contains itself or was made to break the reader."""

IN_MAIN_MEMORY: Mapping[str, Any] = {"device": torch.device("cpu")}
"""Metadata of a dataclass field whose tensors stay on the CPU, whatever the device of the rest."""

_TYPES = frozenset(
    {
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8),
        *(torch.complex64, torch.bool),
    }
)
"""Tensor types that safetensors can store."""

_STATE, _DIGEST = "refervos_state", "refervos_sha256"
_BEGINNING = b'{"__metadata__":{"refervos_'
"""Bytes after the eight bytes of length at the beginning of a file."""


def save_state(path: str | os.PathLike[str], value: Any, *, kind: str, about: Mapping[str, str]) -> None:
    """Write state to a file, atomically.

    State may consist of dataclasses (all their fields, also those that ``__init__`` does not take), lists, tuples,
    deques, dicts with integer or string keys, None, booleans, integers, floats (bit-exact), strings, tensors and
    NumPy arrays. String enums and NumPy scalars come back as plain values. A tensor that occurs several times is stored
    once and comes back as one tensor; of a view, only the visible elements are stored. Tensors keep the order of their
    axes in memory, because results can depend on it in the last bit.

    Args:
        path: The file; an existing one is replaced.
        value: The state; not modified.
        kind: Kind of state, such as "session", which ``load_state`` checks.
        about: Facts that a reader must check before using it, such as the model it belongs to.

    Raises:
        StateError: When the state contains a value of another type, or the file cannot be written.
    """
    from safetensors.torch import save

    from refervos.files.writing import write_atomically

    writer = _Writer()
    tree = writer.encode(value, "the state", 0)
    text = json.dumps({"format": FORMAT, "kind": kind, "about": dict(about), "tree": tree}, allow_nan=False)
    content = save(writer.tensors, {_STATE: text, _DIGEST: _digest(text, writer.tensors)})
    write_atomically(Path(path), content, error=StateError)


def load_state(
    path: str | os.PathLike[str], types: Sequence[type], *, kind: str, device: str | torch.device
) -> tuple[Any, dict[str, str]]:
    """Read state from a file.

    Objects are created without calling ``__init__`` or ``__post_init__``, with the fields they were saved with.

    Args:
        path: A file written by ``save_state``.
        types: The dataclasses that may occur, with distinct names.
        kind: The expected kind of state.
        device: Device for the tensors, except those of fields marked ``IN_MAIN_MEMORY``. Arrays are in main memory.

    Returns:
        The state, and the ``about`` of ``save_state``.

    Raises:
        StateError: When the file is missing, damaged or of another format, contains another kind of state or a type
            that is not listed, or was written by a version whose format or classes differ.
    """
    path = Path(path)
    text, digest, tensors = _read(path)
    try:
        content = json.loads(text, parse_constant=_no_constant)
        version, found, about, tree = (content[name] for name in ("format", "kind", "about", "tree"))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(path) from error
    if isinstance(version, int) and version > FORMAT:
        raise StateError(
            f"'{path}' has version {version} of the state format and this refervos reads versions up to {FORMAT}; "
            "update refervos."
        )
    if digest != _digest(text, tensors) or version != FORMAT or not isinstance(about, dict):
        raise _damaged(path)
    if found != kind:
        raise StateError(f"'{path}' contains the state of a {str(found)[:80]}; give a file with the state of a {kind}.")
    reader = _Reader(path, {cls.__name__: cls for cls in types}, tensors, torch.device(device))
    try:
        return reader.decode(tree), {str(name): str(fact) for name, fact in about.items()}
    except (ValueError, TypeError, LookupError, OverflowError, RuntimeError, struct.error) as error:
        raise _damaged(path) from error


def check_tensor(
    value: Tensor | np.ndarray[Any, Any], what: str, shape: Sequence[int | None], dtype: Any = None
) -> None:
    """Check shape, type and finiteness of a tensor or array read from a state file.

    Args:
        value: The tensor or array.
        what: Name of the value in the error.
        shape: Expected length of each axis, None for any.
        dtype: Expected type; default any floating-point type.

    Raises:
        StateError: When it has another shape or type, or contains NaN or infinity.
    """
    fits = len(value.shape) == len(shape) and all(w in (None, n) for n, w in zip(value.shape, shape, strict=True))
    tensor = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
    typed = tensor.is_floating_point() if dtype is None else value.dtype == dtype
    if not (fits and typed):
        expected = f"{'floating point' if dtype is None else _name_of(dtype)} {_written(shape)}"
        raise StateError(f"{what} is {_name_of(value.dtype)} {_written(value.shape)} where {expected} is needed")
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise StateError(f"{what} contains NaN or infinity")


def check_state(fits: bool, what: str) -> None:
    """Raise unless a condition on state read from a file holds.

    Args:
        fits: The condition.
        what: What is wrong when it does not hold, for the error.

    Raises:
        StateError: When the condition does not hold.
    """
    if not fits:
        raise StateError(what)


def _name_of(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _written(shape: Sequence[int | None]) -> str:
    return f"({', '.join('any' if size is None else str(size) for size in shape)})"


@dataclass
class _Writer:
    """Converter from values to JSON that collects their tensors."""

    tensors: dict[str, Tensor] = field(default_factory=dict)  # by number
    numbers: dict[int, int] = field(default_factory=dict)  # of tensors and arrays, by identity

    def encode(self, value: Any, where: str, depth: int) -> Any:
        """Encode a value as JSON; ``where`` is its path in the state, for errors."""
        if depth > _DEEPEST:
            raise StateError(f"{where[:80]}... is nested too deeply to be saved; does an object contain itself?")
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, float) and not math.isfinite(value):
            return {"float": struct.pack(">d", value).hex()}
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, Tensor):
            return self._tensor(value, where)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {
                entry.name: self.encode(getattr(value, entry.name), f"{where}.{entry.name}", depth + 1)
                for entry in dataclasses.fields(value)
            }
            return {"dataclass": type(value).__name__, "fields": fields}
        # Exact types only: subclasses would come back as another type.
        if type(value) is np.ndarray:
            return self._array(value, where)
        if type(value) in (list, tuple, deque):
            items = [self.encode(item, f"{where}[{index}]", depth + 1) for index, item in enumerate(value)]
            if type(value) is deque:
                return {"deque": items, "maxlen": value.maxlen}
            return items if type(value) is list else {"tuple": items}
        if type(value) is dict and all(_is_key(key) for key in value):
            return {"dict": [[key, self.encode(item, f"{where}[{key!r}]", depth + 1)] for key, item in value.items()]}
        raise StateError(
            f"{where} is a {type(value).__name__}{' with other keys' if type(value) is dict else ''}; dataclasses, "
            "lists, tuples, deques, dicts by integer or string, plain values, tensors and arrays can be saved."
        )

    def _tensor(self, value: Tensor, where: str) -> dict[str, Any]:
        strides = value.stride()
        order = sorted(range(value.ndim), key=lambda axis: -strides[axis])  # of the axes in memory, outermost first
        number = self._number(value, lambda: value.detach().permute(order), where)
        return {"tensor": number} if order == list(range(value.ndim)) else {"tensor": number, "order": order}

    def _array(self, value: np.ndarray[Any, Any], where: str) -> dict[str, Any]:
        def as_tensor() -> Tensor:
            return torch.from_numpy(np.array(value, order="C"))  # raises TypeError for text, objects, records, ...

        return {"array": self._number(value, as_tensor, where)}

    def _number(self, value: Any, as_tensor: Callable[[], Tensor], where: str) -> int:
        """Return the number of a tensor or array, assigning one the first time."""
        if id(value) not in self.numbers:
            try:
                # A copy, because safetensors refuses shared storage.
                tensor = as_tensor().cpu().clone(memory_format=torch.contiguous_format)
                if tensor.dtype not in _TYPES:
                    raise TypeError(tensor.dtype)
            except (TypeError, RuntimeError) as error:  # sparse, quantised or meta tensors are RuntimeErrors
                raise StateError(
                    f"{where} is a {type(value).__name__} of type {value.dtype}, which cannot be saved; "
                    "dense ones of numbers or booleans can."
                ) from error
            self.numbers[id(value)] = len(self.tensors)
            self.tensors[str(self.numbers[id(value)])] = tensor
        return self.numbers[id(value)]


@dataclass(frozen=True)
class _Reader:
    """Converter from JSON back to values."""

    path: Path
    types: Mapping[str, type]
    stored: Mapping[str, Tensor]
    device: torch.device
    tensors: dict[tuple[int, torch.device], Tensor] = field(default_factory=dict)  # created so far
    arrays: dict[int, np.ndarray[Any, Any]] = field(default_factory=dict)

    def decode(self, node: Any, depth: int = 0) -> Any:
        """Decode a part of the tree; an invalid part raises an ordinary error, such as ValueError."""
        if depth > _DEEPEST:
            raise ValueError("nested too deeply")
        match node:
            case None | bool() | int() | float() | str():
                return node
            case list():
                return self._decode_all(node, depth)
            case {"tuple": list(items)}:
                return tuple(self._decode_all(items, depth))
            case {"deque": list(items), "maxlen": limit}:
                return deque(self._decode_all(items, depth), maxlen=limit)
            case {"dict": list(items)}:
                return {_key(key): self.decode(item, depth + 1) for key, item in items}
            case {"float": str(bits)}:
                return struct.unpack(">d", bytes.fromhex(bits))[0]
            case {"tensor": int(number)}:
                return self._tensor(number, node.get("order"))
            case {"array": int(number)}:
                if number not in self.arrays:
                    self.arrays[number] = self.stored[str(number)].numpy()
                return self.arrays[number]
            case {"dataclass": str(name), "fields": dict(fields)}:
                return self._object(name, fields, depth)
        raise ValueError("unknown kind of value")

    def _decode_all(self, items: list[Any], depth: int) -> list[Any]:
        return [self.decode(item, depth + 1) for item in items]

    def _tensor(self, number: int, order: list[int] | None) -> Tensor:
        if (number, self.device) not in self.tensors:
            tensor = self.stored[str(number)]
            if order is not None:
                back = sorted(range(tensor.ndim), key=lambda axis: order[axis])
                if [order[axis] for axis in back] != list(range(len(order))):
                    raise ValueError("not a permutation of axes")
                tensor = tensor.permute(back)
            self.tensors[number, self.device] = tensor.to(self.device)
        return self.tensors[number, self.device]

    def _object(self, name: str, fields: dict[str, Any], depth: int) -> Any:
        if name not in self.types:
            raise StateError(
                f"'{self.path}' contains a {name[:80]}, which does not belong in this state; "
                f"allowed are {', '.join(sorted(self.types))}."
            )
        cls = self.types[name]
        expected = {entry.name for entry in dataclasses.fields(cls)}
        if expected != set(fields):
            lacking, unknown = sorted(expected - set(fields)), sorted(set(fields) - expected)
            differences = [
                f"{words} {', '.join(names)[:80]}"
                for words, names in (("lacks", lacking), ("has the unknown", unknown))
                if names
            ]
            raise StateError(
                f"'{self.path}' was saved by another version of refervos: its {name} {' and '.join(differences)}; "
                "save the state again with this version."
            )
        created: Any = object.__new__(cls)
        hints = _hints(cls)
        for entry in dataclasses.fields(cls):
            reader = dataclasses.replace(self, device=entry.metadata.get("device", self.device))
            value = reader.decode(fields[entry.name], depth + 1)
            if not _is_a(value, hints[entry.name]):
                raise ValueError(f"{name}.{entry.name} has another type")
            object.__setattr__(created, entry.name, value)  # works for frozen classes too
        return created


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _is_a(value: Any, hint: Any) -> bool:
    """Check a value against the type hint of a dataclass field."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (types.UnionType, typing.Union):
        return any(_is_a(value, part) for part in parts)
    if origin is np.ndarray:
        kind = typing.get_args(parts[1])[0]
        return isinstance(value, np.ndarray) and (kind is Any or issubclass(value.dtype.type, kind))
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = (parts[0],) * len(value) if parts[1:] == (...,) else parts
        return len(kinds) == len(value) and all(map(_is_a, value, kinds))
    if origin is dict:
        return isinstance(value, dict) and all(_is_a(k, parts[0]) and _is_a(v, parts[1]) for k, v in value.items())
    if origin in (list, deque):
        return isinstance(value, origin) and all(_is_a(item, parts[0]) for item in value)
    if origin is Sequence:
        return isinstance(value, (list, tuple)) and all(_is_a(item, parts[0]) for item in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return value is None if hint is type(None) else isinstance(value, hint)


def _read(path: Path) -> tuple[str, str, dict[str, Tensor]]:
    """Read the JSON text, the digest and the tensors by number, without verifying them.

    Raises:
        StateError: When the file is missing, incomplete or of another format.
    """
    from safetensors import safe_open

    try:
        with path.open("rb") as file:
            beginning = file.read(8 + len(_BEGINNING))[8:]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StateError(f"'{path}' cannot be read ({reason}); give a file that refervos saved.") from error
    if beginning != _BEGINNING:
        raise StateError(f"'{path}' is not a file of saved state; give one that refervos saved.")
    try:
        with safe_open(path, framework="pt") as content:
            metadata = content.metadata()
            # Copies, because the tensors are mapped to the file, which may be overwritten.
            tensors = {name: content.get_tensor(name).clone() for name in content.keys()}  # noqa: SIM118
        return metadata[_STATE], metadata[_DIGEST], tensors
    except Exception as error:  # the library raises various errors on a broken file
        raise _damaged(path) from error


def _damaged(path: Path) -> StateError:
    return StateError(f"'{path}' is damaged or incomplete; its state cannot be restored.")


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Compute the SHA-256 of everything saved."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _is_key(key: Any) -> bool:
    return isinstance(key, (int, str)) and not isinstance(key, bool)


def _key(key: Any) -> Any:
    if not _is_key(key):
        raise ValueError("not a valid key")
    return key


def _no_constant(name: str) -> NoReturn:
    """Refuse NaN and Infinity, which are not JSON."""
    raise ValueError(name)
