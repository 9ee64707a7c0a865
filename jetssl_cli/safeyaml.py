"""YAML that is safe to read: nothing is executed, and none takes memory or time without end."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from jetssl_cli.errors import ConfigError, reason

MOST_NODES = 1_000_000
"""Values of a YAML text, those that aliases repeat among them."""
MOST_DEPTH = 100
"""Values within each other in a YAML text."""
INTEGERS = range(-(2**63), 2**64)


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads 5e-4 as a number, and refuses what would be trouble later.

    That is a key given twice, an integer of more than 64 bits, text that is no Unicode, aliases
    that are part of themselves or repeat more than fits into memory, and values deep in each other,
    whose parsing takes a time that grows with the square of the depth.
    """

    depth = 0
    flow_level: int

    def fetch_flow_collection_start(self, token: type[yaml.Token]) -> None:
        _require_shallow(self.flow_level)  # brackets are read far ahead of the values within them
        super().fetch_flow_collection_start(token)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        _require_shallow(self.depth)
        self.depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def get_single_data(self) -> Any:
        node = self.get_single_node()
        if node is None:
            return None
        if _expanded(node, {}) > MOST_NODES:
            raise _refusal(f"its aliases stand for more than {MOST_NODES:,} values", node)
        return self.construct_document(node)

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        text = super().construct_scalar(node)
        text.encode()
        return text

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        number: int = super().construct_yaml_int(node)
        if number not in INTEGERS:
            raise _refusal("an integer has more than 64 bits", node)
        return number

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise _refusal(f"the key {key!r} stands twice", node)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _require_shallow(depth: int) -> None:
    if depth >= MOST_DEPTH:
        raise yaml.YAMLError(f"more than {MOST_DEPTH} values lie in each other")


def _refusal(problem: str, node: yaml.Node) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _expanded(node: yaml.Node, known: dict[yaml.Node, int]) -> int:
    """How many values a node stands for, each alias as a copy."""
    if node in known:
        if not known[node]:
            raise _refusal("an alias is a part of itself", node)
        return known[node]
    known[node] = 0
    parts = node.value if isinstance(node, yaml.CollectionNode) else []
    inside = [part for item in parts for part in (item if isinstance(item, tuple) else (item,))]
    known[node] = 1 + sum(_expanded(part, known) for part in inside)
    return known[node]


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


class Dumper(yaml.SafeDumper):
    """Quotes the text that ``_Loader`` would read as a number."""


for _class in (_Loader, Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
        list("-+.0123456789"),
    )


def parse_yaml(text: str, source: str) -> Any:
    """Parse YAML text with the safe loader.

    Raises:
        ConfigError: the text is not YAML, or gives a key twice.
    """
    try:
        return yaml.load(text, _Loader)
    except (LookupError, AttributeError):
        raise ConfigError(f"{source}: not valid YAML: a value is not what its tag says") from None
    except (yaml.YAMLError, TypeError, ValueError) as err:
        raise ConfigError(f"{source}: not valid YAML: {reason(err)}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping.

    Raises:
        ConfigError: there is no such file, or it holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(f"{path}: cannot be read: {reason(err)}") from None
    raw = parse_yaml(text, str(path))
    if raw is None:
        return {}
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise ConfigError(f"{path}: expected 'key: value' lines, found {type(raw).__name__}")
    return raw
