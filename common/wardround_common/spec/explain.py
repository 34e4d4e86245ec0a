"""The documentation of the files: one key, the whole reference, a JSON Schema.

All of it is derived from the models, so it says what they enforce.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Final

from wardround_common.errors import ConfigError
from wardround_common.spec.outline import (
    FileKind,
    Node,
    child,
    children,
    full_schema,
    item,
    root,
    variants,
    walk,
)
from wardround_common.spec.problems import near_words, shortened
from wardround_common.spec.words import toml_literal, type_words

_FILES: Final[tuple[FileKind, ...]] = ("federation", "site", "policy", "aggregator")
_PREFIXED: Final[tuple[FileKind, ...]] = ("site", "policy", "aggregator")
"""Files whose keys start with the file's name."""
_PREAMBLE: Final = """# Reference of the files

Generated from the models by `make docs`; a test keeps it equal. `wardround explain KEY` prints one
entry, `wardround schema federation` the JSON Schema for an editor, `wardround validate FED.toml`
checks a file. Where a table has several shapes, the key in its heading chooses one. Unknown keys
are refused. A key without a default must be given; a default of - means that it may be left out.
"""


def schema_json(kind: FileKind) -> str:
    """The JSON Schema of a file, for editors and other programs.

    Args:
        kind: which file.
    """
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **full_schema(kind)}
    schema["title"] = f"{kind}.toml"
    return json.dumps(schema, indent=2, ensure_ascii=False)


def explain(key: str) -> str:
    """The documentation of a key.

    Args:
        key: dotted, as ``rounds.quorum_sites`` or ``tuning.rank``; the shape may be named too, as
            ``tuning.lora.rank``. Keys of site.toml start with ``site.``, those of policy.toml and
            aggregator.toml with ``policy.`` and ``aggregator.``. Empty: the list of tables.

    Raises:
        ConfigError: there is no such key (``unknown_key``); the message has the nearest ones.
    """
    parts = [part for part in key.split(".") if part]
    kind: FileKind = "federation"
    for file in _PREFIXED:
        kind = file if parts[:1] == [file] else kind
    found = _dedupe(_matches(kind, root(kind), parts[kind in _PREFIXED :]))
    if not parts:
        return "\n\n".join(_table_text(file, root(file)) for file in _FILES)
    if not found:
        known = list(dict.fromkeys(_all_keys()))
        same = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]
        hint = f"did you mean {' or '.join(same[:3])}? " if same else near_words(key, known)
        raise ConfigError(
            f"{shortened(key)}: there is no such key; {hint}"
            "`wardround explain` alone lists the tables",
            code="unknown_key",
        )
    return "\n\n".join(_entry_text(kind, node) for node in found)


def _all_keys() -> Iterator[str]:
    yield from (node.key for node in walk("federation"))
    for kind in _PREFIXED:
        yield from (f"{kind}.{node.key}" for node in walk(kind))


def _matches(kind: FileKind, node: Node, parts: Sequence[str]) -> Iterator[Node]:
    """The nodes that a dotted key may mean: shapes may be named or left out."""
    shapes = variants(kind, node)
    if not parts:
        yield node
        return
    if parts[0] in shapes:
        yield from _matches(kind, shapes[parts[0]], parts[1:])
    for shape in shapes.values() or (node,):
        below = child(kind, shape, parts[0]) or (item(kind, shape, parts[0]) if node.path else None)
        if below is not None:
            yield from _matches(kind, below, parts[1:])


def _dedupe(nodes: Iterator[Node]) -> list[Node]:
    """Nodes that read the same, once, with the tags that all of them need."""
    kept: dict[tuple[str, str], Node] = {}
    for node in nodes:
        body = json.dumps([node.schema, node.required], sort_keys=True)
        first = kept.setdefault((node.key, body), node)
        if first is not node:
            shared = tuple(choice for choice in first.choices if choice in node.choices)
            kept[node.key, body] = Node(node.path, node.schema, node.required, shared)
    return list(kept.values())


def _default_words(kind: FileKind, node: Node) -> str | None:
    """The default as TOML, ``-`` for absent, None for a key that must be given."""
    if node.required or "const" in node.schema:
        return None
    default = node.schema.get("default")
    if default is None:
        is_free_table = type_words(kind, node.schema).startswith("table of")
        return "{}" if is_free_table else "-"
    return toml_literal(default)


def _with_words(node: Node) -> str:
    """`` (with data.modality = "text")`` where the key exists in some shapes only."""
    words = " and ".join(f"{tag_key} = {toml_literal(tag)}" for tag_key, tag in node.choices)
    return f" (with {words})" if words else ""


def _entry_text(kind: FileKind, node: Node) -> str:
    if node.is_table or not node.path:
        return _table_text(kind, node)
    default = _default_words(kind, node)
    lines = [
        f"{node.key}{_with_words(node)}",
        f"  {node.description}" if node.description else "",
        f"  type: {type_words(kind, node.schema)}",
        f"  default: {'none, it must be given' if default is None else default}",
        f"  file: {kind}.toml",
    ]
    return "\n".join(line for line in lines if line)


def _table_text(kind: FileKind, node: Node) -> str:
    heading = f"[{node.key}]{_with_words(node)}" if node.path else f"{kind}.toml"
    lines = [heading, f"  {node.description}"]
    for tag, shape in variants(kind, node).items() or {"": node}.items():
        indent = "  "
        if tag:
            lines.append(f"  {node.tag_key} = {toml_literal(tag)}: {_shape_words(kind, shape)}")
            indent = "    "
        names = [entry for entry in children(kind, shape) if entry.path[-1] != node.tag_key]
        width = max((len(entry.path[-1]) for entry in names), default=0)
        lines += [f"{indent}{entry.path[-1]:{width}}  {entry.description}" for entry in names]
    return "\n".join(line.rstrip() for line in lines)


def _shape_words(kind: FileKind, shape: Node) -> str:
    """The documentation of one shape of a table, which its field's own words hide."""
    for definition in full_schema(kind)["$defs"].values():
        if definition.get("properties") == shape.schema.get("properties"):
            return " ".join(str(definition.get("description", "")).split())
    return shape.description


def reference_markdown() -> str:
    """The whole reference as Markdown: ``docs/spec-reference.md``."""
    parts = [_PREAMBLE]
    for kind in _FILES:
        parts.append(f"## {kind}.toml\n\n{_key_table(kind, root(kind))}")
        seen: set[tuple[str, str]] = set()
        tables = [node for node in walk(kind) if node.is_table]
        for node in tables:
            body = (node.key, json.dumps(node.schema, sort_keys=True))
            if body not in seen:
                seen.add(body)
                parts.append(_table_markdown(kind, node))
    return "\n".join(parts)


def _table_markdown(kind: FileKind, node: Node) -> str:
    text = f"### [{node.key}]\n\n{node.description}\n"
    shapes = variants(kind, node)
    if not shapes:
        return f"{text}\n{_key_table(kind, node)}"
    for tag, shape in shapes.items():
        text += f"\n#### {node.tag_key} = {toml_literal(tag)}\n\n{_shape_words(kind, shape)}\n"
        text += f"\n{_key_table(kind, shape)}"
    return text


def _key_table(kind: FileKind, node: Node) -> str:
    rows = ["| key | type and range | default | meaning |", "|---|---|---|---|"]
    for entry in children(kind, node):
        default = _default_words(kind, entry)
        cells = (
            f"`{entry.path[-1]}`",
            type_words(kind, entry.schema),
            "" if default is None else (default if default == "-" else f"`{default}`"),
            entry.description,
        )
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(rows) + "\n"
