"""The models of the files as a tree of documented keys.

Read from the models' own JSON Schema, so that error messages, ``explain`` and the reference say
what the models enforce and cannot drift from them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal

from wardround_common.spec.aggregator import AggregatorSpec
from wardround_common.spec.base import Table
from wardround_common.spec.federation import FederationSpec
from wardround_common.spec.policy import PolicySpec
from wardround_common.spec.site import SiteSpec

FileKind = Literal["federation", "site", "policy", "aggregator"]
Schema = Mapping[str, Any]
MODELS: Final[dict[FileKind, type[Table]]] = {
    "federation": FederationSpec,
    "site": SiteSpec,
    "policy": PolicySpec,
    "aggregator": AggregatorSpec,
}


@dataclass(frozen=True, slots=True)
class Node:
    """One place in a file: a table, a key, or an item of a list.

    Attributes:
        path: dotted key as the file spells it, such as ``("tuning", "rank")``.
        schema: its JSON Schema, references resolved, ``null`` removed.
        required: whether leaving it out is an error.
        choices: the tags that lead here, such as ``(("tuning.method", "lora"),)``.
    """

    path: tuple[str, ...]
    schema: Schema
    required: bool = False
    choices: tuple[tuple[str, str], ...] = ()

    @property
    def key(self) -> str:
        """The dotted key."""
        return ".".join(self.path)

    @property
    def description(self) -> str:
        """The field's documentation, else its table's."""
        return " ".join(str(self.schema.get("description", "")).split())

    @property
    def tag_key(self) -> str | None:
        """The key that chooses between the shapes of this table, such as ``method``."""
        name: str | None = self.schema.get("discriminator", {}).get("propertyName")
        return name

    @property
    def is_table(self) -> bool:
        """Whether this is a table with known keys."""
        return "properties" in self.schema or self.tag_key is not None


@cache
def full_schema(kind: FileKind) -> Schema:
    """The JSON Schema of a file, as pydantic derives it."""
    return MODELS[kind].model_json_schema()


def root(kind: FileKind) -> Node:
    """The file itself."""
    return Node((), full_schema(kind), required=True)


def resolved(kind: FileKind, schema: Schema) -> Schema:
    """Follow ``$ref`` and drop ``null``; words beside a reference override the target's."""
    outer = {name: value for name, value in schema.items() if name not in {"$ref", "anyOf"}}
    members = [item for item in schema.get("anyOf", ()) if item.get("type") != "null"]
    if len(members) == 1:
        return {**resolved(kind, members[0]), **outer}
    if "$ref" in schema:
        target = full_schema(kind)["$defs"][schema["$ref"].rpartition("/")[2]]
        return {**resolved(kind, target), **outer}
    return {**outer, "anyOf": members} if members else outer


def child(kind: FileKind, parent: Node, name: str) -> Node | None:
    """The key ``name`` of a table with known keys, or None if it has no such key."""
    schema = parent.schema.get("properties", {}).get(name)
    if schema is None:
        return None
    required = name in parent.schema.get("required", ())
    return Node((*parent.path, name), resolved(kind, schema), required, parent.choices)


def children(kind: FileKind, parent: Node) -> Iterator[Node]:
    """The keys of a table, in the order of the model, tags first."""
    names = list(parent.schema.get("properties", {}))
    for name in sorted(names, key=lambda name: "const" not in parent.schema["properties"][name]):
        node = child(kind, parent, name)
        assert node is not None
        yield node


def variants(kind: FileKind, node: Node) -> dict[str, Node]:
    """The shapes of a table that a tag chooses between, by tag; empty if it has one shape."""
    if node.tag_key is None:
        return {}
    tag_key = ".".join((*node.path, node.tag_key))
    by_reference = {ref: tag for tag, ref in node.schema["discriminator"]["mapping"].items()}
    shapes: dict[str, Node] = {}
    for member in node.schema["oneOf"]:
        tag = by_reference[member["$ref"]]
        schema = resolved(kind, member)
        shapes[tag] = Node(node.path, schema, node.required, (*node.choices, (tag_key, tag)))
    return shapes


def item(kind: FileKind, node: Node, index: str | int) -> Node | None:
    """An entry of a list or of a table with free keys, or None if ``node`` is neither."""
    members = node.schema.get("anyOf", [node.schema])
    for member in (resolved(kind, member) for member in members):
        if isinstance(index, int) and "items" in member:
            path = (*node.path[:-1], f"{node.path[-1]}[{index}]")
            return Node(path, resolved(kind, member["items"]), choices=node.choices)
        entry = member.get("additionalProperties")
        if isinstance(index, str) and isinstance(entry, dict):
            return Node((*node.path, index), resolved(kind, entry), choices=node.choices)
    return None


def walk(kind: FileKind) -> Iterator[Node]:
    """Every documented table and key of a file, parents before their keys."""

    def below(node: Node) -> Iterator[Node]:
        for shape in variants(kind, node).values() or (node,):
            for entry in children(kind, shape):
                yield entry
                yield from below(entry)

    return below(root(kind))
