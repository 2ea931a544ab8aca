"""Reader and writer of YAML 1.2 recipes, with limits on size and nesting.

The only file that imports ruamel.yaml; import it through ``recipe.yaml_text`` where YAML is needed.
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

MAX_CHARACTERS = 2**16
"""Longest text to parse: the library takes seconds for it, and the published recipes have a few thousand characters."""

MAX_DEPTH = 50
"""Deepest nesting of values."""

MAX_VALUES = 100_000
"""Largest number of values, each counted as often as aliases repeat it."""

# The library's time grows steeply with brackets in brackets, before any node reaches our depth check.
_BRACKETS = re.compile(rf"(?:[\[{{]\s*){{{MAX_DEPTH + 1}}}")


def parse(text: str, where: str) -> dict[str, Any]:
    """Parse a mapping.

    Args:
        text: The YAML.
        where: Its file, for error messages.

    Returns:
        Names and plain values.

    Raises:
        ConfigError: When it is no YAML, no mapping, gives a name twice, or exceeds a limit.
    """
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(f"{where} has {len(text)} characters; at most {MAX_CHARACTERS} of YAML are read.")
    if _BRACKETS.search(text):
        raise _too_deep(where)
    yaml = _yaml()
    try:
        root = yaml.compose(text)
        _check_aliases(root, where)
        values = None if root is None else yaml.constructor.construct_document(root)
    except RecursionError as error:
        raise _too_deep(where) from error
    except (YAMLError, ValueError, OverflowError) as error:  # the last two for impossible dates and numbers
        raise ConfigError(f"{where} is no readable YAML ({_reason(error)}).") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{where} holds a {type(values).__name__}; names and values are expected.")
    return values


def write(values: dict[str, Any]) -> str:
    """Format plain values as YAML, in their order."""
    text = io.StringIO()
    _yaml().dump(values, text)
    return text.getvalue()


class _Composer(Composer):
    """Composer that refuses nesting beyond ``MAX_DEPTH``, keys that are no scalars, and duplicate keys."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.depth > MAX_DEPTH:
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
                problem = "a list or a mapping is given instead of a name"
                raise ConstructorError(None, None, problem, key.start_mark)
            if key.value in seen:
                raise ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        return node


def _yaml() -> YAML:
    """Make a parser of plain values that executes nothing; pure Python, as the C library knows only YAML 1.1."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Composer = _Composer
    yaml.composer.warn_double_anchors = False  # allowed in YAML, and common in copied stages
    options: Any = yaml  # these attributes are declared with the types of their defaults only
    options.default_flow_style = False
    options.sort_base_mapping_type_on_output = False
    return yaml


def _too_deep(where: str) -> ConfigError:
    return ConfigError(f"{where} is nested too deep; values may be nested {MAX_DEPTH} times.")


def _reason(error: Exception) -> str:
    """Return the library's description of an error and its position, on one line of limited length."""
    if not isinstance(error, MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())[:200]
    problem, mark = " ".join(str(error.problem).split())[:200], error.problem_mark
    return f"{problem}, line {mark.line + 1}, column {mark.column + 1}"


def _check_aliases(root: Node | None, where: str) -> None:
    """Refuse aliases that multiply or contain themselves."""
    sizes: dict[int, int] = {}  # of visited nodes, by identity; 0 during the visit

    def size_of(node: Node) -> int:
        if id(node) in sizes:
            if not sizes[id(node)]:
                raise ConfigError(f"{where} has an alias that contains itself.")
            return sizes[id(node)]
        sizes[id(node)] = 0
        children: Sequence[Node] = ()
        if isinstance(node, MappingNode):
            children = [part for pair in node.value for part in pair]
        elif isinstance(node, SequenceNode):
            children = node.value
        sizes[id(node)] = total = 1 + sum(map(size_of, children))
        if total > MAX_VALUES:
            raise ConfigError(f"{where} has more than {MAX_VALUES} values; do its aliases multiply?")
        return total

    if root is not None:
        size_of(root)
