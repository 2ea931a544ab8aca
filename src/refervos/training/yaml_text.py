"""YAML as people expect it: ``1e-3`` is a number, ``no`` is a word, and no name is given twice (as in YAML 1.2).

The only file that imports PyYAML; import it where YAML is needed, through ``recipe.yaml_text``.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

import yaml

from refervos.errors import ConfigError

_FLOAT = re.compile(r"[-+]?(?:(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(?:inf|nan))$")
_BOOL = re.compile(r"(?:true|True|false|False)$")


class _Loader(yaml.SafeLoader):
    """Safe: plain values only, nothing is executed."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[Any]]] = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", _BOOL, list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def parse(text: str, where: str) -> dict[str, Any]:
    """Read a mapping.

    Args:
        text: The YAML.
        where: Its file, for error messages.

    Returns:
        Names and plain values.

    Raises:
        ConfigError: When it is no YAML, no mapping, or gives a name twice.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        _refuse_twins(node)
        values = None if node is None else loader.construct_document(node)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{where} is no readable YAML ({reason}).") from error
    finally:
        loader.dispose()
    if not isinstance(values, dict):
        raise ConfigError(f"{where} holds a {type(values).__name__}; names and values are expected.")
    return values


def _refuse_twins(node: yaml.Node | None) -> None:
    """PyYAML would take the last of two equal names without a word."""
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for name in names:
            if names.count(name) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{name!r} is given twice", node.start_mark)
        children = [value for _, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    for child in children:
        _refuse_twins(child)


def write(values: dict[str, Any]) -> str:
    """The YAML of plain values, in their order."""
    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return text
