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


LONGEST = 2**20
"""Bytes of YAML that are read; the published recipes have a few thousand."""

DEEPEST = 50
"""How deep values may be nested."""

MOST_VALUES = 100_000
"""How many values there may be, each counted as often as aliases repeat it."""


def parse(text: str, where: str) -> dict[str, Any]:
    """Read a mapping.

    Args:
        text: The YAML.
        where: Its file, for error messages.

    Returns:
        Names and plain values.

    Raises:
        ConfigError: When it is no YAML, no mapping, gives a name twice, or is larger than a person would write it.
    """
    if len(text) > LONGEST:
        raise ConfigError(f"{where} has {len(text)} letters; of YAML at most {LONGEST} are read.")
    if text.count("[") + text.count("{") > MOST_VALUES // 10 or _brackets_in_a_row(text):
        raise ConfigError(f"{where} is nested too deep; values may be nested {DEEPEST} times.")
    try:
        _check_depth(text, where)
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            _check_nodes(node, where)
            values = None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{where} is no readable YAML ({reason}).") from error
    except (ValueError, OverflowError, RecursionError) as error:  # a date or a number that there is not
        raise ConfigError(f"{where} is no readable YAML ({' '.join(str(error).split())[:200]}).") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{where} holds a {type(values).__name__}; names and values are expected.")
    return values


def _brackets_in_a_row(text: str) -> bool:
    """Whether brackets are opened one after the other, for which PyYAML takes a time that grows with their square."""
    return re.search(rf"(?:[\[{{]\s*){{{DEEPEST + 1}}}", text) is not None


def _check_depth(text: str, where: str) -> None:
    """Refuse what is nested too deep, before anything recurses into it."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEEPEST:
                raise ConfigError(f"{where} is nested too deep; values may be nested {DEEPEST} times.")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _check_nodes(root: yaml.Node | None, where: str) -> None:
    """Refuse equal names, of which PyYAML would take the last without a word, and aliases that multiply or hold
    themselves.
    """
    sizes: dict[int, int] = {}  # of what was looked at, by identity; 0 while it is looked at

    def size_of(node: yaml.Node) -> int:
        if id(node) in sizes:
            if not sizes[id(node)]:
                raise ConfigError(f"{where} has an alias that holds itself.")
            return sizes[id(node)]
        sizes[id(node)] = 0
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if key.value in seen:
                        problem = f"{key.value!r} is given twice"
                        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
                    seen.add(key.value)
                children += [key, value]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        sizes[id(node)] = total = 1 + sum(map(size_of, children))
        if total > MOST_VALUES:
            raise ConfigError(f"{where} has more than {MOST_VALUES} values; do its aliases multiply?")
        return total

    if root is not None:
        size_of(root)


def write(values: dict[str, Any]) -> str:
    """The YAML of plain values, in their order."""
    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return text
