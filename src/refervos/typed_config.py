"""Turn plain mappings (a ``config.json``) into frozen dataclasses, and say clearly what does not fit."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from refervos.errors import ConfigError

Config = TypeVar("Config")


def config_from_mapping(cls: type[Config], values: Mapping[str, Any], where: str = "config") -> Config:
    """Build a configuration dataclass from a mapping, nested dataclasses included.

    Args:
        cls: A dataclass whose fields all have defaults.
        values: Field names to values; lists become tuples.
        where: Name of the mapping in error messages, such as a file's path.

    Returns:
        An instance of ``cls``.

    Raises:
        ConfigError: When a name is unknown or a value has the wrong type.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise ConfigError(
            f"{where}: unknown field{'s' if len(unknown) > 1 else ''} {', '.join(unknown)}; "
            f"known fields are {', '.join(sorted(fields))}."
        )
    types = typing.get_type_hints(cls)
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        wanted = types[name]
        if dataclasses.is_dataclass(wanted) and isinstance(value, Mapping):
            value = config_from_mapping(typing.cast(type[Any], wanted), value, f"{where}.{name}")
        elif isinstance(value, list):
            value = tuple(value)
        if not _fits(value, wanted):
            raise ConfigError(f"{where}: {name} is {value!r} where {_name(wanted)} is expected.")
        arguments[name] = value
    return cls(**arguments)


def _fits(value: Any, wanted: Any) -> bool:
    """Whether a JSON value is one of the simple types that configurations use."""
    origin = typing.get_origin(wanted)
    if origin is typing.Literal:
        return value in typing.get_args(wanted)
    if origin is tuple:
        item = typing.get_args(wanted)[0]
        return isinstance(value, tuple) and all(_fits(part, item) for part in value)
    if origin is not None:  # a union such as ``int | None``
        return any(_fits(value, option) for option in typing.get_args(wanted))
    if wanted is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if wanted is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, wanted)


def _name(wanted: Any) -> str:
    if typing.get_origin(wanted) is typing.Literal:
        return "one of " + ", ".join(repr(option) for option in typing.get_args(wanted))
    return getattr(wanted, "__name__", str(wanted)) if typing.get_origin(wanted) is None else str(wanted)
