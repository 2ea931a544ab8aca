"""Conversion of plain mappings (a ``config.json``, a recipe) into frozen dataclasses, with clear error messages."""

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
"""Least and greatest number of layers of a kind: a model is built from its configuration before weights are read."""

WIDTH = (1, 2**17)
"""Least and greatest width of a layer."""


class _Short(reprlib.Repr):
    """Shortened representation of values in error messages."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxtuple, self.maxlist, self.maxdict = 4, 12, 12, 12
        self.maxstring, self.maxlong, self.maxother = 200, 60, 200


def config_from_mapping(cls: type[Config], values: Mapping[str, Any], where: str = "config") -> Config:
    """Build a configuration dataclass from a mapping; dataclasses may be nested, also in tuples and unions with None.

    Args:
        cls: A dataclass; fields without a default are required.
        values: Field names to values; lists become tuples.
        where: Name of the mapping in error messages, such as a file's path.

    Returns:
        An instance of ``cls``.

    Raises:
        ConfigError: When a name is unknown or missing, or a value has the wrong type or is rejected by ``cls``.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{where} has a {type(values).__name__} for a configuration; a mapping of names to values is expected."
        )
    try:
        return _from_mapping(cls, values, where)
    except RecursionError:
        raise ConfigError(f"{where} is nested hundreds of levels deep, which no configuration is.") from None


def _from_mapping(cls: type[Config], values: Mapping[str, Any], where: str) -> Config:
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(str(name) for name in set(values) - set(fields))
    if unknown:
        raise ConfigError(
            f"{where}: unknown field{'s' if len(unknown) > 1 else ''} {', '.join(unknown)[:200]}; "
            f"known fields are {', '.join(sorted(fields))}."
        )
    missing = [name for name, field in fields.items() if name not in values and _is_required(field)]
    if missing:
        raise ConfigError(f"{where}: {', '.join(missing)} {'are' if len(missing) > 1 else 'is'} missing.")
    expected = typing.get_type_hints(cls)
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        value = _convert(value, expected[name], f"{where}.{name}")
        if not _fits(value, expected[name]):
            infinite = isinstance(value, (int, float)) and not isinstance(value, bool) and not _is_finite(value)
            described = "a finite number" if infinite else _name(expected[name])
            raise ConfigError(f"{where}: {name} is {_Short().repr(value)} where {described} is expected.")
        arguments[name] = value
    try:
        return cls(**arguments)
    except RefervosError as error:  # from its own checks, which do not know the file
        raise type(error)(f"{where}: {error}") from error


def check_range(config: Any, **ranges: tuple[float, float]) -> None:
    """Check that numeric fields are in range; for the ``__post_init__`` of configurations.

    Args:
        config: A dataclass.
        **ranges: Least and greatest value by field name, for each entry of tuples and mappings. None is allowed.

    Raises:
        ConfigError: Names the first field that is out of range.
    """
    for name, (least, most) in ranges.items():
        value = getattr(config, name)
        for entry in value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple) else (value,):
            if entry is not None and not least <= entry <= most:
                raise ConfigError(f"{name} is {reprlib.repr(value)}; it must be from {least} to {most}.")


def check_not_empty(config: Any, *names: str) -> None:
    """Check that fields are not empty, such as tuples from which one entry is drawn.

    Args:
        config: A dataclass.
        *names: Names of the fields.

    Raises:
        ConfigError: Names the first empty field.
    """
    for name in names:
        if not getattr(config, name):
            raise ConfigError(f"{name} is empty; give at least one.")


def check_divides(config: Any, whole: str, part: str, times: int = 1) -> None:
    """Check that one number is a multiple of another.

    Args:
        config: A dataclass.
        whole: Name of the field to divide.
        part: Name of the divisor field.
        times: Factor of the divisor.

    Raises:
        ConfigError: When the division leaves a remainder.
    """
    divided, divisor = getattr(config, whole), getattr(config, part) * times
    if divided % divisor:
        raise ConfigError(f"{whole} is {divided}; because of {part} it must be a multiple of {divisor}.")


def nested_value(values: Mapping[str, Any], path: str, default: Any) -> Any:
    """Look a value up in nested mappings.

    Args:
        values: The outermost mapping.
        path: Names separated by dots.
        default: Value returned if a name is missing or null at any level.

    Returns:
        The value.
    """
    value: Any = values
    for name in path.split("."):
        if not isinstance(value, Mapping) or value.get(name) is None:
            return default
        value = value[name]
    return value


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.init and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _convert(value: Any, expected: Any, where: str) -> Any:
    """Convert lists to tuples and mappings to the dataclasses expected there; other values are unchanged."""
    options = typing.get_args(expected) if _is_union(expected) else (expected,)
    if isinstance(value, list):
        items = next((typing.get_args(option) for option in options if typing.get_origin(option) is tuple), ())
        kinds = (items[0],) * len(value) if items[1:] == (...,) else items + (Any,) * (len(value) - len(items))
        return tuple(_convert(v, kind, f"{where}[{n}]") for n, (v, kind) in enumerate(zip(value, kinds, strict=False)))
    if isinstance(value, Mapping):
        for option in options:
            if isinstance(option, type) and dataclasses.is_dataclass(option):
                return _from_mapping(option, value, where)
    return value


def _fits(value: Any, expected: Any) -> bool:
    """Return whether a value has the expected type, one of the simple types of configurations."""
    origin = typing.get_origin(expected)
    if expected is Any:
        return True
    if origin is typing.Literal:
        return any(value == option and type(value) is type(option) for option in typing.get_args(expected))
    if origin is tuple:
        items = typing.get_args(expected)
        if items[1:] == (...,):
            items = (items[0],) * len(value) if isinstance(value, tuple) else ()
        return isinstance(value, tuple) and len(value) == len(items) and all(map(_fits, value, items))
    if origin in (dict, collections.abc.Mapping):
        key, item = typing.get_args(expected)
        return isinstance(value, Mapping) and all(_fits(k, key) and _fits(v, item) for k, v in value.items())
    if _is_union(expected):
        return any(_fits(value, option) for option in typing.get_args(expected))
    if expected is float:  # an integer may be too large for a float
        return isinstance(value, (int, float)) and not isinstance(value, bool) and _is_finite(value)
    if expected is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, expected)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _is_union(expected: Any) -> bool:
    return typing.get_origin(expected) in (types.UnionType, typing.Union)


def _name(expected: Any) -> str:
    if typing.get_origin(expected) is typing.Literal:
        return "one of " + ", ".join(repr(option) for option in typing.get_args(expected))
    return getattr(expected, "__name__", str(expected)) if typing.get_origin(expected) is None else str(expected)
