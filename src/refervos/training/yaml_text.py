"""YAML 1.2 as people write recipes in it, read within limits.

The only file that imports ruamel.yaml; import it where YAML is needed, through ``recipe.yaml_text``.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer
from ruamel.yaml.constructor import ConstructorError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from refervos.errors import ConfigError

LONGEST = 2**16
"""Letters of YAML that are read: the library takes seconds for them, and the published recipes have a few thousand."""

DEEPEST = 50
"""How deep values may be nested."""

MOST_VALUES = 100_000
"""How many values there may be, each counted as often as aliases repeat it."""

# So many the library looks through again and again before it says what the first one is.
_BRACKETS = re.compile(rf"(?:[\[{{]\s*){{{DEEPEST + 1}}}")


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
    if _BRACKETS.search(text):
        raise _too_deep(where)
    yaml = _yaml()
    try:
        root = yaml.compose(text)
        _check_aliases(root, where)
        values = None if root is None else yaml.constructor.construct_document(root)
    except RecursionError as error:
        raise _too_deep(where) from error
    except (YAMLError, ValueError, OverflowError) as error:  # the last two of a date or a number that there is not
        raise ConfigError(f"{where} is no readable YAML ({_reason(error)}).") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{where} holds a {type(values).__name__}; names and values are expected.")
    return values


def write(values: dict[str, Any]) -> str:
    """The YAML of plain values, in their order."""
    text = io.StringIO()
    _yaml().dump(values, text)
    return text.getvalue()


class _Composer(Composer):
    """Refuses what is nested too deep before it goes there, and names that no mapping has, or has twice."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.depth > DEEPEST:
            raise RecursionError
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        # The library does not notice equal names in a mapping that another one is merged into.
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                problem = "a list or a mapping stands where a name is expected"
                raise ConstructorError(None, None, problem, key.start_mark)
            if key.value in seen:
                raise ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        return node


def _yaml() -> YAML:
    """Plain values only, nothing is executed; in Python, for the faster library in C knows YAML 1.1 alone."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Composer = _Composer
    yaml.composer.warn_double_anchors = False  # that is allowed, and comes of copying a stage
    options: Any = yaml  # where they are declared they have the types of their defaults
    options.default_flow_style = False
    options.sort_base_mapping_type_on_output = False
    return yaml


def _too_deep(where: str) -> ConfigError:
    return ConfigError(f"{where} is nested too deep; values may be nested {DEEPEST} times.")


def _reason(error: Exception) -> str:
    """What the library says is wrong, and where, on one line of bearable length."""
    if not isinstance(error, MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())[:200]
    problem, mark = " ".join(str(error.problem).split())[:200], error.problem_mark
    return f"{problem}, line {mark.line + 1}, column {mark.column + 1}"


def _check_aliases(root: Node | None, where: str) -> None:
    """Refuse aliases that multiply or hold themselves."""
    sizes: dict[int, int] = {}  # of what was looked at, by identity; 0 while it is looked at

    def size_of(node: Node) -> int:
        if id(node) in sizes:
            if not sizes[id(node)]:
                raise ConfigError(f"{where} has an alias that holds itself.")
            return sizes[id(node)]
        sizes[id(node)] = 0
        children: Sequence[Node] = ()
        if isinstance(node, MappingNode):
            children = [part for pair in node.value for part in pair]
        elif isinstance(node, SequenceNode):
            children = node.value
        sizes[id(node)] = total = 1 + sum(map(size_of, children))
        if total > MOST_VALUES:
            raise ConfigError(f"{where} has more than {MOST_VALUES} values; do its aliases multiply?")
        return total

    if root is not None:
        size_of(root)
