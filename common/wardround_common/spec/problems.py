"""What is wrong with a file, in words for the person who wrote it.

Each problem becomes one line: file, line number, key, the value found, what is allowed.
"""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from wardround_common.spec.lines import line_of
from wardround_common.spec.outline import (
    FileKind,
    Node,
    child,
    children,
    item,
    root,
    variants,
    walk,
)
from wardround_common.spec.words import toml_literal, type_words

MAX_PROBLEMS: Final = 20
MAX_VALUE_CHARACTERS: Final = 80
MAX_KEY_CHARACTERS: Final = 120
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_\-\[\]]+")


Problem = Mapping[str, Any]
"""One error as pydantic reports it: type, loc, input, ctx, msg."""


@dataclass(frozen=True, slots=True)
class Source:
    """A parsed file.

    Attributes:
        name: what the messages call it.
        kind: which model it is read with.
        raw: the parsed content.
        lines: where its keys stand.
    """

    name: str
    kind: FileKind
    raw: Mapping[str, Any]
    lines: dict[tuple[str, ...], int]

    def problem(self, path: tuple[str, ...], words: str) -> str:
        """One line about the key ``path``: ``file:line: words``."""
        line = line_of(self.lines, path)
        place = self.name if line is None else f"{self.name}:{line}"
        return f"{place}: {words}"


def key_text(path: tuple[str, ...]) -> str:
    """A dotted key as TOML writes it, shortened."""
    parts = (part if _BARE_KEY.fullmatch(part) else json.dumps(part) for part in path)
    return shortened(".".join(parts), MAX_KEY_CHARACTERS)


