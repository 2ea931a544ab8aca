"""Turn plain mappings (a ``config.json``, a recipe) into frozen dataclasses, and say clearly what does not fit."""

from __future__ import annotations

import collections.abc
import dataclasses
import math
import reprlib
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from refervos.errors import ConfigError, RefervosError

Config = TypeVar("Config")

LAYERS = (1, 1000)
"""How many layers of a kind a model may have: a configuration is believed before any weights are seen."""

WIDTH = (1, 2**17)
"""How wide a layer may be."""


class _Short(reprlib.Repr):
    """Shows a value in an error, whatever its size."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxtuple, self.maxlist, self.maxdict = 4, 12, 12, 12
        self.maxstring, self.maxlong, self.maxother = 200, 60, 200


def config_from_mapping(cls: type[Config], values: Mapping[str, Any], where: str = "config") -> Config:
    """Build a configuration dataclass from a mapping; dataclasses may nest, also in tuples and unions with None.

    Args:
        cls: A dataclass; fields without a default must be given.
        values: Field names to values; lists become tuples.
        where: Name of the mapping in error messages, such as a file's path.

    Returns:
        An instance of ``cls``.

    Raises:
        ConfigError: When a name is unknown or missing, or a value has the wrong type or is refused by ``cls``.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} has a {type(values).__name__} for a configuration; names and values are expected.")
    try:
        return _from_mapping(cls, values, where)
    except RecursionError:
        raise ConfigError(f"{where} is nested hundreds of times, which no configuration is.") from None


def _from_mapping(cls: type[Config], values: Mapping[str, Any], where: str) -> Config:
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(str(name) for name in set(values) - set(fields))
    if unknown:
        raise ConfigError(
            f"{where}: unknown field{'s' if len(unknown) > 1 else ''} {', '.join(unknown)[:200]}; "
            f"known fields are {', '.join(sorted(fields))}."
        )
    missing = [name for name, field in fields.items() if name not in values and _needed(field)]
    if missing:
        raise ConfigError(f"{where}: {', '.join(missing)} {'are' if len(missing) > 1 else 'is'} missing.")
    wanted = typing.get_type_hints(cls)
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        value = _converted(value, wanted[name], f"{where}.{name}")
        if not _fits(value, wanted[name]):
            endless = isinstance(value, (int, float)) and not isinstance(value, bool) and not _is_finite(value)
            expected = "a finite number" if endless else _name(wanted[name])
            raise ConfigError(f"{where}: {name} is {_Short().repr(value)} where {expected} is expected.")
        arguments[name] = value
    try:
        return cls(**arguments)
    except RefervosError as error:  # of its own checks, which know no file
        raise type(error)(f"{where}: {error}") from error


def check_range(config: Any, **ranges: tuple[float, float]) -> None:
    """Check that numbers are what a model can be built of; for the ``__post_init__`` of configurations.

    Args:
        config: A dataclass.
        **ranges: For names of fields, the least and the greatest value, which each entry of tuples and mappings must
            keep to. What may be None is not asked then.

    Raises:
        ConfigError: Names the first field that is out of range.
    """
    for name, (least, most) in ranges.items():
        value = getattr(config, name)
        for entry in value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple) else (value,):
            if entry is not None and not least <= entry <= most:
                raise ConfigError(f"{name} is {reprlib.repr(value)}; it must be from {least} to {most}.")


def check_not_empty(config: Any, *names: str) -> None:
    """Check that tuples of which one entry is chosen have any.

    Args:
        config: A dataclass.
        *names: Of its fields.

    Raises:
        ConfigError: Names the first that is empty.
    """
    for name in names:
        if not getattr(config, name):
            raise ConfigError(f"{name} is empty; give at least one.")


def check_divides(config: Any, whole: str, part: str, times: int = 1) -> None:
    """Check that one number is a multiple of another.

    Args:
        config: A dataclass.
        whole: Name of the field that is divided.
        part: Name of the field that divides it.
        times: What that one is multiplied by first.

    Raises:
        ConfigError: When it is not.
    """
    divided, divisor = getattr(config, whole), getattr(config, part) * times
    if divided % divisor:
        raise ConfigError(f"{whole} is {divided}; {part} asks for a multiple of {divisor}.")


def nested_value(values: Mapping[str, Any], path: str, default: Any) -> Any:
    """Look a value up in nested mappings.

    Args:
        values: The outermost mapping.
        path: Names separated by dots.
        default: What it is where a mapping on the way leaves it out or has null.

    Returns:
        The value.
    """
    value: Any = values
    for name in path.split("."):
        if not isinstance(value, Mapping) or value.get(name) is None:
            return default
        value = value[name]
    return value


def _needed(field: dataclasses.Field[Any]) -> bool:
    return field.init and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _converted(value: Any, wanted: Any, where: str) -> Any:
    """Lists as tuples, mappings as the dataclasses that are wanted in their place; anything else as it is."""
    options = typing.get_args(wanted) if _is_union(wanted) else (wanted,)
    if isinstance(value, list):
        items = next((typing.get_args(option) for option in options if typing.get_origin(option) is tuple), ())
        kinds = (items[0],) * len(value) if items[1:] == (...,) else items + (Any,) * (len(value) - len(items))
        return tuple(
            _converted(v, kind, f"{where}[{n}]") for n, (v, kind) in enumerate(zip(value, kinds, strict=False))
        )
    if isinstance(value, Mapping):
        for option in options:
            if isinstance(option, type) and dataclasses.is_dataclass(option):
                return _from_mapping(option, value, where)
    return value


def _fits(value: Any, wanted: Any) -> bool:
    """Whether a value is one of the simple types that configurations use."""
    origin = typing.get_origin(wanted)
    if wanted is Any:
        return True
    if origin is typing.Literal:
        return any(value == option and type(value) is type(option) for option in typing.get_args(wanted))
    if origin is tuple:
        items = typing.get_args(wanted)
        if items[1:] == (...,):
            items = (items[0],) * len(value) if isinstance(value, tuple) else ()
        return isinstance(value, tuple) and len(value) == len(items) and all(map(_fits, value, items))
    if origin in (dict, collections.abc.Mapping):
        key, item = typing.get_args(wanted)
        return isinstance(value, Mapping) and all(_fits(k, key) and _fits(v, item) for k, v in value.items())
    if _is_union(wanted):
        return any(_fits(value, option) for option in typing.get_args(wanted))
    if wanted is float:  # a whole number may be too large for one
        return isinstance(value, (int, float)) and not isinstance(value, bool) and _is_finite(value)
    if wanted is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, wanted)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _is_union(wanted: Any) -> bool:
    return typing.get_origin(wanted) in (types.UnionType, typing.Union)


def _name(wanted: Any) -> str:
    if typing.get_origin(wanted) is typing.Literal:
        return "one of " + ", ".join(repr(option) for option in typing.get_args(wanted))
    return getattr(wanted, "__name__", str(wanted)) if typing.get_origin(wanted) is None else str(wanted)