def shortened(text: str, limit: int = MAX_VALUE_CHARACTERS) -> str:
    """``text`` on one line of at most ``limit`` printable characters."""
    text = "".join(sign if sign.isprintable() else "?" for sign in " ".join(text.split()))
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def near_words(name: str, known: Sequence[str]) -> str:
    """``did you mean "x"? `` for the names nearest to ``name``, or nothing."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(map(toml_literal, near))}? " if near else ""


def problem_lines(source: Source, errors: Sequence[Problem]) -> list[str]:
    """One line per problem, at most 20 and a count of the rest."""
    problems: dict[tuple[str, ...], str] = {}
    for error in errors:
        path, words = _describe(source, error)
        problems.setdefault(path, source.problem(path, words))
    # A choice between a word and a list is reported once, at its wrong entry.
    inside = {
        (*path[:-1], path[-1].partition("[")[0]) for path in problems if path and "[" in path[-1]
    }
    kept = [text for path, text in problems.items() if path not in inside]
    hidden = len(kept) - MAX_PROBLEMS
    return kept[:MAX_PROBLEMS] + ([f"{source.name}: and {hidden} more"] if hidden > 0 else [])


def _locate(kind: FileKind, location: tuple[int | str, ...]) -> Node:
    """The node that an error's location means.

    A location mixes keys of the file with tags of shapes and labels of union members, which the
    file does not contain; they are left out of the node's path.
    """
    node = root(kind)
    for step in location:
        shapes = variants(kind, node)
        if step in shapes:
            node = shapes[str(step)]
        elif isinstance(step, str) and "properties" in node.schema:
            node = child(kind, node, step) or Node((*node.path, step), {}, choices=node.choices)
        elif step != "[key]":
            node = item(kind, node, step) or node
    return node


def _describe(source: Source, error: Problem) -> tuple[tuple[str, ...], str]:
    """The key that an error is about, and what to say about it."""
    node = _locate(source.kind, error["loc"])
    key = key_text(node.path)
    match error["type"]:
        case "missing":
            return node.path, f"{key} is missing; {_wanted_words(source.kind, node)}"
        case "extra_forbidden":
            return node.path, f"{key}{_unknown_words(source.kind, error, node)}"
        case "union_tag_not_found" | "union_tag_invalid":
            return _tag_words(source.kind, error, node)
        case "value_error":
            return _rule_words(source, error, node)
        case _ if error["loc"][-1:] == ("[key]",):
            return node.path, f"{key} is not an allowed name; allowed: text of 1 to 200 characters"
        case _:
            found = value_text(error["input"])
            wanted = f"a table [{key}]" if node.is_table else type_words(source.kind, node.schema)
            return node.path, f"{key} = {found} is not allowed; allowed: {wanted}"


def value_text(value: object) -> str:
    """A value as TOML writes it, shortened; tables are not spelled out."""
    return "a table" if isinstance(value, dict) else shortened(toml_literal(value))


def _wanted_words(kind: FileKind, node: Node) -> str:
    """What a missing key must be."""
    wanted = type_words(kind, node.schema)
    if node.is_table:
        tags = ", ".join(map(toml_literal, variants(kind, node)))
        wanted = f"a table [{node.key}]" + (f" with {node.tag_key} = one of {tags}" if tags else "")
    return f"allowed: {wanted}. {node.description}"


def _tag_words(kind: FileKind, error: Problem, node: Node) -> tuple[tuple[str, ...], str]:
    """What to say about a missing or unknown tag such as ``tuning.method``."""
    assert node.tag_key is not None
    path = (*node.path, node.tag_key)
    tags = list(variants(kind, node))
    allowed = f"allowed: {', '.join(map(toml_literal, tags))}"
    if error["type"] == "union_tag_not_found":
        return path, f"{key_text(path)} is missing; {allowed}"
    tag = error["input"][node.tag_key]
    near = near_words(str(tag), tags)
    return path, f"{key_text(path)} = {value_text(tag)} is not allowed; {near}{allowed}"


def _unknown_words(kind: FileKind, error: Problem, node: Node) -> str:
    """What to say about a key that its table does not have."""
    parent = _locate(kind, error["loc"][:-1])
    known = [entry.path[-1] for entry in children(kind, parent)]
    name, table = node.path[-1], f"[{parent.key}]" if parent.path else "the file"
    shape = ""
    if parent.choices and parent.choices[-1][0].startswith(f"{parent.key}."):
        tag_key, tag = parent.choices[-1]
        shape = f" with {tag_key.rpartition('.')[2]} = {toml_literal(tag)}"
    found = "" if isinstance(error["input"], dict) else f" = {value_text(error['input'])}"
    hint = near_words(name, known) or _elsewhere_words(kind, node)
    return f"{found} is not a known key; {hint}allowed in {table}{shape}: {', '.join(known)}"


def _elsewhere_words(kind: FileKind, unknown: Node) -> str:
    """Where else a key of this name belongs, or nothing."""
    same = [node for node in walk(kind) if node.path[-1] == unknown.path[-1]]
    here = [node.choices[-1] for node in same if node.path == unknown.path and node.choices]
    if here:
        tags = " or ".join(toml_literal(tag) for _, tag in here)
        return f"it goes with {here[0][0]} = {tags}; "
    keys = list(dict.fromkeys(node.key for node in same))
    return f"did you mean {' or '.join(keys[:3])}? " if keys else ""


def _rule_words(source: Source, error: Problem, node: Node) -> tuple[tuple[str, ...], str]:
    """What to say about a broken rule: the model's own words, at the key that they name first."""
    words = str(error.get("ctx", {}).get("error", error["msg"]))
    if node.is_table and node.path:
        return node.path, f"[{key_text(node.path)}] {words}"
    if node.path:
        value = error["input"]
        found = "" if isinstance(value, dict) else f" = {value_text(value)}"
        allowed = type_words(source.kind, node.schema)
        return node.path, f"{key_text(node.path)}{found}: {words}; allowed: {allowed}"
    named = (tuple(dotted.split(".")) for dotted in re.findall(r"\b[a-z_]+(?:\.[a-z_]+)+", words))
    return next((path for path in named if path[:1] in source.lines), ()), words
